"""Unchanged files are prepared once, whatever their times are; copies are listed and deleted."""

import os
import pathlib
import shutil
import tarfile

import pytest

from data_pipelines import archive
from data_pipelines.liver_tiles.spec import TilesSpec
from data_pipelines.prepare import Prepared, prepare
from data_pipelines.prepared_copies import list_copies
from tests.conftest import WriteImages
from tests.helpers.command import histojax

SPEC = TilesSpec(labels=("tumor", "stroma"))
NAMES = ["tumor/1.png", "tumor/2.png", "stroma/3.png", "stroma/4.png"]


@pytest.fixture
def root(tmp_path: pathlib.Path, write_images: WriteImages) -> pathlib.Path:
    write_images(tmp_path / "root", NAMES)
    return tmp_path / "root"


@pytest.fixture
def base(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "base"


def tiles(root: pathlib.Path, base: pathlib.Path) -> Prepared:
    return prepare("liver_tiles", str(root), magnification="", directory=str(base), tiles=SPEC)


def touch(root: pathlib.Path, seconds: int) -> None:
    for path in root.rglob("*.png"):
        os.utime(path, (seconds, seconds))


def test_touched_files_keep_their_prepared_copy(
    root: pathlib.Path, base: pathlib.Path, write_images: WriteImages
) -> None:
    first = tiles(root, base)
    for seconds in (1, 2, 1):
        touch(root, seconds)
        assert tiles(root, base).directory == first.directory
    write_images(root, NAMES[:1], seed=1)  # another content
    second = tiles(root, base)
    assert second.directory != first.directory
    write_images(root, NAMES, seed=0)  # the first content again, at other times
    assert tiles(root, base).directory == first.directory
    (root / NAMES[0]).rename(root / "tumor" / "renamed.png")
    assert tiles(root, base).directory not in (first.directory, second.directory)


def test_the_copy_of_touched_files_is_made_again_after_its_deletion(root: pathlib.Path, base: pathlib.Path) -> None:
    first = tiles(root, base)
    touch(root, 1)
    tiles(root, base)
    shutil.rmtree(base / "prepared" / first.directory.relative_to(base / "prepared").parts[0])
    assert len(tiles(root, base).records) == 4
    (base / "prepared" / ".keys.json").write_text("{")  # a power cut
    touch(root, 2)
    assert len(tiles(root, base).records) == 4


def test_a_touched_archive_is_extracted_once(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    packed = tmp_path / "tiles.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(root, "tiles")
    first = archive.unpack(packed, tmp_path / "into")
    os.utime(packed, (1, 1))
    assert archive.unpack(packed, tmp_path / "into") == first
    os.truncate(packed, packed.stat().st_size + 1)
    assert archive.unpack(packed, tmp_path / "into") != first


def test_copies_are_listed_and_cleared(root: pathlib.Path, base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    flags = ["cache", f"--prepared_dir={base}"]
    assert histojax(*flags).stdout == f"{base}: no prepared copies\n"
    kept = tiles(root, base)
    shutil.copytree(root, tmp_path / "other")
    gone = tiles(tmp_path / "other", base)
    shutil.rmtree(tmp_path / "other")
    listed = histojax(*flags).stdout
    assert f"{base}: 2 copies, " in listed
    assert f"{tmp_path}/other (gone)" in listed
    assert [(copy.kind, copy.num_images) for copy in list_copies(base)] == [("prepared", 4)] * 2
    done = histojax(*flags, "--clear", "orphans")
    assert done.stdout.startswith(f"deleted {gone.directory}\ndeleted and freed: 1 copy, ")
    (copy,) = list_copies(base)
    assert copy.path == kept.directory
    wrong = histojax(*flags, "--clear", copy.name[:-1])
    assert (wrong.returncode, f"did you mean '{copy.name}'?" in wrong.stderr) == (1, True)
    assert histojax(*flags, "--clear", copy.name).returncode == 0
    assert list_copies(base) == []
    assert sorted(path.name for path in base.rglob("*")) == [".keys.json", ".lock", ".lock", "prepared"]
    tiles(root, base)
    assert histojax(*flags, "--clear", "all").returncode == 0
    assert list_copies(base) == []
