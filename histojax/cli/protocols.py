"""`histojax protocols --config FILE[:variant] --workdir D …`: the leak meter."""

import pathlib
import sys
from collections.abc import Sequence

from histojax.cli import console


def main(words: list[str]) -> None:
    """Runs `histojax protocols` with these words; what a user can mend is told in words, with exit code 1."""
    # Defined here: histojax.main has flags of the same names.
    from absl import app, flags
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", None, "Config file[:variant]; fields: --config.a.b=…", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder of all runs; each fold has one of its own in it.")
    flags.DEFINE_list("protocols", [], "These, instead of image_with_copies to case_deduplicated; README lists them.")
    flags.DEFINE_list("magnifications", [], "40X, 100X, 200X, 400X or all; default: the config's.")
    flags.DEFINE_integer("folds", 5, "Of cross-validation; 0: one hold-out.")
    flags.DEFINE_bool("transfer", False, "Test the case-disjoint models at every magnification, too.")
    flags.DEFINE_string("write_folds", None, "Train nothing; write dsfold1.txt … of one protocol to this folder.")
    console.show_in_help("config", "workdir", "protocols", "magnifications", "folds", "transfer", "write_folds")

    def run(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        console.configure_logging()
        with console.errors_in_words():
            _run()

    app.run(run, argv=["histojax protocols", *words], flags_parser=console.parse_flags)


def _run() -> None:
    from absl import flags

    from histojax.core.errors import RunError
    from histojax.distributed import processes, runtime
    from histojax.studies import protocols

    given = flags.FLAGS
    if given.config is None or (given.workdir is None) == (given.write_folds is None):
        raise RunError("histojax protocols needs --config=FILE, and --workdir=DIR (or --write_folds=DIR)")
    runtime.prepare(given.config.sharding.cpu_devices)
    names = given.protocols or list(protocols.DEFAULT)
    if given.transfer and not any(name.partition("_")[0] == "case" for name in names):
        names.append("case_deduplicated")
    found = protocols.plans(given.config, names, given.magnifications, given.folds)
    if given.write_folds is not None:
        for path in protocols.write_folds(found, pathlib.Path(given.write_folds)):
            print(path)
        return
    text = protocols.measure(found, pathlib.Path(given.workdir), given.transfer)
    print("interrupted: the same command goes on" if text is None else text, end="\n" if text is None else "")
    if text is None:
        sys.exit(processes.EXIT_RESUMABLE)


if __name__ == "__main__":
    main(sys.argv[1:])
