"""The lock of a folder and its owner: one process at a time, released on exit and by a dead owner, on any storage."""

import errno
import json
import logging
import os
import pathlib
import threading
import time

import pytest

from histojax.core import locks
from histojax.core.errors import RunError
from histojax.core.locks import OWNER_FILE, OwnerFile, exclusive_lock, owned


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage on which `flock` is not implemented, such as some network mounts."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners give a sign of life every 0.1 s, and count as dead after half a second."""
    for name, seconds in (("_POLL", 0.01), ("_BEAT", 0.1), ("_LOST", 0.5), ("_SETTLE", 0.05)):
        monkeypatch.setattr(locks, name, seconds)


def write_owner(folder: pathlib.Path, **facts: object) -> None:
    """Write the file that another process would have written, by default one that runs now on this machine."""
    ours = OwnerFile(folder / OWNER_FILE)
    (folder / OWNER_FILE).write_text(json.dumps(json.loads(ours._content()) | facts))


# ---- Preparing data: others wait ------------------------------------------------------------------------------------


def assert_the_second_waits(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    order: list[str] = []

    def second() -> None:
        with exclusive_lock(tmp_path / "data"):
            order.append("second")

    waiting = threading.Thread(target=second)
    with caplog.at_level(logging.INFO, logger="histojax"):
        with exclusive_lock(tmp_path / "data"):
            waiting.start()
            waiting.join(0.2)
            order.append("first")
        waiting.join(10)
    assert order == ["first", "second"]
    assert f"waiting for another process that is preparing data in {tmp_path / 'data'}" in caplog.text


def test_a_second_holder_waits_for_the_first(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    assert_the_second_waits(tmp_path, caplog)


@pytest.mark.usefixtures("no_flock", "quick")
def test_a_second_holder_waits_also_on_storage_without_flock(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert_the_second_waits(tmp_path, caplog)
    assert not (tmp_path / "data" / OWNER_FILE).exists()


def test_a_folder_that_cannot_be_written_is_not_locked(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with exclusive_lock(tmp_path / "file" / "data"):
        pass


# ---- Owning a folder: others are refused ----------------------------------------------------------------------------


def test_a_second_owner_is_refused_and_the_first_is_named(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    with owned(folder):
        with pytest.raises(RunError) as caught, owned(folder):
            pytest.fail("the folder has two owners")
        assert (folder / OWNER_FILE).exists(), "the refused process must leave the owner's file"
    message = str(caught.value)
    assert message.startswith(f"{folder} is in use by another process (pid {os.getpid()} on "), message
    assert message.endswith("choose another folder")
    assert not folder.exists()  # it was made for the lock alone
    with owned(folder):
        (folder / "kept").write_text("")
    assert [path.name for path in folder.iterdir()] == ["kept"]


@pytest.mark.parametrize("facts", [{"pid": 2**22 + 1}, {"start": "1"}], ids=["no such process", "number used again"])
def test_a_dead_owner_on_this_machine_is_replaced_at_once(tmp_path: pathlib.Path, facts: dict[str, object]) -> None:
    write_owner(tmp_path, **facts)
    started = time.monotonic()
    with owned(tmp_path):
        assert time.monotonic() - started < 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", [None, "", '{"pid": 1', "[]", "\0\0\0"])
def test_a_silent_owner_elsewhere_or_a_damaged_file_is_replaced_after_a_while(
    tmp_path: pathlib.Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    write_owner(tmp_path, machine="another", host="node7")
    if content is not None:
        (tmp_path / OWNER_FILE).write_text(content)
    started = time.monotonic()
    with caplog.at_level(logging.INFO, logger="histojax"), owned(tmp_path):
        assert 0.5 <= time.monotonic() - started < 3
    assert "waiting for a sign of life of its owner (" in caplog.text
    assert ("on node7" in caplog.text) == (content is None)


@pytest.mark.usefixtures("quick")
def test_a_living_owner_elsewhere_is_respected(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with owned(tmp_path):
        monkeypatch.setattr(locks, "process_space", lambda: "another")
        with pytest.raises(RunError, match="is in use"), owned(tmp_path):
            pytest.fail("the folder has two owners")


@pytest.mark.usefixtures("quick")
def test_an_owner_that_was_replaced_notices_and_leaves_the_file(tmp_path: pathlib.Path) -> None:
    with owned(tmp_path) as first:
        first.verify()
        write_owner(tmp_path)
        with pytest.raises(RunError, match="another process has taken over"):
            first.verify()
    assert (tmp_path / OWNER_FILE).exists()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("left", ["nothing", "dead owner"])
def test_of_many_that_start_at_once_one_owns_the_folder(tmp_path: pathlib.Path, left: str) -> None:
    if left == "dead owner":
        write_owner(tmp_path, pid=2**22 + 1)
    owners = [OwnerFile(tmp_path / OWNER_FILE) for _ in range(12)]
    refused: list[str] = []
    threads = [threading.Thread(target=lambda o=owner: refused.append(o.acquire())) for owner in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(map(bool, refused)) == [False, *[True] * 11]
    for owner in owners:
        owner.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_of_two_that_replace_a_dead_owner_at_the_same_moment_one_owns_the_folder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_owner(tmp_path, pid=2**22 + 1)
    both, replace = threading.Barrier(2), os.replace

    def replace_together(*paths: os.PathLike[str]) -> None:
        both.wait(10)
        replace(*paths)

    monkeypatch.setattr(locks.os, "replace", replace_together)
    refused: list[str] = []
    threads = [
        threading.Thread(target=lambda: refused.append(OwnerFile(tmp_path / OWNER_FILE).acquire())) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(map(bool, refused)) == [False, True]
