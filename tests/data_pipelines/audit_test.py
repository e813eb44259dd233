"""An audit of real images finds the slide filed twice, siblings, turned copies and overlap; clean data has none."""

import csv
import pathlib
import shutil
from collections.abc import Callable, Iterable

import cv2
import pytest

from data_pipelines.audit.audit import AGAINST, Audit, audit
from data_pipelines.breakhis import filenames
from data_pipelines.breakhis.scan import scan
from data_pipelines.errors import DataError
from data_pipelines.records import Record, Records
from data_pipelines.split_spec import SplitSpec
from data_pipelines.splits import make_split

TWICE = "SOB_M_DC-14-13412-100-*.png"


@pytest.fixture(scope="module")
def real(breakhis_part: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder of real images: slide 13412 under DC, three slides of one case, one slide at two magnifications."""
    root = tmp_path_factory.mktemp("real")
    for pattern in (TWICE, "SOB_B_A-14-22549AB-*", "SOB_B_A-14-22549CD-*", "SOB_B_A-14-22549G-*", "SOB_M_PC-14-9146-*"):
        for path in sorted(breakhis_part.rglob(pattern))[::2]:
            shutil.copy(path, root / path.name)
    return root


@pytest.fixture
def root(real: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    shutil.copytree(real, tmp_path / "root")
    return tmp_path / "root"


def _write(path: pathlib.Path, columns: str, rows: Iterable[Iterable[str]]) -> pathlib.Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns.split(","), *rows])
    return path


def _split(root: pathlib.Path, side: Callable[[str], str]) -> pathlib.Path:
    """Write a table that assigns each image of the root to the side of its name."""
    return _write(
        root.parent / "s.csv", "image_id,split", [(p.stem, side(p.stem)) for p in sorted(root.rglob("*.png"))]
    )


def _file_twice(root: pathlib.Path) -> list[tuple[str, str]]:
    """File slide 13412's images under LC as well; return the pairs of names."""
    pairs = []
    for path in sorted(root.glob(TWICE)):
        copy = path.with_name(path.name.replace("_DC-", "_LC-"))
        shutil.copy(path, copy)
        pairs.append((path.name, copy.name))
    return pairs


def _pairs(found: Audit, kind: str) -> list[tuple[str, ...]]:
    return sorted(tuple(entry["images"]) for entry in found.facts["duplicates"] if entry["kind"] == kind)


def _by_patient(name: str) -> str:
    return "test" if "-9146-" in name or "13412" in name else "train"


def test_clean_images_have_no_duplicates_and_no_leaks(real: pathlib.Path, tmp_path: pathlib.Path) -> None:
    table = _write(
        tmp_path / "s.csv", "image_id,split", [(p.stem, _by_patient(p.stem)) for p in sorted(real.glob("*.png"))]
    )
    found = audit(real, split=table)
    assert found.leaks == []
    assert found.facts["duplicates"] == []
    assert found.facts["splits"]["s.csv"]["patients"] == found.facts["splits"]["s.csv"]["siblings"] == {}
    assert found.facts["images"] == found.facts["pictures"] == 30
    assert (found.facts["patients"], found.facts["cases"]) == (5, 3)
    assert not any("picture" in text or "side" in text for text in found.facts["warnings"])
    assert found.facts["counts"]["malignant/PC"]["images"] == 8
    # A scan of the same files gives the same numbers.
    magnifications = found.facts["published"]["magnifications"]
    assert magnifications == ["40X", "100X", "400X"]
    published = scan(real, "all").summary["published"]
    assert {s: r["found"] for s, r in published.items()} == {
        s: r["found"] for s, r in found.facts["published"]["subtypes"].items()
    }
    assert found.facts["published"]["subtypes"]["LC"] == {"found": 0, "published": 156 + 170 + 137}


def test_slide_filed_twice_is_found(root: pathlib.Path) -> None:
    pairs = _file_twice(root)
    found = audit(root)
    assert found.leaks == []  # without a split nothing leaks, but every pair is reported with its labels
    assert _pairs(found, "exact") == pairs
    assert len(pairs) == 5
    assert all(entry["label_conflict"] for entry in found.facts["duplicates"])
    assert "pictures with several labels: 5, such as malignant/DC and malignant/LC (5)" in found.facts["warnings"]

    on_two_sides = audit(root, split=_split(root, lambda name: "test" if "_LC-" in name else "train"))
    assert on_two_sides.facts["splits"]["s.csv"]["exact"] == 5
    assert on_two_sides.facts["duplicates"][0]["crosses"] == {"s.csv": ["train", "test"]}
    assert len(on_two_sides.leaks) == 2  # the images, and the slide that has two names
    assert "5 sets of identical and 0 pairs of nearly identical images (10 images)" in on_two_sides.leaks[0]
    assert "SOB_M_LC_14-13412" in on_two_sides.leaks[1]

    on_one_side = audit(root, split=_split(root, _by_patient))
    assert on_one_side.leaks == []


def test_known_slide_leaks_even_if_no_image_does(root: pathlib.Path) -> None:
    for path in [root / one for one, _ in _file_twice(root)[:3]] + [root / two for _, two in _file_twice(root)[3:]]:
        path.unlink()
    found = audit(root, split=_split(root, lambda name: "test" if "_LC-" in name else "train"))
    assert found.facts["duplicates"] == []
    assert found.leaks == ["s.csv: patients on several sides: 1 (SOB_M_LC_14-13412)"]


def test_siblings_are_a_warning_and_with_strict_cases_a_leak(root: pathlib.Path) -> None:
    table = _split(root, lambda name: "test" if "22549CD" in name else "train")
    found = audit(root, split=table)
    assert found.leaks == []
    assert found.facts["splits"]["s.csv"]["siblings"] == {
        "14-22549": {
            "SOB_B_A_14-22549AB": ["train"], "SOB_B_A_14-22549CD": ["test"], "SOB_B_A_14-22549G": ["train"],
        }
    }  # fmt: skip
    assert any("sibling" in text and "14-22549" in text for text in found.facts["warnings"])
    strict = audit(root, split=table, strict_cases=True)
    assert len(strict.leaks) == 1
    assert "sibling" in strict.leaks[0]


def test_patient_on_two_sides_is_a_leak(root: pathlib.Path) -> None:
    found = audit(root, split=_split(root, lambda name: "test" if "-9146-100-" in name else "train"))
    assert found.leaks == ["s.csv: patients on several sides: 1 (SOB_M_PC_14-9146)"]
    assert sum(found.facts["splits"]["s.csv"]["patients"]["SOB_M_PC_14-9146"].values()) == 8
    assert found.facts["splits"]["s.csv"]["siblings"] == {}


def test_each_official_fold_is_audited(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    _file_twice(root)
    for fold, lc in ((1, "test"), (2, "train")):
        lines = []
        for path in sorted(root.glob("*.png")):
            name = filenames.parse(path.name)
            side = lc if name.subtype == "LC" else "train"
            lines.append(f"{path.name}|{name.magnification[:-1]}|{fold}|{side}\n")
        (tmp_path / f"dsfold{fold}.txt").write_text("".join(lines))
    found = audit(root, folds=tmp_path)
    assert {name: split["exact"] for name, split in found.facts["splits"].items()} == {"fold 1": 5, "fold 2": 0}
    assert [text[:7] for text in found.leaks] == ["fold 1:", "fold 1:"]


def test_turned_and_reencoded_copies_are_found(root: pathlib.Path) -> None:
    first, second, third, fourth, fifth = sorted(root.glob("SOB_M_PC-14-9146-*.png"))[:5]
    (root / "copies").mkdir()
    images = [cv2.imread(str(path)) for path in (first, second, third, fourth, fifth)]
    cv2.imwrite(str(root / "copies/90.jpg"), images[0], [cv2.IMWRITE_JPEG_QUALITY, 90])
    cv2.imwrite(str(root / "copies/flip.png"), cv2.flip(images[1], 1))
    cv2.imwrite(
        str(root / "copies/turn.jpg"), cv2.rotate(images[2], cv2.ROTATE_90_CLOCKWISE), [cv2.IMWRITE_JPEG_QUALITY, 90]
    )
    cv2.imwrite(str(root / "copies/small.png"), cv2.resize(images[3], (224, 224), interpolation=cv2.INTER_AREA))
    blank = cv2.circle(images[4] * 0 + 250, (300, 200), 30, (90, 60, 120), -1)  # too little content to compare
    cv2.imwrite(str(root / "copies/blank.png"), blank)
    cv2.imwrite(str(root / "copies/blank.jpg"), blank, [cv2.IMWRITE_JPEG_QUALITY, 90])
    table = _write(
        root.parent / "s.csv", "path,split",
        [(p.name, "train") for p in root.glob("*.png")] + [(f"copies/{p.name}", "test") for p in root.glob("copies/*")],
    )  # fmt: skip
    found = audit(root, split=table)
    assert {entry["images"][1]: (entry["images"][0], entry["view"]) for entry in found.facts["duplicates"]} == {
        "copies/90.jpg": (first.name, "not turned"),
        "copies/flip.png": (second.name, "mirrored left to right"),
        "copies/turn.jpg": (third.name, "turned by 90° clockwise"),
        "copies/small.png": (fourth.name, "not turned"),
    }
    assert len(found.leaks) == 1
    assert "0 sets of identical and 4 pairs of nearly identical images (8 images)" in found.leaks[0]
    assert found.facts["blank"] == ["copies/blank.jpg", "copies/blank.png"]
    assert [row["same_picture_as"] for row in found.rows if row["path"] == "copies/flip.png"] == [second.name]


def test_overlap_with_another_dataset_is_found(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    taken = sorted(root.glob("SOB_M_PC-14-9146-*.png"))[0]
    cv2.imwrite(str(other / "x.jpg"), cv2.flip(cv2.imread(str(taken)), 0), [cv2.IMWRITE_JPEG_QUALITY, 90])
    cv2.imwrite(str(other / "x2.jpg"), cv2.flip(cv2.imread(str(taken)), 0), [cv2.IMWRITE_JPEG_QUALITY, 90])
    found = audit(root, against=other)
    assert [entry["images"] for entry in found.facts["duplicates"]] == [
        [taken.name, f"{other}/x.jpg", f"{other}/x2.jpg"]
    ]
    assert (found.facts["images"], found.facts["images_against"]) == (30, 2)
    assert found.leaks == [
        f"{AGAINST}: the same picture on several sides: 0 sets of identical and 1 pairs of nearly identical images "
        "(3 images)"
    ]
    # BreakHis patient names are compared between datasets.
    shutil.move(taken, other / taken.name)
    for path in other.glob("*.jpg"):
        path.unlink()
    assert audit(root, against=other).leaks == [f"{AGAINST}: patients on several sides: 1 (SOB_M_PC_14-9146)"]
    with pytest.raises(DataError, match="is a file of both datasets"):
        audit(root, against=root)


def test_list_with_patient_and_case_columns(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    paths = sorted(root.glob("*.png"))[:6]
    for i, path in enumerate(paths):
        path.rename(root / f"{i}.png")
    rows = [(f"root/{i}.png", "ab"[i % 2], f"p{i // 2}", side) for i, side in enumerate(["train"] * 3 + ["test"] * 3)]
    table = _write(tmp_path / "list.csv", "path,label,patient_id,split", [*rows, ("root/gone.png", "a", "p7", "test")])
    found = audit(table)
    assert found.leaks == ["as given: patients on several sides: 1 (p1)"]
    assert found.facts["splits"]["as given"]["patients"] == {"p1": {"test": 1, "train": 1}}
    assert found.facts["unreadable"] == {"root/gone.png": "unreadable: No such file or directory"}
    assert found.facts["published"] is None
    assert found.facts["counts"]["a"] == {"images": 3, "patients": 3, "cases": 0, "magnifications": {}}

    # Patient p1 of another dataset is a different person.
    other = _write(tmp_path / "other.csv", "path,label,patient_id", [(path, "a", "p1") for path in root.glob("SOB*")])
    assert audit(table, against=other).leaks == found.leaks

    # Without patients, cases are compared instead.
    table = _write(tmp_path / "cases.csv", "path,label,case_id,split", rows)
    assert audit(table).leaks == ["as given: patients on several sides: 1 (p1)"]
    # Without either, a warning says that leaks cannot be detected.
    table = _write(tmp_path / "unknown.csv", "path,label,split", [(row[0], row[1], row[3]) for row in rows])
    unknown = audit(table)
    assert unknown.leaks == []
    assert any("patient unknown for 6 of 6 images" in text for text in unknown.facts["warnings"])


def test_split_written_by_training_is_read_and_clean(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    _file_twice(root)
    found = scan(root, "all")
    records = Records(
        Record(
            i.name.image_id, i.name.label, i.name.subtype, i.name.patient_id, i.name.case_id, i.name.magnification,
            i.pixel_hash,
        )
        for i in found.images
    )  # fmt: skip
    labels = records.column("label").tolist()
    for protocol in ("case", "image"):
        spec = SplitSpec(protocol=protocol, test_fraction=0.4, val_fraction=0.0)
        split = make_split(records, labels, (), spec, filenames.DUPLICATE_SLIDES)
        split.write_csv(tmp_path / f"{protocol}.csv", records, labels)
    by_case = audit(root, split=tmp_path / "case.csv")
    assert by_case.leaks == []
    assert by_case.facts["splits"]["case.csv"]["sides"].keys() == {"train", "test"}
    assert "case.csv: images on no side: 5 of 35" in by_case.facts["warnings"]  # the dropped copies
    by_image = audit(root, split=tmp_path / "image.csv")
    assert len(by_image.leaks) == 1
    assert "patients on several sides" in by_image.leaks[0]


def test_unreadable_images_or_invalid_distance_are_an_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"none of 1 images can be read; a\.png: not a PNG"):
        audit(tmp_path)
    with pytest.raises(DataError, match="max_distance=99 is not in 0 … 63"):
        audit(tmp_path, max_distance=99)
