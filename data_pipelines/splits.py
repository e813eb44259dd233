"""Splits: pure functions that divide a table of records into training, validation and test.

A split is made in two stages, whatever the protocol: first test, then validation out of the rest.

* `case` (default) and `patient`: whole groups go to a side, stratified by class (or labels) and magnification.
  Groups are weighted over all magnifications of the dataset, so a case is on the same side in a run at 40X and in one
  at 400X.
* `slide` and `source` (the image that tiles were cut from): the same, for tiles whose patients are unknown.
* `site`: whole hospitals or scanners; with as many folds as sites, each fold leaves one site out, in their order.
* `image`: single images, stratified. Images of one patient are on both sides: optimistic, and described as such.
* `given`: the sides in the dataset's own table; validation is taken out of training if the table names none.
* `auto`: the strictest protocol that the data allow (`data_pipelines.split_spec.resolve`).
* `folds`: published test sides (Spanhol et al. 2016), read from `dsfoldN.txt`.
* `listed`: all images of the listed patients are tested; those of validation may be listed as well.
* `kfolds > 0`: the test side is fold `fold` (0-based) of k; not for `given`, `folds` and `listed`.
* `val_folds > 0`: the validation side is fold `val_fold` (0-based) of the rest, whatever the protocol.

The names of these in results are in `data_pipelines.protocols`.
"""

import csv
import dataclasses
import hashlib
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.duplicates import find_duplicates
from data_pipelines.errors import DataError
from data_pipelines.protocols import define
from data_pipelines.records import Records, label_set
from data_pipelines.split_groups import (
    Cell,
    Member,
    crossing_cases,
    given_groups,
    group_key,
    group_names,
    known_sides,
    listed_groups,
    member_cells,
    official_test_groups,
    record_cells,
)
from data_pipelines.split_spec import (
    GROUPS,
    Definition,
    SplitSpec,
    count_groups,
    describe,
    group_field,
    group_warnings,
    resolve,
)
from data_pipelines.stratify import assign
from histojax.core.files import atomic_write
from histojax.core.split_hash import split_hash

SIDES = ("train", "val", "test")
OTHER_CLASS = "of a class that the protocol is not about"  # why an image is left out; stored in splits


