"""Running the `histojax` command inside the process of a test."""

import contextlib
import gc
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from histojax.cli.main import main

_LOGGERS = ("histojax", "data_pipelines")


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit code and what it wrote, with the names that `subprocess.run` uses."""

    returncode: int
    stdout: str
    stderr: str


def histojax(*argv: object) -> Finished:
    """Run `histojax ARGV…` in this process, as a shell would; an unexpected exception is passed on."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), _restored():
        try:
            main([str(word) for word in argv])
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=stderr)
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Finished(code, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Put back the state of the process that a command changes: loggers and garbage collection."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    states = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    thresholds = gc.get_threshold()
    try:
        yield
    finally:
        for logger, (level, propagate, handlers) in zip(loggers, states, strict=True):
            logger.setLevel(level)
            logger.propagate, logger.handlers[:] = propagate, handlers
        gc.enable()
        gc.set_threshold(*thresholds)
