"""BreakHis's published folds: reading their files and following them exactly."""

import hashlib
import pathlib

import pytest

from data_pipelines.breakhis import filenames
from data_pipelines.errors import DataError
from data_pipelines.official_folds import read_folds
from data_pipelines.records import Record, Records
from data_pipelines.split_groups import Member
from data_pipelines.split_spec import SplitSpec
from data_pipelines.splits import Split, make_split

PATIENTS = {
    # patient: its side in the test's fold
    "SOB_B_A-14-22549AB": "train",
    "SOB_B_A-14-22549CD": "test",  # another block of the same case: the published folds divide by slide folder
    "SOB_B_F-14-9133": "train",
    "SOB_B_TA-14-3411F": "train",
    "SOB_M_DC-14-2523": "test",
    "SOB_M_DC-14-2773": "train",
    "SOB_M_MC-14-10147": "train",
    "SOB_M_PC-15-190EF": "train",
}
NAMES = [f"{patient}-100-{i:03d}" for patient in PATIENTS for i in (1, 2, 5)]


def _side(image_id: str) -> str:
    return PATIENTS[image_id.rsplit("-", 2)[0]]


def _write(folder: pathlib.Path, lines: list[str], fold: int = 1) -> pathlib.Path:
    path = folder / f"dsfold{fold}.txt"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def _lines(names: list[str], fold: int = 1) -> list[str]:
    return [f"{name}.png|100|{fold}|{_side(name)}" for name in names]


def _record(image_id: str) -> Record:
    name = filenames.parse(f"{image_id}.png")
    return Record(
        name.image_id,
        name.label,
        name.subtype,
        name.patient_id,
        name.case_id,
        name.magnification,
        hashlib.sha256(image_id.encode()).hexdigest(),
    )


def _split(names: list[str], folder: pathlib.Path, **spec: object) -> Split:
    records = Records(_record(name) for name in names)
    counts: dict[str, Record] = {record.patient_id: record for record in records}
    members = [Member(r.patient_id, r.case_id, r.label, {"100X": 3}) for r in counts.values()]
    settings = {"protocol": "folds", "fold": 1, "folds_dir": str(folder)} | spec
    return make_split(
        records,
        records.column("label").tolist(),
        members,
        SplitSpec(**settings),  # type: ignore[arg-type]
        filenames.DUPLICATE_SLIDES,
    )


def test_lines_are_parsed_with_blanks_and_empty_lines(tmp_path: pathlib.Path) -> None:
    _write(
        tmp_path,
        ["SOB_M_DC-14-13412-100-001.png|100|3|train", "", " SOB_B_A-14-22549AB-40-001.png | 40 | 3 | test ", "  "],
        fold=3,
    )
    assert read_folds(tmp_path, 3) == {"SOB_M_DC-14-13412-100-001": "train", "SOB_B_A-14-22549AB-40-001": "test"}


def test_windows_line_endings_are_accepted(tmp_path: pathlib.Path) -> None:
    (tmp_path / "dsfold1.txt").write_bytes(b"SOB_M_DC-14-13412-100-001.png|100|1|train\r\n")
    assert read_folds(tmp_path, 1) == {"SOB_M_DC-14-13412-100-001": "train"}


def test_missing_file_error_names_the_file_and_its_source(tmp_path: pathlib.Path) -> None:
    _write(tmp_path, _lines(NAMES), fold=1)
    with pytest.raises(DataError, match=r"dsfold2\.txt: no such file; .*published on the dataset's page"):
        read_folds(tmp_path, 2)


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_empty_file_is_an_error(content: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "dsfold1.txt").write_text(content)
    with pytest.raises(DataError, match=r"dsfold1\.txt: empty"):
        read_folds(tmp_path, 1)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("SOB_M_DC-14-13412-100-002.png|100|1", r"expected NAME\.png\|MAGNIFICATION\|1\|train or test"),
        ("SOB_M_DC-14-13412-100-002.png|100|2|train", "expected NAME"),
        ("SOB_M_DC-14-13412-100-002.png|100|1|val", "expected NAME"),
        ("SOB_M_DC-14-13412-100-002.png,100,1,train", "expected NAME"),
        ("<html>", "expected NAME"),
        ("SOB_M_DC-14-13412-100-002.png|40|1|train", "magnification 40 contradicts the name"),
        ("SOB_M_XX-14-13412-100-002.png|100|1|train", "unknown subtype 'XX'"),
        ("SOB_M_DC-14-13412-100-001.png|100|1|test", "an earlier line puts this image on the other side"),
    ],
)
def test_malformed_line_is_named_by_its_number(line: str, reason: str, tmp_path: pathlib.Path) -> None:
    _write(tmp_path, ["SOB_M_DC-14-13412-100-001.png|100|1|train", "", line])
    with pytest.raises(DataError, match=rf"dsfold1\.txt, line 3: .*{reason}") as caught:
        read_folds(tmp_path, 1)
    assert line in str(caught.value)


