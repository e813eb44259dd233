"""Storage that recovers is asked again; storage that does not is not."""

import errno
import logging

import pytest

from histojax.core.retries import with_backoff


class Storage:
    """Fails with the given errors, one after another, and then answers."""

    def __init__(self, *errors: int):
        self.errors = list(errors)
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        if self.errors:
            raise OSError(self.errors.pop(0), "as asked")
        return "answer"


def test_what_recovers_is_asked_again_with_a_warning_each(caplog: pytest.LogCaptureFixture) -> None:
    storage = Storage(errno.EIO, errno.ESTALE)
    with caplog.at_level(logging.WARNING, logger="histojax"):
        assert with_backoff("/mnt/file", storage, waits=(0.01, 0.02, 0.04)) == "answer"
    assert storage.asked == 3
    assert [record.getMessage() for record in caplog.records] == [
        "/mnt/file: as asked; again in 0.01 s",
        "/mnt/file: as asked; again in 0.02 s",
    ]


def test_after_the_last_wait_it_is_raised() -> None:
    storage = Storage(*[errno.ETIMEDOUT] * 9)
    with pytest.raises(TimeoutError):
        with_backoff("x", storage, waits=(0.01, 0.01))
    assert storage.asked == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOENT, errno.EACCES, errno.EROFS])
def test_what_waiting_does_not_mend_is_raised_at_once(number: int) -> None:
    storage = Storage(number)
    with pytest.raises(OSError, match="as asked"):
        with_backoff("x", storage, waits=(60.0,))
    assert storage.asked == 1
