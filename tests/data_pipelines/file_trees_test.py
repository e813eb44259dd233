"""Trees of files as users have them: links, hidden files, names of any bytes, folders and files that cannot be read."""

import errno
import os
import pathlib
import time
from collections.abc import Callable

import numpy as np
import pytest

from data_pipelines import archive, prepare
from data_pipelines.audit import inputs
from data_pipelines.audit.audit import audit
from data_pipelines.breakhis import scan as breakhis_scan
from data_pipelines.errors import DataError
from data_pipelines.images import encode_png
from data_pipelines.liver_tiles import layouts, scan
from data_pipelines.liver_tiles.spec import TilesSpec
from histojax.cli.doctor import checks
from histojax.core.errors import RunError
from histojax.inference.predict import images
from tests.conftest import WriteImages

SPEC = TilesSpec(labels=("tumor", "stroma"))
NAMES = [f"{label}/{i}.png" for label in SPEC.labels for i in range(4)]


@pytest.fixture
def root(tmp_path: pathlib.Path, write_images: WriteImages) -> pathlib.Path:
    """A folder with a folder of tiles per label."""
    write_images(tmp_path / "tiles", NAMES)
    return tmp_path / "tiles"


def prepared(root: pathlib.Path, on_bad_image: str = "error") -> prepare.Prepared:
    directory = str(root.parent / "prepared")
    return prepare.prepare(
        "liver_tiles", str(root), magnification="", on_bad_image=on_bad_image, directory=directory, tiles=SPEC
    )


def test_each_tile_is_stored_once_whatever_links_lead_to_it(
    root: pathlib.Path, write_images: WriteImages, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "stroma" / "all").symlink_to("../..")
    (root / "tumor" / "self").symlink_to(".")
    write_images(root, ["tumor/._0.png", "tumor/.ipynb_checkpoints/0-checkpoint.png"])
    write_images(root, ["tumor/0.bmp", "tumor/1.bmp"])
    (root / "stroma" / "0.webp").write_bytes(b"")
    found = prepared(root)
    assert sorted(found.records.column("image_id")) == [name.removesuffix(".png") for name in sorted(NAMES)]
    assert f"2 .bmp ({root}/tumor/0.bmp), 1 .webp ({root}/stroma/0.webp)" in caplog.text
    assert f"1 × link to a folder that is read already: {root}/tumor/self" in caplog.text


def test_a_link_to_a_tile_is_a_copy_that_the_split_sees(root: pathlib.Path) -> None:
    (root / "stroma" / "9.png").symlink_to("../tumor/0.png")
    records = list(prepared(root).records)
    twins = [r for r in records if r.image_id in ("tumor/0", "stroma/9")]
    assert {r.label for r in twins} == {"tumor", "stroma"}
    assert len({r.pixel_hash for r in twins}) == 1


def test_a_broken_link_is_a_bad_image_also_in_prepared_data(root: pathlib.Path) -> None:
    prepared(root)
    (root / "tumor" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"1 bad image:\n  tumor/gone\.png: broken link\n"):
        prepared(root)
    found = prepared(root, "skip")
    assert found.summary["bad_images"] == {"tumor/gone.png": "broken link"}
    assert len(found.records) == 8


