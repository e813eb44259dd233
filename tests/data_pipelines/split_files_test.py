"""Saved splits: JSON, CSV, hash and the leak check."""

import csv
import dataclasses
import json
import pathlib

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.splits import Row, Split, check
from tests.helpers.split_tables import random_table, table_with_13412


def test_hash_covers_sides_rows_and_grouping() -> None:
    split = random_table(1).split()
    moved = (dataclasses.replace(split.rows[0], side="" if split.rows[0].side else "test"), *split.rows[1:])
    assert dataclasses.replace(split, rows=moved).hash != split.hash
    assert dataclasses.replace(split, rows=split.rows[1:]).hash != split.hash
    assert dataclasses.replace(split, group_by="patient_id").hash != split.hash
    assert dataclasses.replace(split, rows=split.rows[::-1]).hash == split.hash


def test_indices_are_positions_in_the_table() -> None:
    table = table_with_13412()
    split = table.split()
    sides = [split.indices(side) for side in ("train", "val", "test")]
    assert all(array.dtype == np.int64 for array in sides)
    placed = np.concatenate(sides)
    assert len(set(placed.tolist())) == len(placed) == len(table.rows) - 12
    assert all(split.rows[i].side == "val" for i in sides[1])


def test_json_round_trip() -> None:
    split = table_with_13412().split()
    saved = json.loads(json.dumps(split.to_json()))
    restored = Split.from_json(saved)
    assert restored == dataclasses.replace(split, warnings=())
    assert saved["hash"] == restored.hash == split.hash


@pytest.mark.parametrize("damage", ["side", "image", "missing", "doubled", "group_by", "hash"])
def test_damaged_json_is_refused(damage: str) -> None:
    saved = random_table(1).split().to_json()
    rows = saved["rows"]
    if damage == "side":
        rows[0][1] = "train" if rows[0][1] == "test" else "test"
    elif damage == "image":
        rows[0][0] = "SOB_B_A-14-1-40-001"
    elif damage == "missing":
        del rows[-1]
    elif damage == "doubled":
        rows.append(rows[0])
    elif damage == "group_by":
        saved["group_by"] = "patient_id"
    else:
        saved["hash"] = "0" * 16
    with pytest.raises(DataError, match=r"the saved split is damaged: its rows hash to [0-9a-f]{16}, recorded is"):
        Split.from_json(saved)


@pytest.mark.parametrize(
    ("rows", "leak"),
    [
        ([Row("a", "train", "1", "p"), Row("a", "test", "1", "p")], "the image 'a'"),
        ([Row("a", "train", "1", "p"), Row("b", "val", "2", "p")], r"the identical image 'p' \(b\)"),
        ([Row("a", "val", "1", "p"), Row("b", "test", "1", "q")], r"the group '1' \(b\) is in both val and test"),
    ],
)
def test_check_finds_a_leak(rows: list[Row], leak: str) -> None:
    with pytest.raises(DataError, match=f"leak: {leak}"):
        check(Split("by hand", "case_id", tuple(rows)))
    # Images on no side cannot leak.
    check(Split("by hand", "case_id", (dataclasses.replace(rows[0], side="", note="left out"), rows[1])))


def test_csv_lists_every_image_by_name(tmp_path: pathlib.Path) -> None:
    table = table_with_13412()
    split = table.split()
    path = tmp_path / "split.csv"
    split.write_csv(path, table.records(), table.records().column("label").tolist())
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        lines = list(reader)
    assert reader.fieldnames == [
        "image_id",
        "split",
        "label",
        "patient_id",
        "case_id",
        "magnification",
        "group",
        "note",
        "protocol",
    ]
    assert len(lines) == len(table.rows)
    by_name = sorted(zip(split.rows, table.rows, strict=True), key=lambda pair: pair[1].image_id)
    for line, (row, record) in zip(lines, by_name, strict=True):
        assert (line["image_id"], line["split"], line["note"]) == (record.image_id, row.side, row.note)
        assert (line["label"], line["patient_id"], line["case_id"]) == (
            record.label,
            record.patient_id,
            record.case_id,
        )
        assert (line["magnification"], line["group"]) == (record.magnification, record.case_id)
    assert [p.name for p in tmp_path.iterdir()] == ["split.csv"]


def test_csv_of_another_table_is_an_error_and_keeps_the_file(tmp_path: pathlib.Path) -> None:
    table = random_table(0)
    path = tmp_path / "split.csv"
    path.write_text("of an earlier run")
    with pytest.raises(ValueError, match="zip"):
        table.split().write_csv(path, table.records().take(range(3)), ["benign"] * 3)
    assert path.read_text() == "of an earlier run"
