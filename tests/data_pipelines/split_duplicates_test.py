"""Duplicates in a split: identical pixels and the slide filed under two subtypes."""

import dataclasses
import pathlib

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.official_folds import write_fold
from data_pipelines.records import Record, Records
from data_pipelines.split_spec import SplitSpec
from data_pipelines.splits import make_split
from tests.helpers.split_tables import (
    GROUPED_PROTOCOLS,
    Table,
    assert_disjoint,
    fake_hash,
    patient_records,
    random_table,
    table_with_13412,
)


@pytest.mark.parametrize("duplicates", ["drop", "keep"])
def test_copies_stay_on_one_side_of_an_image_split(duplicates: str) -> None:
    table = random_table(0, copies=60, magnifications=("100X",))
    split = table.split(protocol="image", duplicates=duplicates)
    assert_disjoint(split, table.records(), "image_id")
    n_copies = len(split.rows) - len({row.pixel_hash for row in split.rows})
    assert n_copies > 10
    assert split.left_out() == ({"identical pixels, another copy is kept": n_copies} if duplicates == "drop" else {})


@pytest.mark.parametrize("protocol", [*GROUPED_PROTOCOLS, "image"])
def test_known_duplicate_slide_is_dropped_and_reported(protocol: str) -> None:
    split = table_with_13412().split(protocol=protocol)
    assert split.left_out() == {"known duplicate: the pictures of SOB_M_LC_14-13412": 12}
    for row in split.rows:
        assert bool(row.side) == (not row.image_id.startswith("SOB_M_DC-14-13412-"))


def test_known_duplicate_slide_stays_if_its_twin_is_absent() -> None:
    table = table_with_13412()
    without_twin = Table(tuple(row for row in table.rows if row.patient_id != "SOB_M_LC_14-13412"))
    split = without_twin.split(protocol="patient")
    assert split.left_out() == {}
    assert all(row.side for row in split.rows)


@pytest.mark.parametrize("protocol", [*GROUPED_PROTOCOLS, "image"])
def test_kept_duplicates_share_a_side(protocol: str) -> None:
    table = table_with_13412()
    seen = set()
    for seed in range(6):
        split = table.split(protocol=protocol, duplicates="keep", seed=seed, test_fraction=0.4)
        assert split.left_out() == {}
        assert_disjoint(split, table.records(), "image_id")
        side_of = {row.image_id: row.side for row in split.rows}
        pairs = {
            (side, side_of[name.replace("_DC-", "_LC-")]) for name, side in side_of.items() if "_DC-14-13412-" in name
        }
        assert all(one == other for one, other in pairs)
        seen |= pairs
    assert len(seen) > 1  # other seeds move both together


def test_kept_aliases_share_a_side_even_with_other_pixels() -> None:
    # A copy with lossy compression has other pixels: only the alias connects the two.
    table = table_with_13412()
    rows = tuple(
        dataclasses.replace(row, pixel_hash=fake_hash("resaved", row.image_id))
        if "_DC-14-13412-" in row.image_id
        else row
        for row in table.rows
    )
    for seed in range(6):
        split = Table(rows).split(protocol="patient", duplicates="keep", seed=seed)
        assert len({row.side for row in split.rows if "-14-13412-" in row.image_id}) == 1


def test_identical_pixels_with_contradicting_labels_are_all_dropped() -> None:
    table = random_table(9)
    benign = next(i for i, row in enumerate(table.rows) if row.label == "benign")
    malignant = [i for i, row in enumerate(table.rows) if row.label == "malignant"][:2]
    rows = list(table.rows)
    for i in malignant:
        rows[i] = dataclasses.replace(rows[i], pixel_hash=rows[benign].pixel_hash)
    split = Table(tuple(rows)).split()
    assert split.left_out() == {"identical pixels under contradicting labels": 3}
    assert {i for i, row in enumerate(split.rows) if not row.side} == {benign, *malignant}


def test_first_of_identical_images_by_name_is_kept() -> None:
    table = random_table(9)
    rows = list(table.rows)
    same = [i for i, row in enumerate(rows) if row.patient_id == rows[0].patient_id][:3]
    for i in same:
        rows[i] = dataclasses.replace(rows[i], pixel_hash=rows[same[0]].pixel_hash)
    order = np.arange(len(rows))[::-1]
    split = Table(tuple(rows)).split(order=order)
    kept = [row.image_id for row in split.rows if row.side and row.pixel_hash == rows[same[0]].pixel_hash[:16]]
    assert kept == [min(rows[i].image_id for i in same)]
    assert split.left_out() == {"identical pixels, another copy is kept": 2}


@pytest.mark.parametrize("protocol", ["given", "folds"])
def test_of_a_given_split_the_test_copy_is_kept(protocol: str, tmp_path: pathlib.Path) -> None:
    """Every test image copies a training image with an earlier name: all are still tested, and none is trained on."""
    train = patient_records("A", "1", {"100X": 4}) + patient_records("DC", "2", {"100X": 4})
    test = patient_records("F", "3", {"100X": 3}) + patient_records("MC", "4", {"100X": 3})
    hashes = [row.pixel_hash for row in (*train[:3], *train[4:7])]
    copies = [dataclasses.replace(row, pixel_hash=pixels) for row, pixels in zip(test, hashes, strict=True)]
    rows = [dataclasses.replace(row, given_split="test" if row in copies else "train") for row in train + copies]
    write_fold(tmp_path, 1, {row.image_id: row.given_split for row in rows})
    fields = {"fold": 1, "folds_dir": str(tmp_path)} if protocol == "folds" else {}
    spec = SplitSpec(protocol=protocol, val_fraction=0.0, **fields)
    split = make_split(Records(rows), [row.label for row in rows], [], spec)
    assert [row.side for row in split.rows] == ["", "", "", "train"] * 2 + ["test"] * 6
    assert split.left_out() == {"identical pixels, another copy is kept": 6}


@pytest.mark.parametrize("protocol", GROUPED_PROTOCOLS)
def test_too_few_groups_are_refused(protocol: str) -> None:
    def labelled(slide: str) -> list[Record]:
        rows = patient_records("A", slide, {"100X": 12})
        return [dataclasses.replace(row, label=("benign", "malignant")[i % 2]) for i, row in enumerate(rows)]

    for fields in ({}, {"kfolds": 2, "fold": 1}):
        with pytest.raises(
            DataError, match=f"the data have 1 {protocol} to divide, but training and test need one each"
        ):
            Table(tuple(labelled("1"))).split(protocol=protocol, val_fraction=0.0, **fields)
    three = Table((*labelled("1"), *labelled("2"), *labelled("3")))
    for fold in range(4):
        with pytest.raises(DataError, match=rf"have 3 {protocol}s to divide into .*kfolds=4: use at most 3 folds"):
            three.split(protocol=protocol, val_fraction=0.0, kfolds=4, fold=fold)
    # The remedy works.
    tested = [
        three.split(protocol=protocol, val_fraction=0.0, kfolds=3, fold=fold).indices("test") for fold in range(3)
    ]
    assert sorted(i for indices in tested for i in indices) == list(range(36))


def test_a_test_fraction_that_tests_nothing_is_refused() -> None:
    rows = patient_records("A", "1", {"100X": 2}) + patient_records("DC", "2", {"100X": 2})
    with pytest.raises(
        DataError, match=r"no test image \(data\.split\.protocol=image\): the data have 4 pictures to divide"
    ):
        Table(tuple(rows)).split(protocol="image", val_fraction=0.0, test_fraction=0.1)
