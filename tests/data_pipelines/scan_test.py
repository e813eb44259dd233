"""Scanning a BreakHis root: images found, bad images and their reasons, comparison with the published counts."""

import pathlib
import shutil
import tarfile
from collections import Counter

import cv2
import numpy as np
import pytest

from data_pipelines import archive, listing
from data_pipelines.breakhis import scan as breakhis_scan
from data_pipelines.breakhis.filenames import MAGNIFICATIONS, PUBLISHED_COUNTS
from data_pipelines.breakhis.scan import compare_with_published, describe_missing, scan
from data_pipelines.errors import DataError
from tests.conftest import WriteImages

TREE = "BreaKHis_v1/histology_slides/breast"
NAMES = [
    f"{TREE}/benign/SOB/adenosis/SOB_B_A_14-22549AB/40X/SOB_B_A-14-22549AB-40-001.png",
    f"{TREE}/benign/SOB/adenosis/SOB_B_A_14-22549AB/100X/SOB_B_A-14-22549AB-100-001.png",
    f"{TREE}/benign/SOB/adenosis/SOB_B_A_14-22549AB/100X/SOB_B_A-14-22549AB-100-003.png",
    f"{TREE}/malignant/SOB/papillary_carcinoma/SOB_M_PC_15-190EF/100X/SOB_M_PC-15-190EF-100-011.png",
    f"{TREE}/malignant/SOB/papillary_carcinoma/SOB_M_PC_15-190EF/400X/SOB_M_PC-15-190EF-400-002.png",
]
AT_100X = ["SOB_B_A-14-22549AB-100-001", "SOB_B_A-14-22549AB-100-003", "SOB_M_PC-15-190EF-100-011"]


@pytest.fixture
def tree(tmp_path: pathlib.Path, write_images: WriteImages) -> pathlib.Path:
    write_images(tmp_path / "root", NAMES)
    return tmp_path / "root"


def _ids(found: breakhis_scan.Scan) -> list[str]:
    return [image.name.image_id for image in found.images]


def test_images_of_the_archives_folder_tree_are_found(tree: pathlib.Path) -> None:
    found = scan(tree, "100X")
    assert _ids(found) == AT_100X
    assert all(image.path.stem == image.name.image_id for image in found.images)
    assert len({image.pixel_hash for image in found.images}) == 3
    assert found.summary["root"] == str(tree)
    assert found.summary["bad_images"] == found.summary["notes"] == {}


def test_all_magnifications_are_found(tree: pathlib.Path) -> None:
    assert _ids(scan(tree, "all")) == sorted(pathlib.Path(name).stem for name in NAMES)


def test_a_flat_mirror_gives_the_same_images(tree: pathlib.Path, tmp_path: pathlib.Path) -> None:
    mirror = tmp_path / "mirror"
    for path in sorted(tree.rglob("*.png")):
        cls = "benign" if "_B_" in path.name else "malignant"
        (mirror / cls).mkdir(parents=True, exist_ok=True)
        # Some mirrors also put the class into the name.
        shutil.copyfile(
            path, mirror / cls / f"{cls}___{path.name}" if "A-14" in path.name else mirror / cls / path.name
        )
    ours, theirs = scan(mirror, "100X"), scan(tree, "100X")
    assert [(i.name, i.pixel_hash) for i in ours.images] == [(i.name, i.pixel_hash) for i in theirs.images]
    assert ours.summary["patients"] == theirs.summary["patients"]


@pytest.mark.parametrize("magnification", ["40X", "400X", "all"])
def test_patients_are_listed_with_all_their_magnifications(tree: pathlib.Path, magnification: str) -> None:
    assert scan(tree, magnification).summary["patients"] == [
        {
            "patient_id": "SOB_B_A_14-22549AB",
            "case_id": "14-22549",
            "label": "benign",
            "subtype": "A",
            "images": {"40X": 1, "100X": 2},
        },
        {
            "patient_id": "SOB_M_PC_15-190EF",
            "case_id": "15-190",
            "label": "malignant",
            "subtype": "PC",
            "images": {"100X": 1, "400X": 1},
        },
    ]


def test_a_missing_root_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder; set data\.root to"):
        scan(tmp_path / "nowhere", "100X")


def test_an_empty_root_is_refused_with_the_download_address(tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"no PNG images below this folder.*BreaKHis_v1\.tar\.gz.*http://www\.inf"):
        scan(tmp_path, "100X")


def test_a_magnification_without_images_is_refused_with_the_counts_found(tree: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"no image of magnification 200X \(found 40X: 1, 100X: 3, 400X: 1\)"):
        scan(tree, "200X")


def test_hidden_files_and_folders_are_ignored(tree: pathlib.Path) -> None:
    folder = tree / pathlib.Path(NAMES[1]).parent
    (folder / "._SOB_B_A-14-22549AB-100-001.png").write_bytes(b"metadata that macOS adds")
    (tree / ".thumbnails").mkdir()
    (tree / ".thumbnails" / "SOB_B_A-14-22549AB-100-009.png").write_bytes(b"not an image")
    (tree / "LICENSE.txt").write_text("CC BY 4.0")
    assert _ids(scan(tree, "100X")) == AT_100X


