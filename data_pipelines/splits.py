"""Who trains and who tests: pure functions over a table of records.

A split is made in two stages, test first and validation out of the rest, whatever the protocol:

* `case` (default) and `patient`: whole groups go to a side, stratified over class (or labels) and magnification.
  Groups are weighed over all magnifications of the dataset, so a case stands on the same side in a run
  at 40X and in one at 400X.
* `slide` and `source` (the image that tiles were cut from): the same, for tiles whose patients are not known.
* `image`: single images, stratified. One patient's images stand on both sides: optimistic, and named so.
* `given`: the sides that the dataset's own table names; validation out of training if it names none.
* `auto`: the strictest that the data allow (`data_pipelines.split_spec.resolve`).
* `folds`: test sets as published (Spanhol et al. 2016), read from `dsfoldN.txt`.
* `listed`: all images of the patients that are named.
* `kfolds > 0`: test is fold `fold` (0-based) of k, for all but `given`, `folds` and `listed`.

What these are called in results: `data_pipelines.protocols`.
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
from data_pipelines.protocols import define
from data_pipelines.records import Record, Records, label_set
from data_pipelines.split_spec import Definition, SplitSpec, describe, group_field, resolve
from data_pipelines.stratify import assign
from histojax.core.files import atomic_write

SIDES = ("train", "val", "test")
OTHER_CLASS = "of a class that the protocol is not about"  # why an image is left out
Cell = Counter[tuple[str, str]]  # images by (class or label, magnification)


@dataclasses.dataclass(frozen=True)
class Member:
    """A patient as the whole dataset knows it, whichever magnification was prepared."""

    patient_id: str
    case_id: str
    label: str
    images: Mapping[str, int]  # by magnification


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
    definition: Definition | None = None  # what the protocol is called; None: of an older checkpoint

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
        named = {"definition": dataclasses.asdict(self.definition)} if self.definition else {}
        return named | {
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
        definition = Definition(**saved["definition"]) if "definition" in saved else None
        rows = tuple(Row(*row) for row in saved["rows"])
        split = cls(saved["protocol"], saved["group_by"], rows, definition=definition)
        if split.hash != saved["hash"]:
            raise DataError(f"the saved split is damaged: its rows hash to {split.hash}, recorded is {saved['hash']}")
        return split

    def write_csv(self, path: pathlib.Path, records: Records, labels: Sequence[str]) -> None:
        """Writes the split beside what is known of each image, to a temporary name first."""
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            known = ["patient_id", "case_id", "magnification"]
            writer.writerow(["image_id", "split", "label", *known, "group", "note", "protocol"])
            tag = self.definition.tag if self.definition else ""
            table = zip(self.rows, records, labels, strict=True)
            for row, record, label in sorted(table, key=lambda line: line[0].image_id):
                place = [record.patient_id, record.case_id, record.magnification, row.group, row.note]
                writer.writerow([row.image_id, row.side, label, *place, tag])


def make_split(
    records: Records,
    labels: Sequence[str],
    members: Sequence[Member],
    spec: SplitSpec,
    aliases: Mapping[str, str] | None = None,
    label_names: Sequence[str] = (),
) -> Split:
    """Splits a dataset.

    Args:
      records: the table.
      labels: class name of each record in the task at hand, empty where it is of none of them; of several labels their
        names joined by "+".
      members: the patients of the whole dataset; those of `records` are among them. Empty: `records` are all.
      spec: how.
      aliases: patient -> patient whose images are the same pictures under another name.
      label_names: all labels, where an image may have any number of them; empty: one class an image.

    Raises:
      DataError: fewer than two classes, a class that training would never see, a protocol that needs what is not
        known, bad fold files, a leak.
    """
    sets = [label_set(label) for label in labels]
    classes = list(label_names) or sorted(set(labels) - {""})
    if len(classes) < 2 and not label_names:
        only = classes[0] if classes else "no class"
        raise DataError(f"all {len(records)} images are of one class ({only}): a classifier needs at least two")
    aliases = dict(aliases or {})
    spec = resolve(spec, records)
    group_by = group_field(spec, records)
    inside = [i for i, label in enumerate(labels) if label or label_names]
    dropped = {}
    if spec.duplicates == "drop":
        dropped = find_duplicates(records.take(inside), [labels[i] for i in inside], aliases)
    dropped |= {records[i].image_id: OTHER_CLASS for i in set(range(len(records))) - set(inside)}
    groups = _groups(records, members, group_by, aliases if spec.duplicates == "keep" else {}, spec.duplicates)
    if members and group_by:
        cells = _member_cells(records, members, groups, group_by, dropped)
    else:
        cells = _record_cells(records, sets, groups, dropped, every=bool(label_names))

    notes = dict(dropped)
    if spec.protocol == "folds":
        test, absent = _official_test_groups(records, groups, spec, dropped)
        notes |= absent
    elif spec.protocol == "listed":
        test = {
            g
            for r, g in zip(records, groups, strict=True)
            if r.patient_id in spec.test_patients and r.image_id not in dropped
        }
        if not test:
            raise DataError("none of the patients that the protocol tests on is there: choose another protocol")
    elif spec.protocol == "given":
        test = _given_groups(records, groups, "test")
        if not test:
            raise DataError("the dataset's own split names no image 'test': set data.split.protocol=auto with kfolds")
    else:
        fractions = [1 / spec.kfolds] * spec.kfolds if spec.kfolds else [spec.test_fraction, 1 - spec.test_fraction]
        parts = assign(cells, fractions, _rng(spec.seed, "test"), coverage=not spec.kfolds)
        test = {group for group, part in parts.items() if part == (spec.fold if spec.kfolds else 0)}
    rest = {group: cell for group, cell in cells.items() if group not in test}
    val = _given_groups(records, groups, "val") - test if spec.protocol == "given" else set()
    if spec.val_fraction and not val:
        parts = assign(rest, [spec.val_fraction, 1 - spec.val_fraction], _rng(spec.seed, "val"))
        val = {group for group, part in parts.items() if part == 0}

    rows = []
    for record, group in zip(records, groups, strict=True):
        side = "test" if group in test else "val" if group in val else "train"
        note = notes.get(record.image_id, "")
        rows.append(Row(record.image_id, "" if note else side, _key(record, group_by), record.pixel_hash[:16], note))
    sides = SIDES if val or spec.val_fraction else ("train", "test")
    warnings = _coverage_warnings(rows, sets, classes, "label" if label_names else "class", sides)
    copies = spec.duplicates == "ignore"
    if copies:
        warnings += _copy_warnings(rows)
    split = Split(describe(spec, records), group_by, tuple(rows), tuple(warnings), define(spec, classes))
    check(split, copies)
    return split


def check(split: Split, copies: bool = False) -> None:
    """Verifies what a split promises; with `copies`, identical pixels may stand on two sides.

    Raises:
      DataError: an image, identical pixels or a group on two sides.
    """
    promises = [("image", "image_id")]
    promises += [] if copies else [("identical image", "pixel_hash")]
    promises += [] if copies and not split.group_by else [("group", "group")]  # single images are grouped by pixels
    for what, key in promises:
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
    by_side = sorted((row for row in saved.rows if row.side), key=lambda row: SIDES.index(row.side), reverse=True)
    by_pixels = {row.pixel_hash: row.side for row in by_side}  # of copies on two sides, training counts
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
    return Split(saved.protocol, saved.group_by, tuple(rows), definition=saved.definition)


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
        # Each image alone, in the order of pixels, so that without copies it is the same split.
        own = duplicates == "ignore"
        return [f"{_key(r, group_by)}/{r.image_id}" if own else _key(r, group_by) for r in records]
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


def _record_cells(
    records: Records,
    sets: Sequence[Sequence[str]],
    groups: Sequence[str],
    dropped: Mapping[str, str],
    every: bool,
) -> dict[str, Cell]:
    """Images of each group by (class or label, magnification); with `every`, all of them under the label ""."""
    cells: dict[str, Cell] = {}
    for record, names, group in zip(records, sets, groups, strict=True):
        if record.image_id not in dropped:
            cell = cells.setdefault(group, Counter())
            for name in (*names, "") if every else names:
                cell[name, record.magnification] += 1
    return cells


def _member_cells(
    records: Records, members: Sequence[Member], groups: Sequence[str], group_by: str, dropped: Mapping[str, str]
) -> dict[str, Cell]:
    """Images of each group by (class, magnification) over the whole dataset."""
    cells: dict[str, Cell] = {}
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


def _given_groups(records: Records, groups: Sequence[str], side: str) -> set[str]:
    return {group for record, group in zip(records, groups, strict=True) if record.given_split == side}


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


def _copy_warnings(rows: Sequence[Row]) -> list[str]:
    """How many test images are shown in training or validation, too, under another name."""
    seen = {row.pixel_hash for row in rows if row.side in ("train", "val")}
    n = sum(row.side == "test" and row.pixel_hash in seen for row in rows)
    words = "of identical pixels in training or validation: data.split.duplicates=ignore divides copies as they come"
    return [f"{n} test images have a copy {words}"] if n else []


def _coverage_warnings(
    rows: Sequence[Row], sets: Sequence[Sequence[str]], classes: Sequence[str], noun: str, sides: Sequence[str]
) -> list[str]:
    """Names the classes or labels that a side lacks; one that training lacks is an error."""
    warnings = []
    for side in sides:
        there = {name for row, names in zip(rows, sets, strict=True) if row.side == side for name in names}
        for missing in (name for name in classes if name not in there):
            groups = {row.group for row, names in zip(rows, sets, strict=True) if missing in names and row.side}
            fact = f"no image of {noun} '{missing}' in {side}: the {noun} has {len(groups)} group(s) to divide"
            if side == "train":
                raise DataError(f"{fact}; use another seed, fewer folds, or more data")
            warnings.append(fact)
    return warnings
