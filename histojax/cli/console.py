"""The terminal output of a command: log lines, and user errors without a traceback."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

from absl import logging as absl_logging

from data_pipelines.errors import DataError
from histojax.core.errors import EXIT_INTERRUPTED, EXIT_RESUMABLE, RunError
from histojax.core.printable import printable

_OURS = ("histojax", "data_pipelines")


class _Handler(logging.StreamHandler):
    """Writes only the message to standard error, without level, time or logger."""


def configure_logging() -> None:
    """Print our own log lines as they are, and only warnings of libraries."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    for name in _OURS:
        logger, handler = logging.getLogger(name), _Handler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        for earlier in [one for one in logger.handlers if isinstance(one, _Handler)]:
            logger.removeHandler(earlier)  # of an earlier command in the same process
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False


def quiet_unless_first() -> None:
    """Let only the first of several processes log what all of them know; warnings come from each."""
    import jax

    if jax.process_index() != 0:
        for name in _OURS:
            logging.getLogger(name).setLevel(logging.WARNING)


def exit_interrupted(message: str) -> NoReturn:
    """End the program after Ctrl-C, with exit code 130 and a message; a further Ctrl-C ends it at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while threads finish, Python would print a traceback
    print(message, file=sys.stderr)
    sys.exit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def resumable_at_sigterm() -> Iterator[None]:
    """Let SIGTERM end the process with exit code 75, so that a scheduler runs the command again.

    It is for what comes before and after the run, which has a handler of its own that saves first.
    """

    def end(*_: object) -> None:
        os.write(2, b"\nSIGTERM: stopped at once; rerun the same command\n")
        os._exit(EXIT_RESUMABLE)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """End the program with exit code 1 and a message, without a traceback, on an error that the user can fix."""
    try:
        yield
    except (RunError, DataError) as error:
        sys.exit(f"error: {printable(str(error))}")
    except BrokenPipeError:  # `histojax … | head`: the reader has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = f"{printable(str(error.filename))}: " if error.filename else ""
        sys.exit(f"error: {place}{error.strerror or error}. Existing output is intact. Fix the problem and rerun.")
