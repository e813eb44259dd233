"""What a program says to its terminal: log lines, and mistakes of the user in words."""

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence

from absl import flags
from absl import logging as absl_logging

from data_pipelines.errors import DataError
from histojax.core.errors import RunError

_OURS = ("histojax", "data_pipelines")


def configure_logging() -> None:
    """Our own lines as they are; of the libraries only warnings."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    for name in _OURS:
        logger, handler = logging.getLogger(name), logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False


def quiet_unless_first() -> None:
    """Of several processes, only the first says what all know; warnings come from each."""
    import jax

    if jax.process_index() != 0:
        for name in _OURS:
            logging.getLogger(name).setLevel(logging.WARNING)


@contextlib.contextmanager
def errors_in_words() -> Iterator[None]:
    """Ends the program with exit code 1 and a sentence, no traceback, where the user can mend what is wrong."""
    try:
        yield
    except (RunError, DataError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror or error}. What was written before is whole; mend it and start again.")


def show_in_help(*names: str) -> None:
    """These flags are the verb's: absl's --help shows those of the program's own file alone."""
    for name in names:
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Flags as `absl.app.run` wants them parsed, with a misspelt or mistyped config field told in words."""
    try:
        return flags.FLAGS(list(argv))
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except flags.Error as error:
        # Of an error inside a config file absl shows the whole traceback; its last line says what is wrong.
        message = str(error).strip()
        if "Traceback" in message:
            message = message.splitlines()[-1].removeprefix("ValueError: ")
        sys.exit(
            f"error: {message}\nSee python -m histojax.main --help, and configs/common.py for the config's fields."
        )
