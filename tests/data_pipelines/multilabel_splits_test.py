"""Splits of multi-label tiles: groups stay on one side, every label is divided evenly, protocol names are accurate."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

from data_pipelines.errors import DataError
from data_pipelines.records import Record, Records, join_labels, label_set
from data_pipelines.split_spec import SplitSpec
from data_pipelines.splits import SIDES, Split, make_split, place

NAMES = ("interstitial", "necrosis", "non_tumor", "tumor")
PREVALENCE = (0.5, 0.08, 0.6, 0.4)


def table(n: int = 400, patients: int = 40, seed: int = 0, **known: bool) -> Records:
    """Make tiles of patients whose label frequencies differ; `known` says which group fields are recorded."""
    rng = np.random.default_rng(seed)
    frequencies = np.clip(np.array(PREVALENCE) * rng.uniform(0.3, 1.7, (patients, 4)), 0, 1)
    rows = []
    for i in range(n):
        patient = int(rng.integers(patients))
        present = [name for name, p in zip(NAMES, frequencies[patient], strict=True) if rng.uniform() < p]
        groups = {
            "patient_id": f"P{patient}" if known.get("patient", True) else "",
            "slide_id": f"P{patient}-{rng.integers(2)}" if known.get("slide", True) else "",
            "source_id": f"{i // 4}" if known.get("source", True) else "",
        }
        row = Record(
            f"tile{i}", join_labels(present), "", groups.pop("patient_id"), "", "", f"{seed:08d}{i:08d}", **groups
        )
        rows.append(row)
    return Records(rows)


def split(records: Records, **fields: Any) -> Split:
    return make_split(records, records.column("label").tolist(), [], SplitSpec(**fields), label_names=NAMES)


def fractions(records: Records, made: Split, side: str) -> np.ndarray:
    """Fraction of each label's images on this side; the last entry is over all images."""
    labels = np.array([[name in label_set(r.label) for name in NAMES] + [True] for r in records], float)
    return labels[made.indices(side)].sum(0) / labels.sum(0)


@pytest.mark.parametrize(
    ("known", "protocol", "field"),
    [
        ({}, "patient-disjoint, 25% test, seed 0", "patient_id"),
        ({"patient": False}, "slide-disjoint (patients unknown), 25% test, seed 0", "slide_id"),
        ({"patient": False, "slide": False}, "source-image-disjoint (patients unknown), 25% test, seed 0", "source_id"),
    ],
)
def test_auto_keeps_the_strictest_known_group_on_one_side(known: dict[str, bool], protocol: str, field: str) -> None:
    records = table(**known)
    made = split(records, protocol="auto")
    assert made.protocol == protocol
    assert made.group_by == field
    sides_of: dict[str, set[str]] = {}
    for row, record in zip(made.rows, records, strict=True):
        sides_of.setdefault(getattr(record, field), set()).add(row.side)
    assert all(len(sides) == 1 for sides in sides_of.values())
    assert {row.side for row in made.rows} == set(SIDES)


def test_split_without_groups_is_called_optimistic() -> None:
    made = split(table(patient=False, slide=False, source=False), protocol="auto")
    assert made.protocol == "image-level (patients unknown, most likely on both sides: optimistic), 25% test, seed 0"
    one_unknown = list(table())
    one_unknown[7] = dataclasses.replace(one_unknown[7], patient_id="")
    made = split(Records(one_unknown), protocol="auto")
    assert made.group_by == "patient_id"
    assert made.left_out() == {"without a patient_id": 1}
    assert made.rows[7].side == ""
    unknown = f"1 of {len(one_unknown)} images have no patient_id and are left out: fill in the column"
    assert made.warnings == (unknown,)
    for i in range(len(one_unknown) // 5):
        one_unknown[i] = dataclasses.replace(one_unknown[i], patient_id="")
    made = split(Records(one_unknown), protocol="auto")
    assert made.group_by == "slide_id"
    assert made.left_out() == {}
    assert made.warnings[0].startswith("patient_id is not used, because only ")


def test_protocol_that_needs_an_unknown_group_is_refused() -> None:
    with pytest.raises(DataError, match=r"protocol='case' needs case_id for every image, but 400 of 400 have none"):
        split(table(), protocol="case")
    with pytest.raises(DataError, match=r"protocol='given' needs the table's column 'split'"):
        split(table(), protocol="given")


@pytest.mark.parametrize("seed", range(5))
def test_image_split_is_as_even_as_iterative_stratification(seed: int) -> None:
    records = table(seed=seed)
    made = split(records, protocol="image", seed=seed)
    labels = np.array([[name in label_set(r.label) for name in NAMES] for r in records], int)
    reference = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=0.25, random_state=seed)
    _, test = next(reference.split(labels, labels))
    theirs = np.abs(labels[test].sum(0) / labels.sum(0) - 0.25).max()
    ours = np.abs(fractions(records, made, "test") - 0.25).max()
    assert ours <= max(theirs, 0.02)


