"""Properties that a split has for any table, and the errors and warnings where it cannot have them."""

import dataclasses
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.split_spec import SplitSpec, describe
from data_pipelines.splits import make_split
from tests.helpers.split_tables import (
    GROUP_FIELD,
    GROUPED_PROTOCOLS,
    Table,
    assert_disjoint,
    patient_records,
    published_table,
    random_table,
    side_of_image,
    table_with_13412,
    table_with_benign_cases,
)


@pytest.mark.parametrize("duplicates", ["drop", "keep"])
@pytest.mark.parametrize("kfolds", [0, 5])
@pytest.mark.parametrize("protocol", GROUPED_PROTOCOLS)
@pytest.mark.parametrize("seed", range(3))
def test_groups_and_copies_stay_on_one_side(protocol: str, kfolds: int, duplicates: str, seed: int) -> None:
    table = random_table(seed, copies=40 if duplicates == "drop" else 4)
    spec = SplitSpec(protocol, seed=seed, kfolds=kfolds, fold=kfolds and seed % kfolds, duplicates=duplicates)
    split = table.split(spec)
    assert_disjoint(split, table.records(), GROUP_FIELD[protocol])
    assert {row.side for row in split.rows if row.side} == {"train", "val", "test"}
    if duplicates == "keep":
        assert all(row.side for row in split.rows)
    else:
        # One copy of each image is left, and nothing else was dropped.
        kept = [row.pixel_hash for row in split.rows if row.side]
        assert sorted(kept) == sorted({row.pixel_hash for row in split.rows})


@pytest.mark.parametrize("seed", range(3))
def test_image_split_is_stratified_within_rounding(seed: int) -> None:
    table = random_table(seed)
    split = table.split(protocol="image", seed=seed)
    cells: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row, record in zip(split.rows, table.records(), strict=True):
        cells[record.label, record.magnification][row.side] += 1
    for counts in cells.values():
        n = counts.total()
        assert abs(counts["test"] - 0.25 * n) <= 0.5
        assert abs(counts["val"] - 0.2 * (n - counts["test"])) <= 0.5
    assert split.group_by == ""
    assert "optimistic" in split.protocol


@pytest.mark.parametrize("protocol", GROUPED_PROTOCOLS)
@pytest.mark.parametrize(("test_fraction", "val_fraction"), [(0.25, 0.2), (0.1, 0.3)])
def test_fractions_are_close_to_the_requested_ones(protocol: str, test_fraction: float, val_fraction: float) -> None:
    for seed in range(2):
        table = published_table(seed)
        split = table.split(protocol=protocol, test_fraction=test_fraction, val_fraction=val_fraction, seed=seed)
        labels = table.records().column("label")
        for label in ("benign", "malignant"):  # for each class, not only overall
            side = np.array([row.side for row in split.rows])[labels == label]
            assert (side == "test").mean() == pytest.approx(test_fraction, abs=0.05)
            rest = side[side != "test"]
            assert (rest == "val").mean() == pytest.approx(val_fraction, abs=0.06)


@pytest.mark.parametrize("protocol", [*GROUPED_PROTOCOLS, "image"])
def test_validation_folds_divide_what_is_not_tested(protocol: str) -> None:
    table = random_table(7, copies=10)
    splits = [table.split(protocol=protocol, val_folds=3, val_fold=fold) for fold in range(3)]
    for split in splits:
        assert_disjoint(split, table.records(), GROUP_FIELD.get(protocol, "pixel_hash"))
    sides = [[row.side for row in split.rows] for split in splits]
    for of_image in zip(*sides, strict=True):
        assert sorted(of_image) in (["train", "train", "val"], ["test"] * 3, [""] * 3)
    counts = [Counter(side)["val"] for side in sides]
    assert min(counts) > 0.2 * sum(counts)
    assert len({split.definition.tag for split in splits}) == 1
    assert splits[0].definition.tag != table.split(protocol=protocol).definition.tag


def test_more_validation_folds_than_groups_are_refused() -> None:
    with pytest.raises(DataError, match=r"groups are left beside the test side.*val_folds=99: use at most \d+ folds"):
        random_table(7).split(protocol="case", val_folds=99, val_fold=0)


@pytest.mark.parametrize("protocol", [*GROUPED_PROTOCOLS, "image"])
def test_split_is_a_function_of_the_seed(protocol: str) -> None:
    table = random_table(7, copies=10)
    assert table.split(protocol=protocol, seed=3) == table.split(protocol=protocol, seed=3)
    assert table.split(protocol=protocol, seed=4).hash != table.split(protocol=protocol, seed=3).hash


