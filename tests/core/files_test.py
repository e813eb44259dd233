"""Atomic writes: a file or folder appears complete or not at all."""

import pathlib

import pytest

from histojax.core.errors import RunError
from histojax.core.files import atomic_folder, atomic_write, write_json


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
        target.mkdir()  # empty: a rename alone would replace it
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


def test_nan_is_refused_in_json_and_keeps_the_file(tmp_path: pathlib.Path) -> None:
    write_json(tmp_path / "a.json", {"loss": 0.5})
    before = (tmp_path / "a.json").read_text()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert (tmp_path / "a.json").read_text() == before == '{\n  "loss": 0.5\n}\n'
