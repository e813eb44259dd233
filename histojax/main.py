"""`python -m histojax.main --config FILE[:variant] --workdir DIR`: flags, devices, one call."""

import logging
import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from data_pipelines.errors import DataError
from data_pipelines.prepare import default_directory
from histojax.errors import RunError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file[:variant]; fields: --config.a.b=…", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an interrupted run in it goes on.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "eval: evaluates a checkpoint.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "eval: a checkpoint or a work directory, if not --workdir.")
_DATA_ROOT = flags.DEFINE_string("data_root", "", "eval: other images than the run's.")
_MAGNIFICATION = flags.DEFINE_string("magnification", "", "eval: another magnification than the run's.")


def main(argv: Sequence[str]) -> None:
    """Runs what the flags say; whatever a user can mend is told in words, with exit code 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    _configure_logging()
    try:
        _run()
    except (RunError, DataError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror or error}. What was written before is whole; mend it and start again.")


def _run() -> None:
    # Behind the flags: --help and a misspelt flag need no jax.
    from histojax import compilation, evaluate, sharding, train

    config = _CONFIG.value
    compilation.use_cache(default_directory())
    sharding.use_cpu_devices(config.sharding.cpu_devices if config else 2)
    if _MODE.value == "train":
        if config is None or _WORKDIR.value is None:
            raise RunError("training needs --config=FILE and --workdir=DIR")
        train.train_and_evaluate(config, pathlib.Path(_WORKDIR.value))
        return
    source = _CHECKPOINT.value or _WORKDIR.value
    if source is None:
        raise RunError("--mode=eval needs --workdir=DIR of a run, or --checkpoint=DIR")
    print(
        evaluate.evaluate_checkpoint(
            pathlib.Path(source),
            pathlib.Path(_WORKDIR.value or "."),
            data_root=_DATA_ROOT.value,
            magnification=_MAGNIFICATION.value,
        )
    )


def _configure_logging() -> None:
    """Our own lines as they are; of the libraries only warnings."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    for name in ("histojax", "data_pipelines"):
        logger, handler = logging.getLogger(name), logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False


def _parse(argv: Sequence[str]) -> list[str]:
    """Flags, with a misspelt or mistyped config field told in words."""
    try:
        return flags.FLAGS(list(argv))
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except flags.Error as error:
        sys.exit(f"error: {error}\nSee python -m histojax.main --help, and configs/common.py for the config's fields.")


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