@dataclasses.dataclass(frozen=True)
class Row:
    """The side of one image.

    Attributes:
      image_id: as in a record.
      side: one of `SIDES`; empty: left out.
      group: what must not be on two sides.
      pixel_hash: the first 16 hex digits of the record's.
      note: why the image is left out.
    """

    image_id: str
    side: str
    group: str
    pixel_hash: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Split:
    """A split of a table of records.

    Attributes:
      protocol: description of the protocol.
      group_by: the field of a record whose groups are not divided between sides; empty for `image`.
      rows: one per record, in the table's order.
      warnings: what a user should know about the split.
      definition: identity of the protocol; None: loaded from an older checkpoint.
    """

    protocol: str
    group_by: str
    rows: tuple[Row, ...]
    warnings: tuple[str, ...] = ()
    definition: Definition | None = None

    @property
    def hash(self) -> str:
        """Hash of groups and sides, independent of the order of rows."""
        return split_hash(self.group_by, ((row.image_id, row.side) for row in self.rows))

    @property
    def ignores_copies(self) -> bool:
        """Whether the protocol lets copies of a picture stand on two sides."""
        return self.definition is not None and self.definition.name.endswith("_with_copies")

    def indices(self, side: str) -> np.ndarray:
        """Return the positions in the table of a side's images, `int64 [n]`."""
        return np.array([i for i, row in enumerate(self.rows) if row.side == side], dtype=np.int64)

    def left_out(self) -> dict[str, int]:
        """Return the number of images left out, by reason."""
        return dict(Counter(row.note for row in self.rows if not row.side))

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint stores: enough to place any image, also one of another root."""
        named = {"definition": dataclasses.asdict(self.definition)} if self.definition else {}
        return named | {
            "protocol": self.protocol,
            "group_by": self.group_by,
            "hash": self.hash,
            "rows": [[row.image_id, row.side, row.group, row.pixel_hash, row.note] for row in self.rows],
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Split":
        """Read what `to_json` returned.

        Raises:
          DataError: the rows do not match the recorded hash.
        """
        definition = Definition(**saved["definition"]) if "definition" in saved else None
        rows = tuple(Row(*row) for row in saved["rows"])
        split = cls(saved["protocol"], saved["group_by"], rows, definition=definition)
        if split.hash != saved["hash"]:
            raise DataError(f"the saved split is damaged: its rows hash to {split.hash}, recorded is {saved['hash']}")
        return split

    def write_csv(self, path: pathlib.Path, records: Records, labels: Sequence[str]) -> None:
        """Write the split, with what is known about each image, atomically."""
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            known = ["patient_id", "case_id", "magnification"]
            further = records.further_columns()
            writer.writerow(["image_id", "split", "label", *known, "group", "note", "protocol", *further])
            tag = self.definition.tag if self.definition else ""
            more = list(zip(*further.values(), strict=True)) or [()] * len(records)
            table = zip(self.rows, records, labels, more, strict=True)
            for row, record, label, cells in sorted(table, key=lambda line: line[0].image_id):
                details = [record.patient_id, record.case_id, record.magnification, row.group, row.note]
                writer.writerow([row.image_id, row.side, label, *details, tag, *cells])


def make_split(
    records: Records,
    labels: Sequence[str],
    members: Sequence[Member],
    spec: SplitSpec,
    aliases: Mapping[str, str] | None = None,
    label_names: Sequence[str] = (),
) -> Split:
    """Split a dataset.

    Args:
      records: the table.
      labels: class name of each record in the current task, empty if it is of none of the classes; several labels are
        joined by "+".
      members: the patients of the whole dataset, including those of `records`; empty: `records` are the whole dataset.
      spec: how to split.
      aliases: patient -> patient whose images are the same pictures under another name.
      label_names: all labels, if an image may have any number of them; empty: one class per image.

    Raises:
      DataError: fewer than two classes, a class without training images, no test image, a protocol that needs unknown
        fields, bad fold files, or a leak.
    """
    label_sets = [label_set(label) for label in labels]
    classes = list(label_names) or sorted(set(labels) - {""})
    if len(classes) < 2 and not label_names:
        only = classes[0] if classes else "no class"
        raise DataError(f"all {len(records)} images are of one class ({only}): a classifier needs at least two")
    aliases = dict(aliases or {})
    spec = resolve(spec, records)
    group_by = group_field(spec, records)
    dropped = _dropped(records, labels, spec, aliases, multilabel=bool(label_names))
    groups = group_names(records, members, group_by, aliases if spec.duplicates == "keep" else {}, spec.duplicates)
    if members and group_by:
        cells = member_cells(records, members, groups, group_by, dropped)
    else:
        cells = record_cells(records, label_sets, groups, dropped, count_all=bool(label_names))
    test, absent = _test_groups(records, groups, cells, spec, dropped)
    if spec.val_patients:
        val = listed_groups(records, groups, spec.val_patients, dropped)
    else:
        val = _val_groups(records, groups, cells, spec, test)

    notes = dropped | absent
    if spec.accession_clean:
        notes |= crossing_cases(records, groups, test, val, notes)
    rows = []
    for record, group in zip(records, groups, strict=True):
        side = "test" if group in test else "val" if group in val else "train"
        note = notes.get(record.image_id, "")
        key = group_key(record, group_by)
        rows.append(Row(record.image_id, "" if note else side, key, record.pixel_hash[:16], note))
    _require_test_images(rows, spec, group_by)
    sides = SIDES if val or spec.val_fraction else ("train", "test")
    warnings = _coverage_warnings(rows, label_sets, classes, "label" if label_names else "class", sides)
    ignore_copies = spec.duplicates == "ignore"
    warnings += group_warnings(spec, records)
    if ignore_copies:
        warnings += _copy_warnings(rows)
    split = Split(describe(spec, records), group_by, tuple(rows), tuple(warnings), define(spec, classes))
    check(split, ignore_copies)
    return split


def check(split: Split, ignore_copies: bool = False) -> None:
    """Verify that nothing is on two sides of a split.

    Args:
      split: the split.
      ignore_copies: identical pixels may be on two sides.

    Raises:
      DataError: an image, identical pixels or a group is on two sides.
    """
    keys = [("image", "image_id")]
    keys += [] if ignore_copies else [("identical image", "pixel_hash")]
    keys += [] if ignore_copies and not split.group_by else [("group", "group")]  # single images are grouped by pixels
    for what, key in keys:
        sides: dict[str, str] = {}
        for row in split.rows:
            if not row.side:
                continue
            value = getattr(row, key)
            if sides.setdefault(value, row.side) != row.side:
                raise DataError(
                    f"leak: the {what} '{value}' ({row.image_id}) is in both {sides[value]} and {row.side}; "
                    "with data.split.duplicates=drop, identical images are kept once"
                )


def place(saved: Split, records: Records, aliases: Mapping[str, str] | None = None) -> Split:
    """Apply a saved split to another table, so that no training image is ever tested.

    An image takes the side of its own name, else of identical pixels, else of its group. An image about which nothing
    is known is new, hence test.

    Args:
      saved: the split of a checkpoint.
      records: the other table.
      aliases: as in `make_split`; patients that are copies of each other count as one.
    """
    aliases = aliases or {}
    twins = {**aliases, **{twin: patient for patient, twin in aliases.items()}}
    patients = set(records.column("patient_id"))
    by_image = {row.image_id: row for row in saved.rows}
    by_side = sorted((row for row in saved.rows if row.side), key=lambda row: SIDES.index(row.side), reverse=True)
    by_pixels = {row.pixel_hash: row.side for row in by_side}  # if copies are on two sides, training counts
    by_group = {row.group: row.side for row in saved.rows if row.side}
    rows = []
    for record in records:
        pixels = record.pixel_hash[:16]
        known = by_image.get(record.image_id)
        group = group_key(record, saved.group_by)
        twin = aliases.get(record.patient_id)
        if known is not None and known.pixel_hash == pixels:
            rows.append(known)
        elif twin in patients:
            rows.append(Row(record.image_id, "", group, pixels, f"known duplicate: the pictures of {twin}"))
        else:
            twin_side = by_group.get(twins.get(record.patient_id, ""))  # None unless groups are patients
            side = by_pixels.get(pixels) or by_group.get(group) or twin_side or "test"
            rows.append(Row(record.image_id, side, group, pixels))
    return Split(saved.protocol, saved.group_by, tuple(rows), definition=saved.definition)


def _rng(seed: int, *words: str) -> np.random.Generator:
    digest = hashlib.sha256("/".join([str(seed), *words]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def _dropped(
    records: Records, labels: Sequence[str], spec: SplitSpec, aliases: Mapping[str, str], multilabel: bool
) -> dict[str, str]:
    """Return the images left out as duplicates, or because of their class or group: image_id -> reason."""
    dropped = {}
    field = GROUPS.get(spec.protocol)
    included = []
    for i, (record, label) in enumerate(zip(records, labels, strict=True)):
        if not (label or multilabel):
            dropped[record.image_id] = OTHER_CLASS
        elif field and not getattr(record, field):
            dropped[record.image_id] = f"without a {field}"
        else:
            included.append(i)
    if spec.duplicates == "drop":
        used, sides = records.take(included), known_sides(records, spec)
        dropped |= find_duplicates(used, [labels[i] for i in included], aliases, sides)
    return dropped


def _test_groups(
    records: Records, groups: Sequence[str], cells: Mapping[str, Cell], spec: SplitSpec, dropped: Mapping[str, str]
) -> tuple[set[str], dict[str, str]]:
    """Return the groups of the test side, and images that the protocol does not contain: image_id -> reason."""
    if spec.protocol == "folds":
        return official_test_groups(records, groups, spec, dropped)
    if spec.protocol == "listed":
        return listed_groups(records, groups, spec.test_patients, dropped), {}
    if spec.protocol == "given":
        test = given_groups(records, groups, "test")
        if not test:
            raise DataError("the dataset's own split has no test image: set data.split.protocol=auto with kfolds")
        return test, {}
    if spec.protocol == "site" and spec.kfolds == len(cells):
        return {sorted(cells)[spec.fold]}, {}
    fractions = [1 / spec.kfolds] * spec.kfolds if spec.kfolds else [spec.test_fraction, 1 - spec.test_fraction]
    parts = assign(cells, fractions, _rng(spec.seed, "test"), coverage=not spec.kfolds)
    return {group for group, part in parts.items() if part == (spec.fold if spec.kfolds else 0)}, {}


def _val_groups(
    records: Records, groups: Sequence[str], cells: Mapping[str, Cell], spec: SplitSpec, test: set[str]
) -> set[str]:
    """Return the groups of the validation side."""
    if spec.val_folds:
        rest = {group: cell for group, cell in cells.items() if group not in test}
        shares = [1 / spec.val_folds] * spec.val_folds
        if len(rest) < spec.val_folds:
            raise DataError(
                f"{len(rest)} groups are left beside the test side, to be divided into data.split.val_folds="
                f"{spec.val_folds}: use at most {len(rest)} folds"
            )
        parts = assign(rest, shares, _rng(spec.seed, "val"), coverage=False)
        return {group for group, part in parts.items() if part == spec.val_fold}
    val = given_groups(records, groups, "val") - test if spec.protocol == "given" else set()
    if spec.val_fraction and not val:
        rest = {group: cell for group, cell in cells.items() if group not in test}
        parts = assign(rest, [spec.val_fraction, 1 - spec.val_fraction], _rng(spec.seed, "val"))
        val = {group for group, part in parts.items() if part == 0}
    return val


def _require_test_images(rows: Sequence[Row], spec: SplitSpec, group_by: str) -> None:
    """Verify that there are enough groups for every fold, and that some image is trained on and some is tested.

    Raises:
      DataError: there are too few groups for that.
    """
    number = len({row.group for row in rows if row.side})
    found = f"the data have {count_groups(group_by, number)} to divide"
    if number < 2:
        remedy = "add more of them" + (", or choose another data.split.protocol" if group_by else "")
        raise DataError(f"{found}, but training and test need one each: {remedy}")
    if number < spec.kfolds:
        raise DataError(f"{found} into data.split.kfolds={spec.kfolds}: use at most {number} folds")
    for side, name in (("test", "test"), ("train", "training")):
        if side not in {row.side for row in rows}:
            remedy = "choose another data.split.test_fraction or data.split.protocol, or add data"
            raise DataError(f"no {name} image ({_describe_part(spec)}): {found}; {remedy}")


def _describe_part(spec: SplitSpec) -> str:
    return f"fold {spec.fold} of {spec.kfolds}" if spec.kfolds else f"data.split.protocol={spec.protocol}"


def _copy_warnings(rows: Sequence[Row]) -> list[str]:
    """Warn about test images that training or validation shows under another name."""
    seen = {row.pixel_hash for row in rows if row.side in ("train", "val")}
    n = sum(row.side == "test" and row.pixel_hash in seen for row in rows)
    reason = "data.split.duplicates=ignore does not keep copies together"
    return [f"{n} test images have a copy of identical pixels in training or validation: {reason}"] if n else []


def _coverage_warnings(
    rows: Sequence[Row], label_sets: Sequence[Sequence[str]], classes: Sequence[str], noun: str, sides: Sequence[str]
) -> list[str]:
    """Warn about classes or labels that a side lacks.

    Raises:
      DataError: the training side lacks one.
    """
    warnings = []
    for side in sides:
        present = {name for row, names in zip(rows, label_sets, strict=True) if row.side == side for name in names}
        for missing in (name for name in classes if name not in present):
            groups = {row.group for row, names in zip(rows, label_sets, strict=True) if missing in names and row.side}
            message = f"no image of {noun} '{missing}' in {side}: the {noun} has {len(groups)} group(s) to divide"
            if side == "train":
                raise DataError(f"{message}; use another seed, fewer folds, or more data")
            warnings.append(message)
    return warnings