def test_a_broken_link_among_prepared_breakhis_images_is_a_bad_image(
    tmp_path: pathlib.Path, write_images: WriteImages
) -> None:
    names = [f"SOB_{patient}-40-00{i}.png" for patient in ("B_A-14-22549AB", "M_PC-15-190EF") for i in range(1, 3)]
    write_images(tmp_path / "root", names)

    def prepared() -> prepare.Prepared:
        directory = str(tmp_path / "base")
        return prepare.prepare("breakhis", str(tmp_path / "root"), magnification="40X", directory=directory)

    assert len(prepared().records) == 4
    (tmp_path / "root" / "SOB_M_PC-15-190EF-40-009.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"1 bad image:\n  SOB_M_PC-15-190EF-40-009\.png: broken link"):
        prepared()


def test_names_of_any_bytes_are_stored(root: pathlib.Path) -> None:
    odd = b'x\xff\n\xe2\x80\xa8"a,;b\r.png'
    with open(os.fsencode(root) + b"/tumor/" + odd, "wb") as file:
        file.write(encode_png(np.full((23, 35, 3), 7, np.uint8)))
    found = prepared(root)
    names = list(found.records.column("image_id"))
    assert 'tumor/x\\xff\n\u2028"a,;b\r' in names
    assert len(names) == 9
    assert prepared(root).records.column("image_id").tolist() == names
    (found.directory / "records.csv").unlink()
    assert prepared(root).records.column("image_id").tolist() == names
    assert len(inputs.find(root)) == 9


def test_an_audit_finds_a_leak_through_a_link_and_says_what_it_does_not_read(
    tmp_path: pathlib.Path, write_images: WriteImages
) -> None:
    write_images(tmp_path, ["train/1.png", "test/2.png", "test/3.bmp"])
    (tmp_path / "test" / "4.png").symlink_to("../train/1.png")
    found = audit(tmp_path)
    assert found.facts["images"] == 3
    assert found.leaks == [
        "as given: the same picture on several sides: 1 sets of identical and 0 pairs of nearly identical images "
        "(2 images)"
    ]
    assert any(f"1 .bmp ({tmp_path}/test/3.bmp)" in warning for warning in found.facts["warnings"])


@pytest.mark.parametrize("pipeline", ["liver_tiles", "breakhis"])
def test_a_root_whose_name_is_not_utf8_is_prepared(
    tmp_path: pathlib.Path, write_images: WriteImages, pipeline: str
) -> None:
    root = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/t\xffles"))
    breakhis = [f"SOB_{patient}-40-00{i}.png" for patient in ("B_A-14-22549AB", "M_PC-15-190EF") for i in range(1, 3)]
    for path in write_images(tmp_path / "named", NAMES if pipeline == "liver_tiles" else breakhis):
        target = root / path.relative_to(tmp_path / "named")
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    found = prepare.prepare(
        pipeline, str(root), magnification="40X" if pipeline == "breakhis" else "", directory=str(tmp_path / "base"),
        tiles=SPEC if pipeline == "liver_tiles" else None,
    )  # fmt: skip
    assert len(found.records) == len(NAMES if pipeline == "liver_tiles" else breakhis)
    assert "t\\xffles" in found.description
    found.description.encode()
    (next(root.rglob("*.png"))).write_bytes(b"")
    with pytest.raises(DataError, match=r"t\\xffles: 1 bad image:\n  .*: empty file") as caught:
        prepare.prepare(
            pipeline, str(root), magnification="40X" if pipeline == "breakhis" else "",
            directory=str(tmp_path / "base"), tiles=SPEC if pipeline == "liver_tiles" else None,
        )  # fmt: skip
    str(caught.value).encode()


def walkers(root: pathlib.Path) -> dict[str, Callable[[], object]]:
    """Every way from a user's folder to its files."""
    return {
        "breakhis": lambda: breakhis_scan.require_pngs(root),
        "tiles": lambda: layouts.find(root, SPEC),
        "prepare": lambda: prepared(root),
        "audit": lambda: inputs.find(root),
        "archive": lambda: archive.unpack(root, root.parent / "into"),
        "predict": lambda: images.find([str(root)]),
        "predict, glob": lambda: images.find([f"{root}/**"]),
    }


@pytest.mark.parametrize("name", walkers(pathlib.Path()))
def test_no_walk_passes_over_a_folder_that_it_cannot_read(
    root: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    scandir = os.scandir

    def locked(path: object) -> object:
        if str(path).endswith("/stroma"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(RunError, match=r"tiles/stroma: cannot be read \(Permission denied\)"):
        walkers(root)[name]()
    finding = checks.data_root(str(root))
    assert (finding.level, "stroma: cannot be read" in finding.text) == ("fail", True)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_an_image_is_not_left_out_because_the_storage_failed(
    root: pathlib.Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    read, failures = pathlib.Path.read_bytes, [1]

    def flaky(path: pathlib.Path) -> bytes:
        if path.name == "2.png" and failures[0]:
            failures[0] -= 1
            raise OSError(code, os.strerror(code), str(path))
        return read(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", flaky)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert len(scan.scan(root, SPEC, "skip").tiles) == 8
    failures[0] = 10_000
    with pytest.raises(OSError, match=os.strerror(code)):
        scan.scan(root, SPEC, "skip")
    code = errno.EACCES
    found = scan.scan(root, SPEC, "skip")
    assert sorted(found.summary["bad_images"]) == ["stroma/2.png", "tumor/2.png"]


def test_a_work_directory_in_the_data_root_is_no_input(root: pathlib.Path, write_images: WriteImages) -> None:
    first = prepared(root)
    write_images(root / "runs" / "a" / "tumor", ["example.png"])
    for name in ("config.json", "run.json"):
        (root / "runs" / "a" / name).write_text("{}")
    again = prepared(root)
    assert again.directory == first.directory
    assert len(again.records) == 8
