"""Transient storage errors are retried; other errors are raised immediately."""

import errno
import logging
import pathlib

import pytest

from histojax.core.retries import read_bytes, with_backoff


class Storage:
    """Fails with the given errors, one per call, and then answers."""

    def __init__(self, *errors: int):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise OSError(self.errors.pop(0), "planned")
        return "answer"


def test_each_retry_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    storage = Storage(errno.EIO, errno.ESTALE)
    with caplog.at_level(logging.WARNING, logger="histojax"):
        assert with_backoff("/mnt/file", storage, waits=(0.01, 0.02, 0.04)) == "answer"
    assert storage.calls == 3
    assert [record.getMessage() for record in caplog.records] == [
        "/mnt/file: planned; retrying in 0.01 s",
        "/mnt/file: planned; retrying in 0.02 s",
    ]


def test_the_error_of_the_last_retry_is_raised() -> None:
    storage = Storage(*[errno.ETIMEDOUT] * 9)
    with pytest.raises(TimeoutError):
        with_backoff("x", storage, waits=(0.01, 0.01))
    assert storage.calls == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOENT, errno.EACCES, errno.EROFS])
def test_other_errors_are_raised_immediately(number: int) -> None:
    storage = Storage(number)
    with pytest.raises(OSError, match="planned"):
        with_backoff("x", storage, waits=(60.0,))
    assert storage.calls == 1


def test_only_regular_files_are_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert read_bytes(tmp_path / "file") == b"x"
    for path in (tmp_path, pathlib.Path("/dev/null")):
        with pytest.raises(OSError, match="not a regular file"):
            read_bytes(path)
