"""Audit of splits by the names of their images alone: no image is read."""

import collections
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from data_pipelines.audit import findings, split_files
from data_pipelines.audit.findings import count_and_names, patient_of
from data_pipelines.audit.inputs import Source, from_name
from data_pipelines.audit.split_files import SplitRow
from data_pipelines.errors import DataError
from histojax.core.printable import printable

_RULES = {
    "patients": "slide folders in BreakHis, where 14-13412, filed under both DC and LC, counts once; else the column "
    "patient_id",
    "cases": "accession numbers in BreakHis, without the letters behind them; else the column case_id",
    "pictures": "not read: copies of a picture under other names are not found",
}


def audit_names(path: pathlib.Path, strict_cases: bool = False) -> dict[str, Any]:
    """Find images, patients and cases that a file's splits put on several sides.

    Args:
      path: as for `split_files.read`.
      strict_cases: a case on several sides is a leak even if its slide folders differ.

    Returns:
      JSON-able facts. `leaks` and `warnings` are sentences; `splits` has the details of each split; `rows` has one
      entry per image: its name, what is known of it, and its side in each split.

    Raises:
      DataError: as for `split_files.read`; or no image is on a side.
    """
    splits = split_files.read(path)
    sources: dict[str, Source] = {}
    sides: dict[str, dict[str, set[str]]] = {name: collections.defaultdict(set) for name in splits}
    for split, rows in splits.items():
        for row in rows:
            source = sources.setdefault(row.name, from_row(row))
            if row.side:
                sides[split][source.image_id].add(row.side)
    if not any(sides.values()):
        raise DataError(f"{printable(path)}: no image is on a side of a split")
    images = list({source.image_id: source for source in sources.values()}.values())
    facts: dict[str, Any] = {
        "split": printable(path),
        "images": len(images),
        "patients": len({source.patient_id for source in images} - {""}),
        "cases": len({source.case_id for source in images} - {""}),
        "splits": {name: _split_facts(images, by_image) for name, by_image in sides.items()},
        "rules": _RULES,
    }
    facts["leaks"], facts["warnings"] = _verdict(facts, images, strict_cases)
    facts["rows"] = [_row(source, sides) for source in images]
    return facts


def from_row(row: SplitRow) -> Source:
    """Return what a row of a split says about its image; a name in the BreakHis grammar says more than its columns."""
    name = printable(row.name.replace("\\", "/"))
    return from_name(Source(pathlib.Path(name), name, name, "", row.patient_id, row.case_id))


def _row(source: Source, sides: Mapping[str, Mapping[str, set[str]]]) -> dict[str, str]:
    """Return what is known of an image, and its side in each split."""
    row = {key: getattr(source, key) for key in ("image_id", "label", "patient_id", "case_id", "magnification")}
    return row | {
        f"side in {name}": " and ".join(sorted(by_image.get(source.image_id, ()))) for name, by_image in sides.items()
    }


def _split_facts(images: Sequence[Source], by_image: dict[str, set[str]]) -> dict[str, Any]:
    placed = [(source, side) for source in images for side in sorted(by_image.get(source.image_id, ()))]
    known, sides = [source for source, _ in placed], [side for _, side in placed]
    patients = findings.groups_on_several_sides(known, sides, patient_of)
    cases = findings.groups_on_several_sides(known, sides, lambda source: source.case_id)
    tested = [source for source, side in placed if side == "test"]
    return {
        "sides": dict(sorted(collections.Counter(sides).items())),
        "images_on_several_sides": [image for image, its_sides in by_image.items() if len(its_sides) > 1],
        "patients": patients,
        "cases": cases,
        "test_images": len(tested),
        "test_images_of_patients_elsewhere": _count_in(tested, patients, patient_of),
        "test_images_of_cases_elsewhere": _count_in(tested, cases, lambda source: source.case_id),
        "siblings": findings.siblings(known, sides),
    }


def _count_in(sources: Iterable[Source], groups: dict[str, Any], group_of: Callable[[Source], str]) -> int:
    return sum(group_of(source) in groups for source in sources)


def _verdict(facts: dict[str, Any], images: Sequence[Source], strict_cases: bool) -> tuple[list[str], list[str]]:
    """Return the leaks and the warnings as sentences."""
    leaks: list[str] = []
    warnings: list[str] = []
    for name, split in facts["splits"].items():
        if split["images_on_several_sides"]:
            leaks.append(f"{name}: images on several sides: {count_and_names(split['images_on_several_sides'])}")
        for group, into in (("patients", leaks), ("cases", leaks if strict_cases else warnings)):
            if split[group] and (group == "patients" or split["siblings"]):
                count, of = split[f"test_images_of_{group}_elsewhere"], split["test_images"]
                into.append(
                    f"{name}: {group} on several sides: {count_and_names(split[group])}; {count} of {of} test images "
                    "are of one of them"
                )
    if unknown := sum(not patient_of(source) for source in images):
        warnings.append(
            f"patient unknown for {unknown} of {len(images)} images: their names do not tell, and the split has no "
            "column patient_id"
        )
    return leaks, warnings