@pytest.mark.parametrize("duplicates", ["drop", "keep"])
@pytest.mark.parametrize("protocol", [*GROUPED_PROTOCOLS, "image"])
def test_row_order_does_not_matter(protocol: str, duplicates: str) -> None:
    table = random_table(5, copies=8, magnifications=("40X",))
    order = np.random.default_rng(0).permutation(len(table.rows))
    original, shuffled = (table.split(protocol=protocol, duplicates=duplicates, order=o) for o in ((), order))
    assert [row.image_id for row in original.rows] != [row.image_id for row in shuffled.rows]
    assert side_of_image(original) == side_of_image(shuffled)
    assert original.hash == shuffled.hash


def test_member_order_does_not_matter() -> None:
    table = random_table(5)
    labels = table.records().column("label").tolist()
    one, other = (make_split(table.records(), labels, m, SplitSpec()) for m in (table.members, table.members[::-1]))
    assert one == other


@pytest.mark.parametrize("kfolds", [0, 4])
@pytest.mark.parametrize("protocol", GROUPED_PROTOCOLS)
def test_group_has_the_same_side_at_every_magnification(protocol: str, kfolds: int) -> None:
    table = random_table(2)
    # One slide lacks a magnification, as some slides of the dataset do.
    table = Table(tuple(r for r in table.rows if not (r.case_id == "14-1004" and r.magnification == "40X")))
    side_of: dict[str, set[str]] = defaultdict(set)
    for magnification in ("", "40X", "100X", "400X"):
        for row in table.split(protocol=protocol, kfolds=kfolds, magnification=magnification).rows:
            side_of[row.group].add(row.side)
    assert max(len(sides) for sides in side_of.values()) == 1


@pytest.mark.parametrize("protocol", [*GROUPED_PROTOCOLS, "image"])
@pytest.mark.parametrize("kfolds", [2, 4])
def test_every_image_is_tested_in_exactly_one_fold(protocol: str, kfolds: int) -> None:
    table = random_table(14, copies=5)
    tested: Counter[str] = Counter()
    for fold in range(kfolds):
        split = table.split(protocol=protocol, kfolds=kfolds, fold=fold)
        tested.update(row.image_id for row in split.rows if row.side == "test")
        if protocol in GROUP_FIELD:
            assert_disjoint(split, table.records(), GROUP_FIELD[protocol])
    kept = {row.image_id for row in split.rows if row.side}
    assert tested == Counter(kept)


def test_five_case_folds_with_the_published_counts() -> None:
    for seed in range(2):
        table = published_table(seed)
        records = table.records("100X")
        assert len(records) == 2081
        assert len(set(records.column("patient_id"))) == 82
        labels = records.column("label")
        for fold in range(5):
            split = table.split(magnification="100X", kfolds=5, fold=fold, seed=seed)
            assert split.warnings == ()
            side = np.array([row.side for row in split.rows])
            for label in ("benign", "malignant"):
                assert {"train", "val", "test"} == set(side[labels == label])
                assert (side[labels == label] == "test").mean() == pytest.approx(0.2, abs=0.06)


def test_eight_classes_with_more_folds_than_patients_of_a_class() -> None:
    table = published_table(0)
    records = table.records("40X")
    subtype_of = {record.patient_id: record.subtype for record in records}
    members = [dataclasses.replace(m, label=subtype_of[m.patient_id]) for m in table.members]
    folds_without_pt = 0
    for fold in range(5):
        split = make_split(records, records.column("subtype").tolist(), members, SplitSpec(kfolds=5, fold=fold))
        assert_disjoint(split, records, "case_id")
        # Only three patients have phyllodes tumours: two folds test none, and each warns.
        warned = [text for text in split.warnings if "'PT' in test" in text]
        tested = {r.subtype for r, row in zip(records, split.rows, strict=True) if row.side == "test"}
        assert warned == (
            [] if "PT" in tested else ["no image of class 'PT' in test: the class has 3 group(s) to divide"]
        )
        folds_without_pt += bool(warned)
    assert folds_without_pt == 2


def test_no_validation_side() -> None:
    for protocol in (*GROUPED_PROTOCOLS, "image"):
        split = random_table(4).split(protocol=protocol, val_fraction=0.0)
        assert {row.side for row in split.rows} == {"train", "test"}
        assert len(split.indices("val")) == 0
        assert split.warnings == ()