@pytest.mark.parametrize("seed", range(5))
def test_grouped_split_keeps_every_label_near_its_fraction(seed: int) -> None:
    records = table(n=800, seed=seed)
    made = split(records, protocol="patient", seed=seed)
    np.testing.assert_allclose(fractions(records, made, "test"), 0.25, atol=0.06)
    np.testing.assert_allclose(fractions(records, made, "val"), 0.15, atol=0.06)
    # A random split is often farther off, if only in the rare label.
    rng = np.random.default_rng(seed)
    at_random = [np.abs(_at_random(records, rng) - 0.25).max() for _ in range(20)]
    assert np.abs(fractions(records, made, "test") - 0.25).max() < np.median(at_random)


def _at_random(records: Records, rng: np.random.Generator) -> np.ndarray:
    patients = sorted(set(records.column("patient_id").tolist()))
    test = set(rng.permutation(patients)[: len(patients) // 4].tolist())
    labels = np.array([[name in label_set(r.label) for name in NAMES] for r in records], float)
    in_test = np.array([r.patient_id in test for r in records])
    return labels[in_test].sum(0) / labels.sum(0)


def test_folds_test_every_tile_once() -> None:
    records = table()
    folds = [split(records, protocol="auto", kfolds=4, fold=fold) for fold in range(4)]
    tested = np.concatenate([fold.indices("test") for fold in folds])
    assert sorted(tested.tolist()) == list(range(len(records)))
    assert folds[1].protocol == "patient-disjoint, fold 1 of 4, seed 0"


def test_label_missing_from_train_is_an_error() -> None:
    records = table()
    with pytest.raises(DataError, match=r"no image of label 'fat' in train: the label has 0 group\(s\) to divide"):
        make_split(records, records.column("label").tolist(), [], SplitSpec("auto"), label_names=(*NAMES, "fat"))


def test_identical_tiles_are_kept_once_and_contradictions_dropped() -> None:
    rows = list(table())
    one = next(i for i, r in enumerate(rows) if r.label == "tumor")
    other = next(i for i, r in enumerate(rows) if r.label == "interstitial+non_tumor")
    same = next(i for i, r in enumerate(rows) if r.label == "tumor" and i != one)
    rows[other] = dataclasses.replace(rows[other], pixel_hash=rows[one].pixel_hash)
    made = split(Records(rows), protocol="image")
    assert {made.rows[i].note for i in (one, other)} == {"identical pixels under contradicting labels"}
    rows[other] = dataclasses.replace(table()[other])
    rows[same] = dataclasses.replace(rows[same], pixel_hash=rows[one].pixel_hash)
    made = split(Records(rows), protocol="image")
    assert sum(not made.rows[i].side for i in (one, same)) == 1


# --- The dataset's own split --------------------------------------------------------------------------------


def given(records: Records, sides: list[str], by: str = "patient_id") -> Records:
    names = sorted(set(records.column(by).tolist()))
    side_of = {name: sides[i % len(sides)] for i, name in enumerate(names)}
    return Records(dataclasses.replace(r, given_split=side_of[getattr(r, by)]) for r in records)


def test_given_split_is_followed() -> None:
    records = given(table(), ["train", "train", "val", "test"])
    made = split(records, protocol="auto")
    assert made.protocol == "the dataset's own split (patient-disjoint)"
    assert [row.side for row in made.rows] == records.column("given_split").tolist()
    assert made.group_by == "patient_id"


def test_validation_is_taken_from_train_if_none_is_given() -> None:
    records = given(table(), ["train", "train", "test"])
    made = split(records, protocol="auto", val_fraction=0.2)
    assert all((row.side == "test") == (r.given_split == "test") for row, r in zip(made.rows, records, strict=True))
    val = {records[int(i)].patient_id for i in made.indices("val")}
    assert val
    assert not val & {records[int(i)].patient_id for i in made.indices("train")}


def test_given_split_that_leaks_is_followed_and_called_optimistic() -> None:
    records = given(table(), ["train", "val", "test"], by="image_id")
    made = split(records, protocol="auto")
    assert "patient(s) on several sides: optimistic" in made.protocol
    assert [row.side for row in made.rows] == records.column("given_split").tolist()


def test_folds_ignore_the_given_split() -> None:
    records = given(table(), ["train", "test"])
    assert split(records, protocol="auto", kfolds=3).protocol.startswith("patient-disjoint, fold 0 of 3")
    with pytest.raises(DataError, match="kfolds excludes a given split"):
        SplitSpec("given", kfolds=3)


def test_saved_split_places_other_tiles_of_the_same_groups() -> None:
    records = table()
    made = split(records, protocol="auto")
    new_tiles = [dataclasses.replace(r, image_id=f"new{i}", pixel_hash=f"new{i:013d}") for i, r in enumerate(records)]
    unknown_patient = dataclasses.replace(new_tiles[0], image_id="stranger", patient_id="P99", pixel_hash="stranger")
    placed = place(Split.from_json(made.to_json()), Records([*new_tiles, unknown_patient]))
    assert [row.side for row in placed.rows[:-1]] == [row.side for row in made.rows]
    assert placed.rows[-1].side == "test"
