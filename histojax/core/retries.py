"""Storage that answers late: what is worth asking again."""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

_log = logging.getLogger(__name__)
T = TypeVar("T")
# Of network storage; a full disk, a missing file or a forbidden one is no better a second later.
_TRANSIENT = {errno.EIO, errno.ETIMEDOUT, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EREMOTEIO, errno.EHOSTUNREACH}
_TRANSIENT |= {errno.ENETUNREACH, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENOTCONN}


def with_backoff(what: str, action: Callable[[], T], *, waits: tuple[float, ...] = (1.0, 4.0, 16.0)) -> T:
    """Does something with storage, again after each of `waits` seconds where the storage may recover.

    Args:
      what: for the warning: a file, a folder.
      action: safe to be repeated.
      waits: in seconds.

    Raises:
      OSError: of the last try, or one that waiting does not mend.
    """
    for wait in waits:
        try:
            return action()
        except OSError as error:
            if error.errno not in _TRANSIENT:
                raise
            _log.warning("%s: %s; again in %g s", what, error.strerror or error, wait)
            time.sleep(wait)
    return action()
