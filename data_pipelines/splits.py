"""Who trains and who tests: pure functions over a table of records.

A split is made in two stages, test first and validation out of the rest, whatever the protocol:

* `case` (default) and `patient`: whole groups go to a side, stratified over class and magnification.
  Groups are weighed over all magnifications of the dataset, so a case stands on the same side in a run
  at 40X and in one at 400X.
* `image`: single images, stratified. One patient's images stand on both sides: optimistic, and named so.
* `folds`: test sets as published (Spanhol et al. 2016), read from `dsfoldN.txt`.
* `kfolds > 0`: test is fold `fold` (0-based) of k, for `case`, `patient` and `image`.
"""

import csv
import dataclasses
import hashlib
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.duplicates import Unions, find_duplicates
from data_pipelines.errors import DataError
from data_pipelines.official_folds import read_folds
from data_pipelines.records import Record, Records
from data_pipelines.stratify import assign
from histojax.files import replacing

SIDES = ("train", "val", "test")
PROTOCOLS = ("case", "patient", "image", "folds")


@dataclasses.dataclass(frozen=True)
class Member:
    """A patient as the whole dataset knows it, whichever magnification was prepared."""

    patient_id: str
    case_id: str
    label: str
    images: Mapping[str, int]  # by magnification


@dataclasses.dataclass(frozen=True)
class SplitSpec:
    """How to split; the fields of `config.data.split`.

    Attributes:
      protocol: one of `PROTOCOLS`.
      test_fraction: share of all images (`kfolds` and `folds` ignore it).
      val_fraction: share of what is not test; 0 for no validation side.
      seed: of the random order.
      kfolds: number of folds; 0 for a single hold-out.
      fold: which fold is the test side: 0 … kfolds-1, or 1 … 5 for `folds`.
      folds_dir: folder with `dsfold1.txt` … `dsfold5.txt`.
      duplicates: `drop` keeps one of each set of identical images; `keep` keeps them together on one side.
    """

    protocol: str = "case"
    test_fraction: float = 0.25
    val_fraction: float = 0.2
    seed: int = 0
    kfolds: int = 0
    fold: int = 0
    folds_dir: str = ""
    duplicates: str = "drop"

    def __post_init__(self) -> None:
        def require(ok: bool, message: str) -> None:
            if not ok:
                raise DataError(f"data.split.{message}")

        require(self.protocol in PROTOCOLS, f"protocol='{self.protocol}' is not one of {', '.join(PROTOCOLS)}")
        require(
            self.duplicates in ("drop", "keep"),
            f"duplicates='{self.duplicates}' is neither 'drop' nor 'keep'",
        )
        require(0 <= self.val_fraction < 1, f"val_fraction={self.val_fraction} is not in [0, 1)")
        if self.protocol == "folds":
            require(1 <= self.fold <= 5, f"fold={self.fold}: the official folds are 1 to 5")
            require(
                bool(self.folds_dir),
                "folds_dir is empty: name the folder that holds dsfold1.txt … dsfold5.txt",
            )
            require(not self.kfolds, "kfolds and the official folds exclude each other: set kfolds=0")
        elif self.kfolds:
            require(self.kfolds >= 2, f"kfolds={self.kfolds} is not 0 or at least 2")
            require(0 <= self.fold < self.kfolds, f"fold={self.fold} is not in 0 … {self.kfolds - 1}")
        else:
            require(self.fold == 0, f"fold={self.fold} has no meaning without kfolds or protocol=folds")
            require(0 < self.test_fraction < 1, f"test_fraction={self.test_fraction} is not in (0, 1)")

    def describe(self) -> str:
        """The protocol in a few words, as results print it."""
        name = {
            "case": "case-disjoint",
            "patient": "patient-disjoint (slide folders)",
            "image": "image-level (patients on both sides: optimistic)",
            "folds": f"official fold {self.fold} (patient-disjoint)",
        }[self.protocol]
        if self.protocol == "folds":
            return name
        if self.kfolds:
            return f"{name}, fold {self.fold} of {self.kfolds}, seed {self.seed}"
        return f"{name}, {self.test_fraction:.0%} test, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Row:
    """One image's place; `side` is empty for an image left out, and `note` then says why."""

    image_id: str
    side: str
    group: str
    pixel_hash: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Split:
    """A split of a table of records, row by row in the table's order."""

    protocol: str
    group_by: str  # the record's field that must not stand on two sides; empty for `image`
    rows: tuple[Row, ...]
    warnings: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """Identifies protocol and sides, independent of the order of rows."""
        lines = sorted(f"{row.image_id},{row.side}" for row in self.rows)
        return hashlib.sha256("\n".join([self.group_by, *lines]).encode()).hexdigest()[:16]

    def indices(self, side: str) -> np.ndarray:
        """Positions in the table of the images of a side, `int64 [n]`."""
        return np.array([i for i, row in enumerate(self.rows) if row.side == side], dtype=np.int64)

    def left_out(self) -> dict[str, int]:
        """How many images were left out, by reason."""
        return dict(Counter(row.note for row in self.rows if not row.side))

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps: enough to place any image, also one of another root."""
        return {
            "protocol": self.protocol,
            "group_by": self.group_by,
            "hash": self.hash,
            "rows": [[row.image_id, row.side, row.group, row.pixel_hash, row.note] for row in self.rows],
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Split":
        """Reads `to_json`.

        Raises:
          DataError: the rows are not those of the recorded hash.
        """
        split = cls(saved["protocol"], saved["group_by"], tuple(Row(*row) for row in saved["rows"]))
        if split.hash != saved["hash"]:
            raise DataError(f"the saved split is damaged: its rows hash to {split.hash}, recorded is {saved['hash']}")
        return split

    def write_csv(self, path: pathlib.Path, records: Records, labels: Sequence[str]) -> None:
        """Writes the split beside what is known of each image, to a temporary name first."""
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["image_id", "split", "label", "patient_id", "case_id", "magnification", "group", "note"])
            table = zip(self.rows, records, labels, strict=True)
            for row, record, label in sorted(table, key=lambda line: line[0].image_id):
                place = [record.patient_id, record.case_id, record.magnification, row.group, row.note]
                writer.writerow([row.image_id, row.side, label, *place])


def make_split(
    records: Records,
    labels: Sequence[str],
    members: Sequence[Member],
    spec: SplitSpec,
    aliases: Mapping[str, str] | None = None,
) -> Split:
    """Splits a dataset.

    Args:
      records: the table.
      labels: class name of each record in the task at hand.
      members: the patients of the whole dataset; those of `records` are among them.
      spec: how.
      aliases: patient -> patient whose images are the same pictures under another name.

    Raises:
      DataError: fewer than two classes, a class that training would never see, bad fold files, a leak.
    """
    classes = sorted(set(labels))
    if len(classes) < 2:
        only = classes[0] if classes else "no class"
        raise DataError(f"all {len(records)} images are of one class ({only}): a classifier needs at least two")
    aliases = dict(aliases or {})
    group_by = {"case": "case_id", "patient": "patient_id", "folds": "patient_id", "image": ""}[spec.protocol]
    dropped = find_duplicates(records, labels, aliases) if spec.duplicates == "drop" else {}
    groups = _groups(records, members, group_by, aliases if spec.duplicates == "keep" else {}, spec.duplicates)
    cells = _cells(records, labels, members, groups, group_by, dropped)

    notes = dict(dropped)
    if spec.protocol == "folds":
        test, absent = _official_test_groups(records, groups, spec, dropped)
        notes |= absent
    else:
        fractions = [1 / spec.kfolds] * spec.kfolds if spec.kfolds else [spec.test_fraction, 1 - spec.test_fraction]
        parts = assign(cells, fractions, _rng(spec.seed, "test"), coverage=not spec.kfolds)
        test = {group for group, part in parts.items() if part == (spec.fold if spec.kfolds else 0)}
    rest = {group: cell for group, cell in cells.items() if group not in test}
    val: set[str] = set()
    if spec.val_fraction:
        parts = assign(rest, [spec.val_fraction, 1 - spec.val_fraction], _rng(spec.seed, "val"))
        val = {group for group, part in parts.items() if part == 0}

    rows = []
    for record, group in zip(records, groups, strict=True):
        side = "test" if group in test else "val" if group in val else "train"
        note = notes.get(record.image_id, "")
        rows.append(Row(record.image_id, "" if note else side, _key(record, group_by), record.pixel_hash[:16], note))
    split = Split(spec.describe(), group_by, tuple(rows), tuple(_coverage_warnings(rows, labels, classes, spec)))
    check(split)
    return split


def check(split: Split) -> None:
    """Verifies what a split promises.

    Raises:
      DataError: an image, identical pixels or a group on two sides.
    """
    for what, key in (("image", "image_id"), ("identical image", "pixel_hash"), ("group", "group")):
        sides: dict[str, str] = {}
        for row in split.rows:
            if not row.side:
                continue
            value = getattr(row, key)
            if sides.setdefault(value, row.side) != row.side:
                raise DataError(
                    f"leak: the {what} '{value}' ({row.image_id}) stands in {sides[value]} and in {row.side}; "
                    "with data.split.duplicates=drop identical images are kept once"
                )


def place(saved: Split, records: Records, aliases: Mapping[str, str] | None = None) -> Split:
    """Applies a saved split to another table: who was trained on stays out of every test.

    An image takes the side of its own name, else of identical pixels, else of its group; an image of which
    nothing is known is new, hence test. `aliases` is as in `make_split`: patients that are each other's copies
    count as one.
    """
    aliases = aliases or {}
    twins = {**aliases, **{twin: patient for patient, twin in aliases.items()}}
    patients = set(records.column("patient_id"))
    by_image = {row.image_id: row for row in saved.rows}
    by_pixels = {row.pixel_hash: row.side for row in saved.rows if row.side}
    by_group = {row.group: row.side for row in saved.rows if row.side}
    rows = []
    for record in records:
        pixels = record.pixel_hash[:16]
        known = by_image.get(record.image_id)
        group = _key(record, saved.group_by)
        twin = aliases.get(record.patient_id)
        if known is not None and known.pixel_hash == pixels:
            rows.append(known)
        elif twin in patients:
            rows.append(Row(record.image_id, "", group, pixels, f"known duplicate: the pictures of {twin}"))
        else:
            copied = by_group.get(twins.get(record.patient_id, ""))  # found where groups are patients
            side = by_pixels.get(pixels) or by_group.get(group) or copied or "test"
            rows.append(Row(record.image_id, side, group, pixels))
    return Split(saved.protocol, saved.group_by, tuple(rows))


def _key(record: Record, group_by: str) -> str:
    """What must not stand on two sides: the record's group, for single images their pixels."""
    return getattr(record, group_by) if group_by else record.pixel_hash[:16]


