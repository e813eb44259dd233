"""Atomic writes: a file or folder appears complete or not at all."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest

from histojax.core import files
from histojax.core.errors import RunError
from histojax.core.files import atomic_folder, atomic_write, read_json, write_json
from tests.conftest import ROOT


def test_a_folder_appears_complete(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "new" / "output"
    with atomic_folder(target) as temporary:
        (temporary / "a.txt").write_text("a")
        (temporary / "b.txt").write_text("b")
        assert not target.exists()
        assert temporary.parent == target.parent  # the same file system, so that the rename is atomic
    assert sorted(path.name for path in target.iterdir()) == ["a.txt", "b.txt"]
    assert list(target.parent.iterdir()) == [target]


def test_a_failure_leaves_no_folder(tmp_path: pathlib.Path) -> None:
    def write_and_fail() -> None:
        with atomic_folder(tmp_path / "output") as temporary:
            (temporary / "a.txt").write_text("a")
            raise KeyError

    with pytest.raises(KeyError):
        write_and_fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_an_existing_path_is_refused_and_unchanged(tmp_path: pathlib.Path, kind: str) -> None:
    target = tmp_path / "output"
    if kind == "folder":
        target.mkdir()  # empty: a plain rename would replace it
    elif kind == "file":
        target.write_text("earlier")
    else:
        target.symlink_to(tmp_path / "absent")
    before = target.lstat()
    with pytest.raises(RunError, match="output: already exists; choose another --output"), atomic_folder(target):
        pytest.fail("the block must not run")
    assert target.lstat() == before
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "results.json"
    target.write_text("earlier")

    def write_half_and_fail() -> None:
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half_and_fail()
    assert target.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [target]
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "earlier"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_process_has_left_is_deleted_by_the_next_one(tmp_path: pathlib.Path) -> None:
    program = """
import os, signal, sys
from histojax.core.files import atomic_folder, atomic_write
with atomic_write(sys.argv[1] + "/a.csv") as file, atomic_folder(sys.argv[1] + "/b"):
    file.touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT)
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / f".c.0-{os.getpid()}.tmp").touch()  # of another machine
    with atomic_write(tmp_path / "d.csv") as temporary:
        temporary.touch()
    assert {path.name for path in tmp_path.iterdir()} == {"d.csv", f".c.0-{os.getpid()}.tmp"}


def test_nan_is_refused_in_json_and_keeps_the_file(tmp_path: pathlib.Path) -> None:
    write_json(tmp_path / "a.json", {"loss": 0.5})
    before = (tmp_path / "a.json").read_text()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert (tmp_path / "a.json").read_text() == before == '{\n  "loss": 0.5\n}\n'


# ---- After a power cut ----------------------------------------------------------------------------------------------


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of flushed files and folders, and of the targets of renames, in order."""
    events: list[str] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def record_flush(handle: int) -> None:
        events.append(f"flush {pathlib.Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        fsync(handle)

    def record_rename(source: pathlib.Path, target: pathlib.Path) -> None:
        events.append(f"rename {target.name}")
        (rename if source.is_dir() else replace)(source, target)

    monkeypatch.setattr(os, "fsync", record_flush)
    monkeypatch.setattr(os, "replace", record_rename)
    monkeypatch.setattr(os, "rename", record_rename)
    return events


def test_content_is_on_the_disk_before_its_name(tmp_path: pathlib.Path, on_disk: list[str]) -> None:
    write_json(tmp_path / "a.json", {})
    name = files._temporary(tmp_path / "a.json").name
    assert on_disk == [f"flush {name}", "rename a.json", f"flush {tmp_path.name}"]
    on_disk.clear()
    with atomic_folder(tmp_path / "output") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "b").write_text("b")
    flushed = on_disk[: on_disk.index("rename output")]
    assert sorted(flushed) == [f"flush {temporary.name}", "flush b", "flush deep"]
    assert on_disk[-1] == f"flush {tmp_path.name}"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS])
def test_storage_that_cannot_flush_is_written_nevertheless(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("content", [None, b"", b'{"a": ', b"\0" * 20, b"\xff\xfe", b"[1]", b"1"])
def test_a_missing_or_damaged_json_file_reads_as_none(tmp_path: pathlib.Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") is None


# ---- Errors name the file -------------------------------------------------------------------------------------------


def test_an_error_of_a_full_disk_names_the_file(tmp_path: pathlib.Path) -> None:
    def write() -> None:
        with atomic_write(tmp_path / "results.csv"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left") as caught:
        write()
    assert caught.value.filename == str(tmp_path / "results.csv")


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_json(tmp_path / "absent" / "a.json", {})
    assert caught.value.filename == str(tmp_path / "absent" / "a.json")


def test_an_error_about_another_file_keeps_its_name(tmp_path: pathlib.Path) -> None:
    def write() -> None:
        with atomic_write(tmp_path / "a"):
            (tmp_path / "other").read_text()

    with pytest.raises(FileNotFoundError) as caught:
        write()
    assert pathlib.Path(caught.value.filename) == tmp_path / "other"
