"""Splits: what they promise holds for any table, and what they cannot give they say."""

import csv
import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from data_pipelines.breakhis.filenames import DUPLICATE_SLIDES, MAGNIFICATIONS, PUBLISHED_COUNTS
from data_pipelines.errors import DataError
from data_pipelines.records import Record, Records
from data_pipelines.split_groups import Member
from data_pipelines.split_spec import SplitSpec, describe
from data_pipelines.splits import Row, Split, check, make_split, place

BENIGN = ("A", "F", "PT", "TA")
PUBLISHED_PATIENTS = {"A": 4, "F": 10, "PT": 3, "TA": 7, "DC": 38, "LC": 5, "MC": 9, "PC": 6}
ACROSS = ["case", "patient"]
FIELD = {"case": "case_id", "patient": "patient_id"}


def _hash(*words: object) -> str:
    return hashlib.sha256(repr(words).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Table:
    """All images of a dataset, and the view of it that one magnification gives."""

    rows: tuple[Record, ...]

    @property
    def members(self) -> list[Member]:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        record_of = {row.patient_id: row for row in self.rows}
        for row in self.rows:
            counts[row.patient_id][row.magnification] += 1
        return [Member(p, record_of[p].case_id, record_of[p].label, dict(counts[p])) for p in sorted(counts)]

    def records(self, magnification: str = "") -> Records:
        return Records(row for row in self.rows if magnification in ("", row.magnification))

    def split(
        self, spec: SplitSpec | None = None, magnification: str = "", order: Sequence[int] = (), **fields: Any
    ) -> Split:
        records = self.records(magnification)
        if len(order):
            records = records.take(order)
        labels = records.column("label").tolist()
        return make_split(records, labels, self.members, spec or SplitSpec(**fields), DUPLICATE_SLIDES)


def _patient(subtype: str, slide: str, counts: dict[str, int], label: str = "", case: str = "") -> list[Record]:
    cls = "B" if subtype in BENIGN else "M"
    return [
        Record(
            image_id=f"SOB_{cls}_{subtype}-14-{slide}-{magnification[:-1]}-{i:03d}",
            label=label or ("benign" if cls == "B" else "malignant"),
            subtype=subtype,
            patient_id=f"SOB_{cls}_{subtype}_14-{slide}",
            case_id=case or f"14-{slide.rstrip('ABCDEFG')}",
            magnification=magnification,
            pixel_hash=_hash(subtype, slide, magnification, i),
        )
        for magnification, n in counts.items()
        for i in range(1, n + 1)
    ]


def _random_table(seed: int, copies: int = 0, magnifications: Sequence[str] = ("40X", "100X", "400X")) -> Table:
    """10 to 35 cases of one or two slides, of sizes from one image to fifteen; `copies` pictures occur again."""
    rng = np.random.default_rng(seed)
    rows: list[Record] = []
    for case in range(int(rng.integers(10, 36))):
        subtype = "F" if case < 3 else "DC" if case < 6 else str(rng.choice(list(PUBLISHED_COUNTS)))
        for suffix in ("", "CD")[: int(rng.integers(1, 3))]:
            counts = {m: int(rng.integers(1, 15)) for m in magnifications}
            rows += _patient(subtype, f"{1000 + case}{suffix}", counts)
    for _ in range(copies):
        # Copies of the same class: other patients' slides among them.
        one, other = rng.integers(len(rows), size=2)
        if rows[one].label == rows[other].label and rows[one].magnification == rows[other].magnification:
            rows[other] = dataclasses.replace(rows[other], pixel_hash=rows[one].pixel_hash)
    return Table(tuple(rows))


def _published_table(seed: int) -> Table:
    """82 patients in BreakHis's published numbers; who has how many images is random."""
    rng = np.random.default_rng(seed)
    slides = itertools.count(20_000)
    rows: list[Record] = []
    for subtype, patients in PUBLISHED_PATIENTS.items():
        share = rng.dirichlet(np.full(patients, 8.0))  # 10 to 40 images each, as in the published dataset
        spread = [rng.multinomial(total - 3 * patients, share) + 3 for total in PUBLISHED_COUNTS[subtype]]
        for patient in range(patients):
            counts = {m: int(spread[i][patient]) for i, m in enumerate(MAGNIFICATIONS)}
            rows += _patient(subtype, str(next(slides)), counts)
    return Table(tuple(rows))


def _sides(split: Split) -> dict[str, str]:
    return {row.image_id: row.side for row in split.rows}


def _assert_disjoint(split: Split, records: Records, field: str) -> None:
    """By the table, not by what the split says of itself."""
    sides = _sides(split)
    for key in ("image_id", "pixel_hash", field):
        where: dict[str, set[str]] = defaultdict(set)
        for record in records:
            if sides[record.image_id]:
                where[getattr(record, key)].add(sides[record.image_id])
        assert max(len(s) for s in where.values()) == 1, key


@pytest.mark.parametrize("duplicates", ["drop", "keep"])
@pytest.mark.parametrize("kfolds", [0, 5])
@pytest.mark.parametrize("protocol", ACROSS)
@pytest.mark.parametrize("seed", range(3))
def test_no_group_and_no_picture_stands_on_two_sides(protocol: str, kfolds: int, duplicates: str, seed: int) -> None:
    table = _random_table(seed, copies=40 if duplicates == "drop" else 4)
    spec = SplitSpec(protocol, seed=seed, kfolds=kfolds, fold=kfolds and seed % kfolds, duplicates=duplicates)
    split = table.split(spec)
    _assert_disjoint(split, table.records(), FIELD[protocol])
    assert {row.side for row in split.rows if row.side} == {"train", "val", "test"}
    if duplicates == "keep":
        assert all(row.side for row in split.rows)
    else:
        # One of each picture is left, and nothing else was dropped.
        kept = [row.pixel_hash for row in split.rows if row.side]
        assert sorted(kept) == sorted({row.pixel_hash for row in split.rows})


@pytest.mark.parametrize("seed", range(3))
def test_single_images_are_stratified_within_rounding(seed: int) -> None:
    table = _random_table(seed)
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


@pytest.mark.parametrize("duplicates", ["drop", "keep"])
def test_copies_do_not_stand_on_two_sides_of_an_image_split(duplicates: str) -> None:
    table = _random_table(0, copies=60, magnifications=("100X",))
    split = table.split(protocol="image", duplicates=duplicates)
    _assert_disjoint(split, table.records(), "image_id")
    n_copies = len(split.rows) - len({row.pixel_hash for row in split.rows})
    assert n_copies > 10
    assert split.left_out() == ({"identical pixels, another copy is kept": n_copies} if duplicates == "drop" else {})


@pytest.mark.parametrize("protocol", ACROSS)
@pytest.mark.parametrize(("test_fraction", "val_fraction"), [(0.25, 0.2), (0.1, 0.3)])
def test_shares_are_near_what_was_asked(protocol: str, test_fraction: float, val_fraction: float) -> None:
    for seed in range(2):
        table = _published_table(seed)
        split = table.split(protocol=protocol, test_fraction=test_fraction, val_fraction=val_fraction, seed=seed)
        labels = table.records().column("label")
        for label in ("benign", "malignant"):  # of either class, not only of both together
            side = np.array([row.side for row in split.rows])[labels == label]
            assert (side == "test").mean() == pytest.approx(test_fraction, abs=0.05)
            rest = side[side != "test"]
            assert (rest == "val").mean() == pytest.approx(val_fraction, abs=0.06)


@pytest.mark.parametrize("protocol", [*ACROSS, "image"])
def test_a_seed_gives_one_split_and_another_seed_another(protocol: str) -> None:
    table = _random_table(7, copies=10)
    assert table.split(protocol=protocol, seed=3) == table.split(protocol=protocol, seed=3)
    assert table.split(protocol=protocol, seed=4).hash != table.split(protocol=protocol, seed=3).hash


@pytest.mark.parametrize("duplicates", ["drop", "keep"])
@pytest.mark.parametrize("protocol", [*ACROSS, "image"])
def test_the_order_of_rows_does_not_matter(protocol: str, duplicates: str) -> None:
    table = _random_table(5, copies=8, magnifications=("40X",))
    order = np.random.default_rng(0).permutation(len(table.rows))
    one, other = (table.split(protocol=protocol, duplicates=duplicates, order=o) for o in ((), order))
    assert [row.image_id for row in one.rows] != [row.image_id for row in other.rows]
    assert _sides(one) == _sides(other)
    assert one.hash == other.hash


def test_the_order_of_members_does_not_matter() -> None:
    table = _random_table(5)
    labels = table.records().column("label").tolist()
    one, other = (make_split(table.records(), labels, m, SplitSpec()) for m in (table.members, table.members[::-1]))
    assert one == other


def test_the_hash_changes_with_a_side_and_with_what_is_kept_apart() -> None:
    split = _random_table(1).split()
    moved = (dataclasses.replace(split.rows[0], side="" if split.rows[0].side else "test"), *split.rows[1:])
    assert dataclasses.replace(split, rows=moved).hash != split.hash
    assert dataclasses.replace(split, rows=split.rows[1:]).hash != split.hash
    assert dataclasses.replace(split, group_by="patient_id").hash != split.hash
    assert dataclasses.replace(split, rows=split.rows[::-1]).hash == split.hash


@pytest.mark.parametrize("kfolds", [0, 4])
@pytest.mark.parametrize("protocol", ACROSS)
def test_a_group_stands_on_the_same_side_at_every_magnification(protocol: str, kfolds: int) -> None:
    table = _random_table(2)
    # A slide of which one magnification is lacking, as happens in a part of the dataset.
    table = Table(tuple(r for r in table.rows if not (r.case_id == "14-1004" and r.magnification == "40X")))
    side_of: dict[str, set[str]] = defaultdict(set)
    for magnification in ("", "40X", "100X", "400X"):
        for row in table.split(protocol=protocol, kfolds=kfolds, magnification=magnification).rows:
            side_of[row.group].add(row.side)
    assert max(len(sides) for sides in side_of.values()) == 1


@pytest.mark.parametrize("protocol", [*ACROSS, "image"])
@pytest.mark.parametrize("kfolds", [2, 4])
def test_every_image_is_tested_in_exactly_one_fold(protocol: str, kfolds: int) -> None:
    table = _random_table(14, copies=5)
    tested: Counter[str] = Counter()
    for fold in range(kfolds):
        split = table.split(protocol=protocol, kfolds=kfolds, fold=fold)
        tested.update(row.image_id for row in split.rows if row.side == "test")
        if protocol in FIELD:
            _assert_disjoint(split, table.records(), FIELD[protocol])
    kept = {row.image_id for row in split.rows if row.side}
    assert tested == Counter(kept)


def test_five_folds_by_case_of_the_published_table() -> None:
    for seed in range(2):
        table = _published_table(seed)
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


def test_eight_classes_in_more_folds_than_a_class_has_patients() -> None:
    table = _published_table(0)
    records = table.records("40X")
    subtype_of = {record.patient_id: record.subtype for record in records}
    members = [dataclasses.replace(m, label=subtype_of[m.patient_id]) for m in table.members]
    lacking = 0
    for fold in range(5):
        split = make_split(records, records.column("subtype").tolist(), members, SplitSpec(kfolds=5, fold=fold))
        _assert_disjoint(split, records, "case_id")
        # Three patients with phyllodes tumours: two folds have none to test on, and say so.
        warned = [text for text in split.warnings if "'PT' in test" in text]
        tested = {r.subtype for r, row in zip(records, split.rows, strict=True) if row.side == "test"}
        assert warned == (
            [] if "PT" in tested else ["no image of class 'PT' in test: the class has 3 group(s) to divide"]
        )
        lacking += bool(warned)
    assert lacking == 2


def test_no_validation_side() -> None:
    for protocol in (*ACROSS, "image"):
        split = _random_table(4).split(protocol=protocol, val_fraction=0.0)
        assert {row.side for row in split.rows} == {"train", "test"}
        assert len(split.indices("val")) == 0
        assert split.warnings == ()


def test_the_test_side_does_not_depend_on_the_validation_share() -> None:
    table = _random_table(4)
    one, other = (set(table.split(val_fraction=v).indices("test").tolist()) for v in (0.0, 0.4))
    assert one == other


@pytest.mark.parametrize("n", [0, 5])
def test_one_class_only_is_an_error(n: int) -> None:
    table = Table(tuple(_patient("F", "1000", {"40X": n}) if n else ()))
    only = "benign" if n else "no class"
    with pytest.raises(
        DataError, match=rf"all {n} images are of one class \({only}\): a classifier needs at least two"
    ):
        table.split()


def _few_benign(n_cases: int) -> Table:
    rows = [r for i in range(n_cases) for r in _patient("F", str(1000 + i), {"40X": 4})]
    return Table(tuple(rows + [r for i in range(12) for r in _patient("DC", str(2000 + i), {"40X": 4})]))


@pytest.mark.parametrize(("n_cases", "lacking"), [(1, ["val", "test"]), (2, ["val"]), (3, [])])
def test_a_class_with_too_few_groups_is_named_not_a_crash(n_cases: int, lacking: list[str]) -> None:
    for seed in range(5):
        split = _few_benign(n_cases).split(seed=seed)
        assert list(split.warnings) == [
            f"no image of class 'benign' in {side}: the class has {n_cases} group(s) to divide" for side in lacking
        ]


def test_every_side_has_every_class_where_there_are_groups_enough() -> None:
    # By shares alone, validation would get none of three equal groups: one is tested on, and a half is
    # farther from a fifth than nothing is.
    for n_cases, test_fraction in ((3, 0.25), (4, 0.1), (3, 0.1)):
        for seed in range(3):
            split = _few_benign(n_cases).split(seed=seed, test_fraction=test_fraction)
            assert split.warnings == ()
            assert {row.side for row in split.rows if "_B_" in row.image_id} == {"train", "val", "test"}


def test_a_class_that_training_would_never_see_is_an_error() -> None:
    table = _few_benign(1)
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


def _with_13412(magnifications: Sequence[str] = ("40X", "100X"), relabel: bool = False) -> Table:
    """A table with the slide that is filed under two subtypes: the same pixels under two names."""
    counts = dict.fromkeys(magnifications, 6)
    lobular = _patient("LC", "13412", counts)
    ductal = [
        dataclasses.replace(copy, pixel_hash=original.pixel_hash, label="benign" if relabel else copy.label)
        for copy, original in zip(_patient("DC", "13412", counts), lobular, strict=True)
    ]
    others = _random_table(14, magnifications=magnifications).rows
    return Table((*ductal, *lobular, *others))


@pytest.mark.parametrize("protocol", [*ACROSS, "image"])
def test_the_known_duplicate_slide_is_dropped_and_reported(protocol: str) -> None:
    split = _with_13412().split(protocol=protocol)
    assert split.left_out() == {"known duplicate: the pictures of SOB_M_LC_14-13412": 12}
    for row in split.rows:
        assert bool(row.side) == (not row.image_id.startswith("SOB_M_DC-14-13412-"))


def test_the_known_duplicate_slide_stays_where_its_twin_is_absent() -> None:
    table = _with_13412()
    alone = Table(tuple(row for row in table.rows if row.patient_id != "SOB_M_LC_14-13412"))
    split = alone.split(protocol="patient")
    assert split.left_out() == {}
    assert all(row.side for row in split.rows)


@pytest.mark.parametrize("protocol", [*ACROSS, "image"])
def test_kept_duplicates_stand_on_one_side(protocol: str) -> None:
    table = _with_13412()
    seen = set()
    for seed in range(6):
        split = table.split(protocol=protocol, duplicates="keep", seed=seed, test_fraction=0.4)
        assert split.left_out() == {}
        _assert_disjoint(split, table.records(), "image_id")
        of = {row.image_id: row.side for row in split.rows}
        pairs = {(side, of[name.replace("_DC-", "_LC-")]) for name, side in of.items() if "_DC-14-13412-" in name}
        assert all(one == other for one, other in pairs)
        seen |= pairs
    assert len(seen) > 1  # they were put somewhere else by another seed, together


def test_kept_aliases_stand_on_one_side_even_with_other_bytes() -> None:
    # A copy that was saved anew as a lossy picture has other pixels: only the alias knows.
    table = _with_13412()
    rows = tuple(
        dataclasses.replace(row, pixel_hash=_hash("resaved", row.image_id)) if "_DC-14-13412-" in row.image_id else row
        for row in table.rows
    )
    for seed in range(6):
        split = Table(rows).split(protocol="patient", duplicates="keep", seed=seed)
        assert len({row.side for row in split.rows if "-14-13412-" in row.image_id}) == 1


def test_identical_pixels_under_contradicting_labels_are_all_dropped() -> None:
    table = _random_table(9)
    benign = next(i for i, row in enumerate(table.rows) if row.label == "benign")
    malignant = [i for i, row in enumerate(table.rows) if row.label == "malignant"][:2]
    rows = list(table.rows)
    for i in malignant:
        rows[i] = dataclasses.replace(rows[i], pixel_hash=rows[benign].pixel_hash)
    split = Table(tuple(rows)).split()
    assert split.left_out() == {"identical pixels under contradicting labels": 3}
    assert {i for i, row in enumerate(split.rows) if not row.side} == {benign, *malignant}


def test_of_identical_images_the_first_by_name_stays() -> None:
    table = _random_table(9)
    rows = list(table.rows)
    same = [i for i, row in enumerate(rows) if row.patient_id == rows[0].patient_id][:3]
    for i in same:
        rows[i] = dataclasses.replace(rows[i], pixel_hash=rows[same[0]].pixel_hash)
    order = np.arange(len(rows))[::-1]
    split = Table(tuple(rows)).split(order=order)
    kept = [row.image_id for row in split.rows if row.side and row.pixel_hash == rows[same[0]].pixel_hash[:16]]
    assert kept == [min(rows[i].image_id for i in same)]
    assert split.left_out() == {"identical pixels, another copy is kept": 2}


def test_indices_are_positions_in_the_table() -> None:
    table = _with_13412()
    split = table.split()
    sides = [split.indices(side) for side in ("train", "val", "test")]
    assert all(array.dtype == np.int64 for array in sides)
    placed = np.concatenate(sides)
    assert len(set(placed.tolist())) == len(placed) == len(table.rows) - 12
    assert all(split.rows[i].side == "val" for i in sides[1])


def test_json_round_trip() -> None:
    split = _with_13412().split()
    saved = json.loads(json.dumps(split.to_json()))
    again = Split.from_json(saved)
    assert again == dataclasses.replace(split, warnings=())
    assert saved["hash"] == again.hash == split.hash


@pytest.mark.parametrize("damage", ["side", "image", "missing", "doubled", "group_by", "hash"])
def test_a_damaged_saved_split_is_refused(damage: str) -> None:
    saved = _random_table(1).split().to_json()
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


@pytest.mark.parametrize("protocol", [*ACROSS, "image"])
@pytest.mark.parametrize("duplicates", ["drop", "keep"])
def test_placing_the_same_table_gives_the_same_split(protocol: str, duplicates: str) -> None:
    table = _with_13412()
    split = table.split(protocol=protocol, duplicates=duplicates)
    order = np.random.default_rng(0).permutation(len(table.rows))
    placed = place(split, table.records().take(order), DUPLICATE_SLIDES)
    assert placed.hash == split.hash
    assert placed.left_out() == split.left_out()
    assert [row.image_id for row in placed.rows] == table.records().take(order).column("image_id").tolist()


@pytest.mark.parametrize("protocol", ACROSS)
def test_another_magnification_of_trained_patients_stays_out_of_test(protocol: str) -> None:
    table = _random_table(6)
    split = table.split(protocol=protocol, magnification="100X")
    side_of = {row.group: row.side for row in split.rows}
    placed = place(split, table.records("400X"))
    assert {row.side for row in placed.rows} == {"train", "val", "test"}
    assert all(row.side == side_of[row.group] for row in placed.rows)
    # Of the same table split at 400X this is, indeed, the same split.
    assert placed.hash == table.split(protocol=protocol, magnification="400X").hash


def test_another_block_of_a_trained_case_stays_out_of_test() -> None:
    table = _random_table(6)
    split = table.split()
    row = next(r for r, placed in zip(table.rows, split.rows, strict=True) if placed.side == "train")
    other = _patient(row.subtype, f"{row.case_id.removeprefix('14-')}G", {"40X": 2})
    assert {r.side for r in place(split, Records(other)).rows} == {"train"}
    by_patient = table.split(protocol="patient")
    assert {r.side for r in place(by_patient, Records(other)).rows} == {"test"}  # as that protocol has it


@pytest.mark.parametrize("protocol", [*ACROSS, "image"])
def test_unknown_patients_are_test(protocol: str) -> None:
    table = _random_table(6)
    placed = place(table.split(protocol=protocol), Records(_patient("F", "99999", {"40X": 3})))
    assert [row.side for row in placed.rows] == ["test"] * 3


@pytest.mark.parametrize("protocol", [*ACROSS, "image"])
def test_a_known_picture_under_another_name_takes_its_side(protocol: str) -> None:
    table = _random_table(6)
    split = table.split(protocol=protocol)
    renamed = Records(
        dataclasses.replace(row, image_id=f"SOB_B_F-14-99999-40-{i:03d}", patient_id="x", case_id="x")
        for i, row in enumerate(table.rows)
    )
    assert [row.side for row in place(split, renamed).rows] == [row.side for row in split.rows]


def test_a_known_name_with_other_pixels_goes_by_its_group() -> None:
    table = _random_table(6)
    split = table.split()
    other = Records(dataclasses.replace(row, pixel_hash=_hash("other", row.image_id)) for row in table.rows)
    placed = place(split, other)
    assert [row.side for row in placed.rows] == [row.side for row in split.rows]
    assert all(row.pixel_hash == record.pixel_hash[:16] for row, record in zip(placed.rows, other, strict=True))


@pytest.mark.parametrize("protocol", ACROSS)
@pytest.mark.parametrize("trained_on", ["LC", "DC"])
def test_the_alias_of_a_trained_patient_is_not_new(protocol: str, trained_on: str) -> None:
    # Trained with one copy of the slide; asked of the other one, at a magnification never seen.
    table = _with_13412()
    twin = "SOB_M_LC_14-13412" if trained_on == "DC" else "SOB_M_DC_14-13412"
    known = Table(tuple(row for row in table.rows if row.patient_id != twin))
    asked = Records(row for row in table.rows if row.patient_id == twin and row.magnification == "40X")
    for seed in range(4):
        split = known.split(protocol=protocol, magnification="100X", seed=seed)
        side = next(row.side for row in split.rows if f"_{trained_on}-14-13412-" in row.image_id)
        assert {row.side for row in place(split, asked, DUPLICATE_SLIDES).rows} == {side}


def test_placing_drops_an_alias_beside_its_twin() -> None:
    table = _with_13412()
    placed = place(table.split(magnification="40X"), table.records("100X"), DUPLICATE_SLIDES)
    assert placed.left_out() == {"known duplicate: the pictures of SOB_M_LC_14-13412": 6}


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([Row("a", "train", "1", "p"), Row("a", "test", "1", "p")], "the image 'a'"),
        ([Row("a", "train", "1", "p"), Row("b", "val", "2", "p")], r"the identical image 'p' \(b\)"),
        ([Row("a", "val", "1", "p"), Row("b", "test", "1", "q")], r"the group '1' \(b\) is in both val and test"),
    ],
)
def test_check_finds_a_leak(rows: list[Row], what: str) -> None:
    with pytest.raises(DataError, match=f"leak: {what}"):
        check(Split("by hand", "case_id", tuple(rows)))
    # What is left out leaks nothing.
    check(Split("by hand", "case_id", (dataclasses.replace(rows[0], side="", note="left out"), rows[1])))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"protocol": "slides"},
            "protocol='slides' is not one of auto, case, patient, slide, source, image, given, folds",
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
def test_a_wrong_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"^data\.split\.{message}"):
        SplitSpec(**fields)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (SplitSpec(), "case-disjoint, 25% test, seed 0"),
        (SplitSpec("patient", kfolds=5, fold=2, seed=7), "patient-disjoint (slide folders), fold 2 of 5, seed 7"),
        (SplitSpec("image"), "image-level (patients on both sides: optimistic), 25% test, seed 0"),
        (SplitSpec("folds", fold=3, folds_dir="x"), "official fold 3 (patient-disjoint)"),
        # With folds, the share is no promise and is not looked at.
        (SplitSpec(kfolds=4, test_fraction=0.0), "case-disjoint, fold 0 of 4, seed 0"),
    ],
)
def test_the_protocol_in_words(spec: SplitSpec, words: str) -> None:
    assert describe(spec, _with_13412().records()) == words


def test_csv(tmp_path: pathlib.Path) -> None:
    table = _with_13412()
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


def test_csv_of_another_table_is_an_error(tmp_path: pathlib.Path) -> None:
    table = _random_table(0)
    path = tmp_path / "split.csv"
    path.write_text("of an earlier run")
    with pytest.raises(ValueError, match="zip"):
        table.split().write_csv(path, table.records().take(range(3)), ["benign"] * 3)
    assert path.read_text() == "of an earlier run"