def _spoil(tree: pathlib.Path) -> dict[str, str]:
    """Make one bad image of each kind; return the reason for each file."""
    folder = pathlib.Path(NAMES[1]).parent
    cut = tree / NAMES[2]
    cut.write_bytes(cut.read_bytes()[:-20])
    (tree / folder / "SOB_B_A-14-22549AB-100-004.png").write_bytes(b"")
    (tree / folder / "SOB_M_A-14-22549AB-100-005.png").write_bytes(b"")
    (tree / folder / "SOB_B_A-14-22549AB-50-001.png").write_bytes(b"")
    (tree / "figure1.png").write_bytes(b"")
    (tree / "SOB_M_PC-15-190EF-100-013.png").mkdir()  # a folder, not a bad image
    return {
        NAMES[2]: f"truncated PNG: the end is missing after {cut.stat().st_size} bytes",
        f"{folder}/SOB_B_A-14-22549AB-100-004.png": "empty file",
        f"{folder}/SOB_M_A-14-22549AB-100-005.png": "class M contradicts subtype A (adenosis)",
        f"{folder}/SOB_B_A-14-22549AB-50-001.png": "unknown magnification '50' (known: 40, 100, 200, 400)",
        "figure1.png": "not named like SOB_<B|M>_<A|F|PT|TA|DC|LC|MC|PC>-<YY>-<slide>-<40|100|200|400>-<NNN>.png",
    }


def test_bad_images_are_listed_with_their_reasons(tree: pathlib.Path) -> None:
    reasons = _spoil(tree)
    with pytest.raises(DataError) as caught:
        scan(tree, "100X")
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tree}: 5 bad images:"
    assert sorted(lines[1:-1]) == sorted(f"  {path}: {reason}" for path, reason in reasons.items())
    assert "--config.data.on_bad_image=skip" in lines[-1]


def test_bad_images_are_skipped_and_recorded(tree: pathlib.Path) -> None:
    reasons = _spoil(tree)
    found = scan(tree, "100X", "skip")
    assert _ids(found) == [AT_100X[0], AT_100X[2]]
    assert found.summary["bad_images"] == reasons
    assert list(found.summary["bad_images"]) == sorted(reasons)


def test_the_error_counts_one_image_in_the_singular(tree: pathlib.Path) -> None:
    (tree / NAMES[1]).write_bytes(b"")
    with pytest.raises(DataError, match=": 1 bad image:\n"):
        scan(tree, "100X")


def test_pixels_of_other_magnifications_are_not_read(tree: pathlib.Path) -> None:
    (tree / NAMES[0]).write_bytes(b"")
    assert _ids(scan(tree, "100X")) == AT_100X
    with pytest.raises(DataError, match="1 bad image"):
        scan(tree, "all")


def test_only_bad_images_are_an_error_even_when_skipping(tree: pathlib.Path) -> None:
    for name in NAMES:
        (tree / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"no usable image of magnification 100X; .*: 3 bad images:"):
        scan(tree, "100X", "skip")