def _rng(seed: int, *words: str) -> np.random.Generator:
    digest = hashlib.sha256("/".join([str(seed), *words]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def _groups(
    records: Records, members: Sequence[Member], group_by: str, aliases: Mapping[str, str], duplicates: str
) -> list[str]:
    """The name of the set of each record that must stay together: its group, joined with its duplicates'."""
    if not group_by:
        return [_key(record, group_by) for record in records]
    unions = Unions()
    group_of = {member.patient_id: getattr(member, group_by) for member in members}
    for patient, twin in aliases.items():
        if patient in group_of and twin in group_of:
            unions.join(group_of[patient], group_of[twin])
    if duplicates == "keep":
        first: dict[str, str] = {}
        for record in records:
            group = getattr(record, group_by)
            unions.join(group, first.setdefault(record.pixel_hash, group))
    return [unions.root(_key(record, group_by)) for record in records]


def _cells(
    records: Records,
    labels: Sequence[str],
    members: Sequence[Member],
    groups: Sequence[str],
    group_by: str,
    dropped: Mapping[str, str],
) -> dict[str, Counter[tuple[str, str]]]:
    """Images of each group by (class, magnification), over the whole dataset where groups are patients."""
    cells: dict[str, Counter[tuple[str, str]]] = {}
    if not group_by:
        for record, label, group in zip(records, labels, groups, strict=True):
            if record.image_id not in dropped:
                cells.setdefault(group, Counter())[label, record.magnification] += 1
        return cells
    root_of = {getattr(record, group_by): group for record, group in zip(records, groups, strict=True)}
    kept = {r.patient_id for r in records if r.image_id not in dropped}
    prepared = {r.patient_id for r in records}
    for member in members:
        if member.patient_id in prepared and member.patient_id not in kept:
            continue  # all its images are copies
        key = getattr(member, group_by)
        cell = cells.setdefault(root_of.get(key, key), Counter())
        for magnification, count in member.images.items():
            cell[member.label, magnification] += count
    return cells


def _official_test_groups(
    records: Records, groups: Sequence[str], spec: SplitSpec, dropped: Mapping[str, str]
) -> tuple[set[str], dict[str, str]]:
    """The patients that the published fold tests on, and the images of which the fold does not speak."""
    sides = read_folds(pathlib.Path(spec.folds_dir), spec.fold)
    test: set[str] = set()
    absent: dict[str, str] = {}
    for record, group in zip(records, groups, strict=True):
        if record.image_id in dropped:
            continue
        side = sides.get(record.image_id)
        if side is None:
            absent[record.image_id] = f"not in official fold {spec.fold}"
        elif side == "test":
            test.add(group)
    for record, group in zip(records, groups, strict=True):
        if sides.get(record.image_id) == "train" and group in test and record.image_id not in dropped:
            raise DataError(
                f"{spec.folds_dir}/dsfold{spec.fold}.txt: {group} ({record.image_id}) stands in train and in test"
            )
    return test, absent


def _coverage_warnings(
    rows: Sequence[Row], labels: Sequence[str], classes: Sequence[str], spec: SplitSpec
) -> list[str]:
    """Names the classes that a side lacks; a class that training lacks is an error."""
    warnings = []
    for side in SIDES if spec.val_fraction else ("train", "test"):
        there = {label for row, label in zip(rows, labels, strict=True) if row.side == side}
        for missing in (name for name in classes if name not in there):
            groups = {row.group for row, label in zip(rows, labels, strict=True) if label == missing and row.side}
            fact = f"no image of class '{missing}' in {side}: the class has {len(groups)} group(s) to divide"
            if side == "train":
                raise DataError(f"{fact}; use another seed, fewer folds, or more data")
            warnings.append(fact)
    return warnings
