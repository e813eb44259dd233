"""Retries of transient storage errors."""

import errno
import logging
import pathlib
import stat
import time
from collections.abc import Callable
from typing import TypeVar

from histojax.core.printable import printable

_log = logging.getLogger(__name__)
T = TypeVar("T")
# Errors of network storage. A full disk or a missing or forbidden file is not retried: waiting does not help.
_TRANSIENT = {errno.EIO, errno.ETIMEDOUT, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EREMOTEIO, errno.EHOSTUNREACH}
_TRANSIENT |= {errno.ENETUNREACH, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENOTCONN}


def is_transient(error: OSError) -> bool:
    """Return whether an error is one of network storage, which may be gone when the action is repeated."""
    return error.errno in _TRANSIENT


def read_bytes(path: pathlib.Path) -> bytes:
    """Read a file, and retry after a transient storage error.

    Raises:
      OSError: it cannot be read, or is a pipe, socket or device.
    """

    def read() -> bytes:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait forever
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return path.read_bytes()

    return with_backoff(printable(path), read)


def with_backoff(what: str, action: Callable[[], T], *, waits: tuple[float, ...] = (1.0, 4.0, 16.0)) -> T:
    """Call `action`, and retry it after each wait if a transient storage error occurs.

    Args:
      what: the file or folder, for the warning.
      action: must be safe to repeat.
      waits: seconds before each retry.

    Raises:
      OSError: the error is not transient, or the last retry failed.
    """
    for wait in waits:
        try:
            return action()
        except OSError as error:
            if not is_transient(error):
                raise
            _log.warning("%s: %s; retrying in %g s", what, error.strerror or error, wait)
            time.sleep(wait)
    return action()
