"""Placing other images by a saved split: known patients keep their side."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.breakhis.filenames import DUPLICATE_SLIDES
from data_pipelines.records import Records
from data_pipelines.splits import place
from tests.helpers.split_tables import (
    GROUPED_PROTOCOLS,
    Table,
    fake_hash,
    patient_records,
    random_table,
    table_with_13412,
)


@pytest.mark.parametrize("protocol", [*GROUPED_PROTOCOLS, "image"])
@pytest.mark.parametrize("duplicates", ["drop", "keep"])
def test_same_table_gives_the_same_split(protocol: str, duplicates: str) -> None:
    table = table_with_13412()
    split = table.split(protocol=protocol, duplicates=duplicates)
    order = np.random.default_rng(0).permutation(len(table.rows))
    placed = place(split, table.records().take(order), DUPLICATE_SLIDES)
    assert placed.hash == split.hash
    assert placed.left_out() == split.left_out()
    assert [row.image_id for row in placed.rows] == table.records().take(order).column("image_id").tolist()


@pytest.mark.parametrize("protocol", GROUPED_PROTOCOLS)
def test_known_patients_keep_their_side_at_another_magnification(protocol: str) -> None:
    table = random_table(6)
    split = table.split(protocol=protocol, magnification="100X")
    side_of = {row.group: row.side for row in split.rows}
    placed = place(split, table.records("400X"))
    assert {row.side for row in placed.rows} == {"train", "val", "test"}
    assert all(row.side == side_of[row.group] for row in placed.rows)
    # Splitting the same table at 400X gives the same result.
    assert placed.hash == table.split(protocol=protocol, magnification="400X").hash


def test_another_block_of_a_training_case_stays_out_of_test() -> None:
    table = random_table(6)
    split = table.split()
    row = next(r for r, placed in zip(table.rows, split.rows, strict=True) if placed.side == "train")
    other = patient_records(row.subtype, f"{row.case_id.removeprefix('14-')}G", {"40X": 2})
    assert {r.side for r in place(split, Records(other)).rows} == {"train"}
    by_patient = table.split(protocol="patient")
    assert {r.side for r in place(by_patient, Records(other)).rows} == {
        "test"
    }  # this protocol treats blocks as different patients


@pytest.mark.parametrize("protocol", [*GROUPED_PROTOCOLS, "image"])
def test_unknown_patients_go_to_test(protocol: str) -> None:
    table = random_table(6)
    placed = place(table.split(protocol=protocol), Records(patient_records("F", "99999", {"40X": 3})))
    assert [row.side for row in placed.rows] == ["test"] * 3


@pytest.mark.parametrize("protocol", [*GROUPED_PROTOCOLS, "image"])
def test_renamed_known_image_keeps_its_side(protocol: str) -> None:
    table = random_table(6)
    split = table.split(protocol=protocol)
    renamed = Records(
        dataclasses.replace(row, image_id=f"SOB_B_F-14-99999-40-{i:03d}", patient_id="x", case_id="x")
        for i, row in enumerate(table.rows)
    )
    assert [row.side for row in place(split, renamed).rows] == [row.side for row in split.rows]


def test_known_name_with_other_pixels_follows_its_group() -> None:
    table = random_table(6)
    split = table.split()
    other = Records(dataclasses.replace(row, pixel_hash=fake_hash("other", row.image_id)) for row in table.rows)
    placed = place(split, other)
    assert [row.side for row in placed.rows] == [row.side for row in split.rows]
    assert all(row.pixel_hash == record.pixel_hash[:16] for row, record in zip(placed.rows, other, strict=True))


@pytest.mark.parametrize("protocol", GROUPED_PROTOCOLS)
@pytest.mark.parametrize("trained_on", ["LC", "DC"])
def test_alias_of_a_known_patient_keeps_its_side(protocol: str, trained_on: str) -> None:
    # The split has one copy of the slide; the other copy is placed, at a magnification that the split lacks.
    table = table_with_13412()
    twin = "SOB_M_LC_14-13412" if trained_on == "DC" else "SOB_M_DC_14-13412"
    known = Table(tuple(row for row in table.rows if row.patient_id != twin))
    new = Records(row for row in table.rows if row.patient_id == twin and row.magnification == "40X")
    for seed in range(4):
        split = known.split(protocol=protocol, magnification="100X", seed=seed)
        side = next(row.side for row in split.rows if f"_{trained_on}-14-13412-" in row.image_id)
        assert {row.side for row in place(split, new, DUPLICATE_SLIDES).rows} == {side}


def test_alias_is_dropped_if_its_twin_is_present() -> None:
    table = table_with_13412()
    placed = place(table.split(magnification="40X"), table.records("100X"), DUPLICATE_SLIDES)
    assert placed.left_out() == {"known duplicate: the pictures of SOB_M_LC_14-13412": 6}