def test_only_misnamed_images_are_an_error(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    for policy in ("error", "skip"):
        with pytest.raises(DataError, match=r": 2 bad images:\n  a\.png: not named like"):
            scan(tmp_path, "100X", policy)


def test_a_long_list_of_bad_images_is_shortened_but_counted(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    for i in range(60):
        (tmp_path / f"SOB_B_A-14-22549AB-100-{i:03d}.png").write_bytes(b"")
    write_images(tmp_path, ["SOB_B_A-14-22549AB-100-900.png"])
    with pytest.raises(DataError, match=": 60 bad images:") as caught:
        scan(tmp_path, "100X")
    lines = str(caught.value).splitlines()
    assert lines[1:51] == [f"  SOB_B_A-14-22549AB-100-{i:03d}.png: empty file" for i in range(50)]
    assert lines[51] == "  … and 10 more"
    assert len(lines) == 53
    assert len(scan(tmp_path, "100X", "skip").summary["bad_images"]) == 60  # all are recorded


def test_a_copied_image_is_used_once(tree: pathlib.Path) -> None:
    (tree / "copies").mkdir()
    shutil.copyfile(tree / NAMES[1], tree / "copies" / "benign_SOB_B_A-14-22549AB-100-001.png")
    # A recompressed file with the same pixels is the same image.
    pixels = cv2.imread(str(tree / NAMES[2]))
    again = tree / "copies" / pathlib.Path(NAMES[2]).name
    cv2.imwrite(str(again), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert again.read_bytes() != (tree / NAMES[2]).read_bytes()
    found = scan(tree, "100X")
    assert _ids(found) == AT_100X
    assert found.summary["notes"] == {"the same image under the same name in two folders, used once": 2}
    assert found.summary["patients"][0]["images"] == {"40X": 1, "100X": 2}
    assert found.summary["published"]["A"]["found"] == 2


def test_other_pixels_under_a_known_name_are_a_bad_image(tree: pathlib.Path, write_images: WriteImages) -> None:
    twin = f"zz/{pathlib.Path(NAMES[1]).name}"
    write_images(tree, [twin], seed=1)
    with pytest.raises(DataError, match=f"  {twin}: same name as {NAMES[1]}, but different pixels"):
        scan(tree, "100X")
    assert _ids(scan(tree, "100X", "skip")) == AT_100X


def test_dropped_alpha_channels_are_noted(tree: pathlib.Path) -> None:
    pixels = cv2.imread(str(tree / NAMES[1]))
    cv2.imwrite(str(tree / NAMES[1]), cv2.cvtColor(pixels, cv2.COLOR_BGR2BGRA))
    assert scan(tree, "100X").summary["notes"] == {"opaque alpha channel dropped": 1}


def test_counts_are_compared_with_the_published_ones(tree: pathlib.Path) -> None:
    published = scan(tree, "100X").summary["published"]
    assert published["A"] == {"found": 2, "published": 113}
    assert published["PC"] == {"found": 1, "published": 142}
    assert published["DC"] == {"found": 0, "published": 903}
    assert scan(tree, "all").summary["published"]["A"] == {"found": 3, "published": 444}


@pytest.mark.parametrize(("magnifications", "total"), [(("40X",), 1995), (("400X",), 1820), (MAGNIFICATIONS, 7909)])
def test_missing_images_are_described_by_subtype(magnifications: tuple[str, ...], total: int) -> None:
    positions = [MAGNIFICATIONS.index(m) for m in magnifications]
    found = Counter({subtype: sum(counts[p] for p in positions) for subtype, counts in PUBLISHED_COUNTS.items()})
    assert (
        describe_missing(compare_with_published(found, magnifications)) == f"all {total} published images are present"
    )
    found["PT"] -= 1
    found["DC"] += 1  # an image too many is reported as well
    line = describe_missing(compare_with_published(found, magnifications))
    pt, dc = (sum(PUBLISHED_COUNTS[s][p] for p in positions) for s in ("PT", "DC"))
    assert line == (
        f"{total} of {total} published images; found/published by subtype: PT {pt - 1}/{pt}, DC {dc + 1}/{dc}"
    )


def test_unpack_returns_a_folder_with_images_unchanged(tree: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tree / "BreaKHis_v1.tar.gz").write_bytes(b"never read")
    assert archive.unpack(tree, tmp_path / "into") == tree
    assert not (tmp_path / "into").exists()


def _pack(tree: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tree / "BreaKHis_v1", "BreaKHis_v1")
    return path


def test_unpack_accepts_an_archive_or_its_folder(tree: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = _pack(tree, tmp_path / "download" / "BreaKHis_v1.tar.gz")
    (path.parent / "readme.txt").write_text("…")
    folder = archive.unpack(path, tmp_path / "into")
    assert folder.parent == tmp_path / "into"
    assert _ids(scan(folder, "100X")) == AT_100X
    assert archive.unpack(path.parent, tmp_path / "into") == folder


def test_another_archive_is_extracted_into_another_folder(tree: pathlib.Path, tmp_path: pathlib.Path) -> None:
    path = _pack(tree, tmp_path / "download" / "BreaKHis_v1.tar.gz")
    first = archive.unpack(path, tmp_path / "into")
    (tree / NAMES[1]).unlink()
    second = archive.unpack(_pack(tree, path), tmp_path / "into")
    assert second != first
    assert _ids(scan(second, "100X")) == AT_100X[1:]


def test_several_archives_need_a_choice(tree: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for name in ("b.tar.gz", "a.tgz"):
        _pack(tree, tmp_path / "download" / name)
    with pytest.raises(DataError, match=r"several archives \(a\.tgz, b\.tar\.gz\); set data\.root to one of them"):
        archive.unpack(tmp_path / "download", tmp_path / "into")


def test_a_file_that_is_no_archive_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "BreaKHis_v1.rar"
    path.write_bytes(b"PK")
    with pytest.raises(
        DataError, match=r"BreaKHis_v1\.rar: neither a folder nor a \.tar\.gz or \.tgz or \.tar or \.zip archive"
    ):
        archive.unpack(path, tmp_path / "into")


def test_the_fingerprint_changes_with_names_contents_and_facts(tree: pathlib.Path) -> None:
    def now() -> str:
        return listing.fingerprint(breakhis_scan.require_pngs(tree).with_links(), "fact")

    first = now()
    assert now() == first
    assert listing.fingerprint(breakhis_scan.require_pngs(tree).with_links(), "other fact") != first
    (tree / NAMES[0]).rename(tree / "moved.png")
    moved = now()
    assert moved != first
    (tree / "moved.png").write_bytes(np.random.default_rng(0).bytes(10))
    assert now() not in (first, moved)


def test_real_images_are_found(breakhis_part: pathlib.Path) -> None:
    found = scan(breakhis_part, "100X")
    assert len(found.images) == 140
    assert found.summary["bad_images"] == {}
    assert describe_missing(found.summary["published"]).startswith("140 of 2081 published images; ")
    assert sum(sum(row["images"].values()) for row in found.summary["patients"]) == 229
