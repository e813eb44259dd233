"""The groups of images that a split must not divide, and what each of them contains."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from data_pipelines.duplicates import Unions
from data_pipelines.errors import DataError
from data_pipelines.official_folds import read_folds
from data_pipelines.records import Record, Records
from data_pipelines.split_spec import SplitSpec

Cell = Counter[tuple[str, str]]  # images by (class or label, magnification)


@dataclasses.dataclass(frozen=True)
class Member:
    """A patient of the whole dataset, whichever magnification was prepared.

    Attributes:
      patient_id: as in a record.
      case_id: as in a record.
      label: class name.
      images: number of images by magnification.
    """

    patient_id: str
    case_id: str
    label: str
    images: Mapping[str, int]


def group_key(record: Record, group_by: str) -> str:
    """Return the key of records that must share a side: the group, or the pixels if single images are divided."""
    return getattr(record, group_by) if group_by else record.pixel_hash[:16]


def group_names(
    records: Records, members: Sequence[Member], group_by: str, aliases: Mapping[str, str], duplicates: str
) -> list[str]:
    """Return for each record the name of the set that must stay together: its group, joined with those of duplicates.

    Args:
      records: the table.
      members: the patients of the whole dataset.
      group_by: the field that names a record's group; empty: single images.
      aliases: patient -> patient whose images are the same pictures.
      duplicates: as in `SplitSpec`.
    """
    if not group_by:
        # With "ignore", each image is its own group, ordered by pixels so that the split is the same without copies.
        single = duplicates == "ignore"
        return [f"{group_key(r, group_by)}/{r.image_id}" if single else group_key(r, group_by) for r in records]
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
    return [unions.root(group_key(record, group_by)) for record in records]


def record_cells(
    records: Records,
    label_sets: Sequence[Sequence[str]],
    groups: Sequence[str],
    dropped: Mapping[str, str],
    count_all: bool,
) -> dict[str, Cell]:
    """Count the images of each group by (class or label, magnification).

    Args:
      records: the table.
      label_sets: labels of each record.
      groups: group of each record.
      dropped: image_ids that are not counted.
      count_all: also count every image under the label "".
    """
    cells: dict[str, Cell] = {}
    for record, names, group in zip(records, label_sets, groups, strict=True):
        if record.image_id not in dropped:
            cell = cells.setdefault(group, Counter())
            for name in (*names, "") if count_all else names:
                cell[name, record.magnification] += 1
    return cells


def member_cells(
    records: Records, members: Sequence[Member], groups: Sequence[str], group_by: str, dropped: Mapping[str, str]
) -> dict[str, Cell]:
    """Count the images of each group by (class, magnification) over the whole dataset, prepared or not."""
    cells: dict[str, Cell] = {}
    root_of = {getattr(record, group_by): group for record, group in zip(records, groups, strict=True)}
    remaining = {r.patient_id for r in records if r.image_id not in dropped}
    prepared = {r.patient_id for r in records}
    for member in members:
        if member.patient_id in prepared and member.patient_id not in remaining:
            continue  # all its images are copies
        key = getattr(member, group_by)
        cell = cells.setdefault(root_of.get(key, key), Counter())
        for magnification, count in member.images.items():
            cell[member.label, magnification] += count
    return cells


def known_sides(records: Records, spec: SplitSpec) -> dict[str, str]:
    """Return the sides that a protocol fixes in advance: image_id -> train, val or test.

    Raises:
      DataError: the file of an official fold is missing or malformed.
    """
    if spec.protocol == "given":
        return {record.image_id: record.given_split for record in records}
    if spec.protocol == "listed":
        return {record.image_id: "test" for record in records if record.patient_id in spec.test_patients}
    return read_folds(pathlib.Path(spec.folds_dir), spec.fold) if spec.protocol == "folds" else {}


def given_groups(records: Records, groups: Sequence[str], side: str) -> set[str]:
    """Return the groups that the dataset's own table assigns to a side."""
    return {group for record, group in zip(records, groups, strict=True) if record.given_split == side}


def listed_groups(
    records: Records, groups: Sequence[str], patients: Collection[str], dropped: Mapping[str, str]
) -> set[str]:
    """Return the groups of the patients that a protocol lists for one side.

    Raises:
      DataError: the dataset has none of them.
    """
    found = {
        group
        for record, group in zip(records, groups, strict=True)
        if record.patient_id in patients and record.image_id not in dropped
    }
    if not found:
        raise DataError("the dataset has none of the protocol's test patients: choose another data.split.protocol")
    return found


def crossing_cases(
    records: Records, groups: Sequence[str], test: Collection[str], val: Collection[str], dropped: Mapping[str, str]
) -> dict[str, str]:
    """Return the images to leave out so that no case is on two sides: image_id -> reason. Test images stay.

    Args:
      records: the table.
      groups: group of each record.
      test: the groups of the test side.
      val: the groups of the validation side.
      dropped: image_ids that are left out already.
    """
    sides = ["test" if group in test else "val" if group in val else "train" for group in groups]
    table = [(r, side) for r, side in zip(records, sides, strict=True) if r.case_id and r.image_id not in dropped]
    tested = {record.case_id for record, side in table if side == "test"}
    notes = {r.image_id: "of a tested case" for r, side in table if side != "test" and r.case_id in tested}
    validated = {record.case_id for record, side in table if side == "val" and record.image_id not in notes}
    return notes | {
        r.image_id: "of a case in validation"
        for r, side in table
        if side == "train" and r.case_id in validated and r.image_id not in notes
    }


def official_test_groups(
    records: Records, groups: Sequence[str], spec: SplitSpec, dropped: Mapping[str, str]
) -> tuple[set[str], dict[str, str]]:
    """Read a published fold.

    Returns:
      The patients that it tests, and the images that it does not contain: image_id -> reason.

    Raises:
      DataError: the fold file is missing or malformed, or a patient is on both sides.
    """
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
                f"{spec.folds_dir}/dsfold{spec.fold}.txt: {group} ({record.image_id}) is in both train and test"
            )
    return test, absent
