"""Locks between processes that share a folder."""

import contextlib
import fcntl
import logging
import pathlib
from collections.abc import Iterator

_FILE = ".lock"
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def exclusive_lock(folder: pathlib.Path) -> Iterator[None]:
    """Hold a folder's lock, so that one process prepares data in it while the others wait and find the work done.

    A folder that cannot be written is not locked: it may hold data that was prepared earlier. The operating system
    releases the lock when the process that holds it dies.

    Args:
      folder: created if it does not exist.
    """
    file = None
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / _FILE, "a")  # noqa: SIM115 (closed below)
    with file or contextlib.nullcontext():
        if file is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.info("waiting for another process that is preparing data in %s", folder)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
