"""Splits audited by names alone: the forms of their files, and what crosses their sides."""

import json
import pathlib
from typing import Any

import pytest

from data_pipelines.audit import split_files
from data_pipelines.audit.names import audit_names
from data_pipelines.errors import DataError
from tests.conftest import SHARED
from tests.helpers.command import histojax

_A = "x/40X/SOB_B_TA-14-16184-40-001.png"
_B = "SOB_B_TA-14-16184CD-40-007.png"
_C = "SOB_M_DC-14-2523-40-001.png"


def _sides(path: pathlib.Path) -> dict[str, list[tuple[str, str]]]:
    return {name: [(row.name, row.side) for row in rows] for name, rows in split_files.read(path).items()}


@pytest.mark.parametrize(
    "content",
    [
        {"train": [_A], "Validation": [_B], "test": [_C], "meta": {"classes": 2}},
        {"train": {"images": [_A], "labels": [0]}, "val": {"images": [_B]}, "test": {"images": [_C]}, "train_few": {}},
        {"train": {_A: 0}, "val": {_B: 1}, "test": {_C: 1}},
        {_A: "train", _B: "val", _C: "test"},
        [{"image": _A, "split": "train"}, {"filename": _B, "split": "dev"}, {"path": _C, "split": "test"}],
        {"train": [{"path": _A}], "val": [{"image": _B}], "test": [{"image": _C}]},
    ],
)
def test_json_of_other_programs(content: Any, tmp_path: pathlib.Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(content))
    expected = [(_A, "train"), (_B, "val"), (_C, "test")]
    assert _sides(tmp_path / "s.json") == {"s.json": expected}
    for several, names in (([content, content], ["split 0", "split 1"]), ({"folds": {"a": content}}, ["folds a"])):
        (tmp_path / "several.json").write_text(json.dumps(several))
        assert _sides(tmp_path / "several.json") == dict.fromkeys(names, expected)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.json", "{", r"s\.json: not JSON in UTF-8"),
        ("s.json", '{"train": ["a"]}', r's\.json: no split in this JSON; expected \{"train": \[NAME'),
        ("s.json", '[{"image": "a", "split": "left"}]', r"s\.json, entry 0, column split: 'left' is not one of"),
        ("s.csv", "image_id,split\n", r"s\.csv: no row below the header"),
        ("s.csv", "image_id,side\na,train\n", r"line 2: a split needs the columns image_id \(or path\) and split"),
        ("s.csv", "image_id,split\na,\n", r"s\.csv: no image is on a side"),
    ],
)
def test_malformed_files_are_refused(name: str, content: str, message: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        audit_names(tmp_path / name)


def test_crossings_and_the_test_images_in_them(tmp_path: pathlib.Path) -> None:
    twins = [f"SOB_M_{kind}-14-13412-40-001.png" for kind in ("DC", "LC")]
    (tmp_path / "s.json").write_text(json.dumps({"train": [_A, twins[0], "own.png"], "test": [_B, _C, twins[1]]}))
    facts = audit_names(tmp_path / "s.json")
    split = facts["splits"]["s.json"]
    assert split["patients"] == {"SOB_M_LC_14-13412": {"test": 1, "train": 1}}
    assert split["cases"].keys() == {"14-16184", "14-13412"}
    assert (split["test_images_of_patients_elsewhere"], split["test_images_of_cases_elsewhere"]) == (1, 2)
    assert facts["leaks"] == [
        "s.json: patients on several sides: 1 (SOB_M_LC_14-13412); 1 of 3 test images are of one of them"
    ]
    assert facts["warnings"][0].startswith("s.json: cases on several sides: 2 (14-13412, 14-16184); 2 of 3 test")
    assert facts["warnings"][1].startswith("patient unknown for 1 of 6 images")
    assert len(audit_names(tmp_path / "s.json", strict_cases=True)["leaks"]) == 2


def test_columns_name_patients_and_one_image_on_two_sides(tmp_path: pathlib.Path) -> None:
    (tmp_path / "s.csv").write_text(
        "filename,split,patient_id\n1.png,train,p\n2.png,test,p\n3.png,train,q\n3.png,val,q\n"
    )
    facts = audit_names(tmp_path / "s.csv")
    assert [text.partition(";")[0] for text in facts["leaks"]] == [
        "s.csv: images on several sides: 1 (3.png)",
        "s.csv: patients on several sides: 2 (p, q)",
    ]
    assert facts["rows"][2]["side in s.csv"] == "train and val"


def test_command_needs_no_images(tmp_path: pathlib.Path) -> None:
    (tmp_path / "dsfold2.txt").write_text(f"{_C}|40|2|train\n{_B}|40|2|test\n{_A.split('/')[-1]}|40|2|train\n")
    for given in (["--folds", tmp_path], ["--split", tmp_path / "dsfold2.txt"]):
        done = histojax("audit", *given, "--output", tmp_path / "out")
        assert done.returncode == 0, done.stderr
        assert "fold 2: case 14-16184: test: 1, train: 1" in done.stdout
        assert "1 of 1 test images are of one of them" in done.stdout
    assert histojax("audit", *given, "--output", tmp_path / "out", "--strict_cases").returncode == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"audit.json", "images.csv"}
    assert "nothing to audit: give ROOT, or --split FILE" in histojax("audit").stderr
    assert "--against: has an effect only with ROOT" in histojax("audit", *given, "--against", tmp_path).stderr


@pytest.mark.skipif(not (SHARED / "breakhis_folds").is_dir(), reason="BreakHis's fold files are not here")
def test_published_folds_put_slide_13412_on_both_sides() -> None:
    facts = audit_names(SHARED / "breakhis_folds")
    assert (facts["images"], facts["patients"], facts["cases"]) == (7909, 82, 70)
    assert {name: len(split["patients"]) for name, split in facts["splits"].items()} == {
        "fold 1": 1, "fold 2": 0, "fold 3": 1, "fold 4": 0, "fold 5": 1,
    }  # fmt: skip
    assert facts["splits"]["fold 1"]["test_images_of_cases_elsewhere"] == 1145