def test_repeated_line_is_accepted(tmp_path: pathlib.Path) -> None:
    _write(tmp_path, _lines(NAMES) * 2)
    assert len(read_folds(tmp_path, 1)) == len(NAMES)


def test_test_side_is_exactly_the_published_one(tmp_path: pathlib.Path) -> None:
    _write(tmp_path, _lines(NAMES))
    split = _split(NAMES, tmp_path, val_fraction=0.0)
    assert {row.image_id: row.side for row in split.rows} == {name: _side(name) for name in NAMES}
    assert split.left_out() == {}
    assert split.group_by == "patient_id"
    assert split.protocol == "official fold 1 (patient-disjoint)"


def test_validation_is_taken_from_the_published_training_patients(tmp_path: pathlib.Path) -> None:
    _write(tmp_path, _lines(NAMES))
    split = _split(NAMES, tmp_path, val_fraction=0.4)
    test = {row.image_id for row in split.rows if row.side == "test"}
    assert test == {name for name in NAMES if _side(name) == "test"}
    val = {row.group for row in split.rows if row.side == "val"}
    assert val
    assert not val & {row.group for row in split.rows if row.side != "val"}


def test_another_fold_reads_another_file(tmp_path: pathlib.Path) -> None:
    _write(tmp_path, _lines(NAMES))
    swapped = {"train": "test", "test": "train"}
    _write(tmp_path, [f"{name}.png|100|2|{swapped[_side(name)]}" for name in NAMES], fold=2)
    split = _split(NAMES, tmp_path, fold=2, val_fraction=0.0)
    assert {row.image_id: row.side for row in split.rows} == {name: swapped[_side(name)] for name in NAMES}


def test_patient_in_train_and_test_is_an_error(tmp_path: pathlib.Path) -> None:
    lines = _lines(NAMES)
    assert lines[0].endswith("train")
    lines[0] = lines[0].replace("|train", "|test")
    _write(tmp_path, lines)
    with pytest.raises(DataError, match=r"dsfold1\.txt: SOB_B_A_14-22549AB .*is in both train and test"):
        _split(NAMES, tmp_path)


def test_images_missing_from_the_fold_are_left_out(tmp_path: pathlib.Path) -> None:
    missing = {NAMES[0], NAMES[3]}  # one of a training patient, one of a test patient
    _write(tmp_path, _lines([name for name in NAMES if name not in missing]))
    split = _split(NAMES, tmp_path, val_fraction=0.0)
    assert {row.image_id for row in split.rows if not row.side} == missing
    assert split.left_out() == {"not in official fold 1": 2}
    assert all(row.side == _side(row.image_id) for row in split.rows if row.side)


def test_fold_may_list_images_that_are_absent(tmp_path: pathlib.Path) -> None:
    _write(tmp_path, [*_lines(NAMES), "SOB_M_LC-14-12204-40-001.png|40|1|test"])
    assert len(_split(NAMES, tmp_path).rows) == len(NAMES)


def test_duplicate_slide_on_two_sides_of_a_published_fold_is_dropped(tmp_path: pathlib.Path) -> None:
    # As in the published fold 1: the same images are once in train and once in test.
    names = [*NAMES, "SOB_M_DC-14-13412-100-001", "SOB_M_LC-14-13412-100-001"]
    _write(tmp_path, [*_lines(NAMES), f"{names[-2]}.png|100|1|train", f"{names[-1]}.png|100|1|test"])
    split = _split(names, tmp_path, val_fraction=0.0)
    sides = {row.image_id: row.side for row in split.rows}
    assert (sides[names[-2]], sides[names[-1]]) == ("", "test")
    assert split.left_out() == {"known duplicate: the pictures of SOB_M_LC_14-13412": 1}
    with pytest.raises(DataError, match="is in both train and test"):
        _split(names, tmp_path, val_fraction=0.0, duplicates="keep")