def test_test_side_does_not_depend_on_val_fraction() -> None:
    table = random_table(4)
    without_val, with_val = (set(table.split(val_fraction=v).indices("test").tolist()) for v in (0.0, 0.4))
    assert without_val == with_val


@pytest.mark.parametrize("n", [0, 5])
def test_a_single_class_is_an_error(n: int) -> None:
    table = Table(tuple(patient_records("F", "1000", {"40X": n}) if n else ()))
    classes = "benign" if n else "no class"
    with pytest.raises(
        DataError, match=rf"all {n} images are of one class \({classes}\): a classifier needs at least two"
    ):
        table.split()


@pytest.mark.parametrize(("n_cases", "lacking"), [(1, ["val", "test"]), (2, ["val"]), (3, [])])
def test_class_with_too_few_groups_is_a_warning(n_cases: int, lacking: list[str]) -> None:
    for seed in range(5):
        split = table_with_benign_cases(n_cases).split(seed=seed)
        assert list(split.warnings) == [
            f"no image of class 'benign' in {side}: the class has {n_cases} group(s) to divide" for side in lacking
        ]


def test_every_side_has_every_class_if_there_are_enough_groups() -> None:
    # By fractions alone, validation would get none of three equal groups: one is in test, and half of the
    # remaining two is farther from a fifth than zero is.
    for n_cases, test_fraction in ((3, 0.25), (4, 0.1), (3, 0.1)):
        for seed in range(3):
            split = table_with_benign_cases(n_cases).split(seed=seed, test_fraction=test_fraction)
            assert split.warnings == ()
            assert {row.side for row in split.rows if "_B_" in row.image_id} == {"train", "val", "test"}


def test_class_missing_from_train_is_an_error() -> None:
    table = table_with_benign_cases(1)
    outcomes = Counter()
    for fold in range(3):
        try:
            table.split(kfolds=3, fold=fold)
            outcomes["split"] += 1
        except DataError as error:
            outcomes[str(error)] += 1
    remedy = "use another seed, fewer folds, or more data"
    assert outcomes == {
        "split": 2,
        f"no image of class 'benign' in train: the class has 1 group(s) to divide; {remedy}": 1,
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"protocol": "slides"},
            "protocol='slides' is not one of auto, case, patient, slide, source, site, image, given, folds",
        ),
        ({"duplicates": "twice"}, "duplicates='twice' is not one of drop, keep, ignore"),
        ({"test_fraction": 0.0}, r"test_fraction=0.0 is not in \(0, 1\)"),
        ({"test_fraction": 1.0}, "test_fraction=1.0"),
        ({"test_fraction": float("nan")}, "test_fraction=nan"),
        ({"test_fraction": 25}, "test_fraction=25"),
        ({"val_fraction": 1.0}, r"val_fraction=1.0 is not in \[0, 1\)"),
        ({"val_fraction": -0.1}, "val_fraction=-0.1"),
        ({"kfolds": 1}, "kfolds=1 is not 0 or at least 2"),
        ({"kfolds": -5}, "kfolds=-5"),
        ({"kfolds": 5, "fold": 5}, "fold=5 is not in 0 … 4"),
        ({"kfolds": 5, "fold": -1}, "fold=-1"),
        ({"protocol": "folds", "folds_dir": "x", "fold": 0}, "fold=0 is not in 1 … 5, the official folds"),
        ({"protocol": "folds", "folds_dir": "x", "fold": 6}, "fold=6 is not in 1 … 5, the official folds"),
        ({"protocol": "folds", "fold": 1}, "folds_dir is empty"),
        ({"protocol": "folds", "fold": 1, "folds_dir": "x", "kfolds": 5}, "kfolds excludes the official folds"),
    ],
)
def test_invalid_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"^data\.split\.{message}"):
        SplitSpec(**fields)


@pytest.mark.parametrize(
    ("spec", "description"),
    [
        (SplitSpec(), "case-disjoint, 25% test, seed 0"),
        (SplitSpec("patient", kfolds=5, fold=2, seed=7), "patient-disjoint (slide folders), fold 2 of 5, seed 7"),
        (SplitSpec("image"), "image-level (patients on both sides: optimistic), 25% test, seed 0"),
        (SplitSpec("folds", fold=3, folds_dir="x"), "official fold 3 (patient-disjoint)"),
        # With folds, test_fraction is ignored.
        (SplitSpec(kfolds=4, test_fraction=0.0), "case-disjoint, fold 0 of 4, seed 0"),
    ],
)
def test_protocol_description(spec: SplitSpec, description: str) -> None:
    assert describe(spec, table_with_13412().records()) == description
