"""`python -m histojax.main --config FILE[:variant] --workdir DIR`: flags, devices, one call."""

import gc
import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

from histojax.cli import console
from histojax.core.errors import RunError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file[:variant]; fields: --config.a.b=…", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an interrupted run in it goes on.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "eval: evaluates a checkpoint.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "eval: a checkpoint or a work directory, if not --workdir.")
_DATA_ROOT = flags.DEFINE_string("data_root", "", "eval: other images than the run's.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 0, "eval: another height and width of the input than the run's.")
_MAGNIFICATION = flags.DEFINE_string("magnification", "", "eval: another magnification than the run's.")
_PROFILE = flags.DEFINE_bool("profile", False, "train: traces a few steps in WORKDIR/profile, names what costs most.")
_MEMBERSHIP = ("coordinator", "num_processes", "process_id")
for _name, _help in zip(_MEMBERSHIP, ("HOST:PORT of process 0.", "How many there are.", "Of this one."), strict=True):
    flags.DEFINE_string(_name, "", f"One run of several processes: {_help} launch/ and SLURM set it without flags.")


def main(argv: Sequence[str]) -> None:
    """Runs what the flags say; whatever a user can mend is told in words, with exit code 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    gc.disable()  # until `startup.prepare`: what is imported stays
    from histojax.distributed import processes  # behind the flags: --help and a misspelt flag need no jax

    console.configure_logging()
    with processes.ending_together(), console.errors_in_words():
        _run()


def _run() -> None:
    from histojax.distributed import processes, runtime
    from histojax.training import evaluate, loop, profiling

    for flag in (_WORKDIR, _CHECKPOINT):
        if "://" in (flag.value or ""):
            raise RunError(f"--{flag.name}={flag.value}: a path is wanted; mount the bucket, see launch/README.md")
    config = _CONFIG.value
    if _PROFILE.value:
        profiling.disable_command_buffers()
    runtime.prepare(config.sharding.cpu_devices if config else 2)
    processes.initialise({name: flags.FLAGS[name].value for name in _MEMBERSHIP})
    console.quiet_unless_first()
    if _MODE.value == "train":
        if config is None or _WORKDIR.value is None:
            raise RunError("training needs --config=FILE and --workdir=DIR")
        if not loop.train_and_evaluate(config, pathlib.Path(_WORKDIR.value), _PROFILE.value):
            sys.exit(processes.EXIT_RESUMABLE)
        return
    source = _CHECKPOINT.value or _WORKDIR.value
    if source is None:
        raise RunError("--mode=eval needs --workdir=DIR of a run, or --checkpoint=DIR")
    if config is not None:
        raise RunError(
            "--mode=eval takes its config from the checkpoint: drop --config; "
            "see --data_root, --magnification, --image_size"
        )
    output = pathlib.Path(_WORKDIR.value) if _WORKDIR.value else None
    print(
        evaluate.evaluate_checkpoint(
            pathlib.Path(source),
            output,
            data_root=_DATA_ROOT.value,
            magnification=_MAGNIFICATION.value,
            image_size=_IMAGE_SIZE.value,
        )
    )


if __name__ == "__main__":
    app.run(main, flags_parser=console.parse_flags)
