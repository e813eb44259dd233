"""`histojax shardings --config FILE`: how parameters and optimizer lie on devices."""

from collections.abc import Sequence

from histojax.cli import console
from histojax.core.errors import RunError


def main(words: list[str]) -> None:
    """Runs `histojax shardings` with these words; whatever a user can mend is told in words, with exit code 1."""
    # Defined here: histojax.main has a flag of the same name.
    from absl import app, flags
    from ml_collections import config_flags

    flag = config_flags.DEFINE_config_file(
        "config", None, "Config file[:variant]; fields: --config.a.b=…", lock_config=True
    )
    devices = flags.DEFINE_integer("devices", 8, "How many; virtual ones, so that none are needed.", lower_bound=1)
    classes = flags.DEFINE_integer("num_classes", 2, "Of the model.", lower_bound=1)

    console.show_in_help("config", "devices", "num_classes")

    def run(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        console.configure_logging()
        with console.errors_in_words():
            if flag.value is None:
                raise RunError("histojax shardings needs --config=FILE")
            import jax

            jax.config.update("jax_platforms", "cpu")
            from histojax.cli import shardings_table
            from histojax.distributed import runtime

            runtime.prepare(devices.value)
            print(shardings_table.table(flag.value, classes.value))

    app.run(run, argv=["histojax shardings", *words], flags_parser=console.parse_flags)
