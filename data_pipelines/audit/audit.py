"""Audit of a dataset and its splits: duplicates, leaks, label conflicts, counts, sizes, colours."""

import collections
import concurrent.futures
import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_pipelines.audit import findings, hashes, inputs, measures
from data_pipelines.audit.findings import AuditImage, Duplicates, count_and_names, patient_of
from data_pipelines.audit.inputs import Source
from data_pipelines.breakhis import filenames
from data_pipelines.breakhis.scan import compare_with_published, describe_missing
from data_pipelines.errors import DataError
from histojax.core.printable import printable

_log = logging.getLogger(__name__)
AGAINST = "between datasets"  # name of the split whose sides are the two roots
_KNOWN = ("image_id", "label", "patient_id", "case_id", "magnification")
_MEASURED = (*findings.COLOURS, "lightness_sd", "pen_share", "sharpness")
_UNUSUAL = {
    "blank": "that are blank",
    "pen": "marked by pen",
    "blurred": "that are blurred",
    "odd_images": "with unusual colours",
}


@dataclasses.dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
      facts: JSON-able. `leaks` and `warnings` are sentences; `duplicates`, `splits`, `counts`, `colours` and so on hold
        the details; `rules` explain how each property is decided.
      rows: one row per image, by column.
      paths: the file of each image in `facts["duplicates"]`.
    """

    facts: dict[str, Any]
    rows: list[dict[str, Any]]
    paths: dict[str, pathlib.Path]

    @property
    def leaks(self) -> list[str]:
        """Reasons why results on the splits are too optimistic; empty: no leak was found."""
        return self.facts["leaks"]


@dataclasses.dataclass(frozen=True)
class _Input:
    """All images to measure: first those of the root, then those of the other dataset.

    Attributes:
      sources: the images.
      n_own: number of images of the root.
      splits: split -> side of each image.
      misnamed: image -> what is wrong with its name.
      unmatched: number of rows of the split that name no image.
      not_read: a line for each kind of file of the root that is not read.
    """

    sources: list[Source]
    n_own: int
    splits: dict[str, list[str]]
    misnamed: dict[str, str]
    unmatched: int
    not_read: list[str]


def audit(
    root: pathlib.Path,
    *,
    split: pathlib.Path | None = None,
    folds: pathlib.Path | None = None,
    against: pathlib.Path | None = None,
    max_distance: int = hashes.MAX_DISTANCE,
    strict_cases: bool = False,
) -> Audit:
    """Audit every image of a root, and the splits that divide them.

    Args:
      root: a folder, or a list (.csv); see `inputs.find`.
      split: a file with one or several splits; see `split_files.read`.
      folds: a folder with BreakHis's `dsfold1.txt` …
      against: another root that should share no picture with `root`.
      max_distance: number of hash bits, of 255, that may differ between nearly identical pictures.
      strict_cases: a case on two sides is a leak even if its slide folders differ.

    Raises:
      DataError: no readable image, or a table that cannot be read.
    """
    if not 0 <= max_distance <= hashes.BITS // 4:
        raise DataError(f"max_distance={max_distance} is not in 0 … {hashes.BITS // 4} (of {hashes.BITS})")
    given = _collect(root, split, folds, against)
    _log.info("auditing %d images", len(given.sources))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        measured = list(pool.map(lambda source: measures.measure(source.path), given.sources))
    unreadable = {s.name: m for s, m in zip(given.sources, measured, strict=True) if isinstance(m, str)}
    good = [i for i, m in enumerate(measured) if not isinstance(m, str)]
    images = [AuditImage(given.sources[i], m) for i in good if not isinstance(m := measured[i], str)]
    splits = {name: [sides[i] for i in good] for name, sides in given.splits.items()}
    n_own = sum(i < given.n_own for i in good)
    if not n_own:
        name, reason = next(iter(unreadable.items()))
        raise DataError(f"{printable(root)}: none of {given.n_own} images can be read; {name}: {reason}")
    duplicates = findings.find_duplicates(images, n_own, max_distance)
    facts: dict[str, Any] = {
        "root": printable(root),
        "against": printable(against) if against is not None else None,
        "images": n_own,
        "images_against": len(images) - n_own,
        "unreadable": unreadable,
        "misnamed": given.misnamed,
        "not_read": given.not_read,
        "duplicates": [_duplicates_facts(d, images, splits) for d in _important_first(duplicates, images, splits)],
        "splits": {name: _split_facts(name, sides, images, duplicates) for name, sides in splits.items()},
        "split_rows_without_image": given.unmatched,
        "rules": _rules(max_distance),
    }
    facts |= _image_facts(images[:n_own])
    facts["leaks"], facts["warnings"] = _verdict(facts, images[:n_own], strict_cases)
    named = {name for entry in facts["duplicates"] for name in entry["images"]}
    return Audit(
        facts,
        _rows(given.sources, measured, good, splits, duplicates),
        {image.source.name: image.source.path for image in images if image.source.name in named},
    )


def _collect(
    root: pathlib.Path, split: pathlib.Path | None, folds: pathlib.Path | None, against: pathlib.Path | None
) -> _Input:
    """Find the images and read the splits; the arguments are those of `audit`."""
    sources, not_read = inputs.find_with_report(root)
    misnamed = inputs.misnamed(sources)
    splits: dict[str, list[str]] = {}
    unmatched = 0
    if any(source.given_split for source in sources):
        splits["as given"] = [source.given_split for source in sources]
    if split is not None:
        sources, read, unmatched = inputs.read_split(split, root, sources)
        splits |= read
    if folds is not None:
        splits |= inputs.read_fold_sides(folds, sources)
    others = _of_other(against, sources) if against is not None else []
    if others:
        splits = {name: sides + [""] * len(others) for name, sides in splits.items()}
        splits[AGAINST] = ["first"] * len(sources) + ["second"] * len(others)
    return _Input(sources + others, len(sources), splits, misnamed, unmatched, not_read)


def _image_facts(own: Sequence[AuditImage]) -> dict[str, Any]:
    """Return the facts that depend only on the images of the root."""
    colours = {
        "labels": findings.colours(own, lambda source: source.label),
        "patients": findings.colours(own, lambda source: source.patient_id),
    }
    return {
        "pictures": len({image.measures.pixel_hash for image in own}),
        "patients": len({image.source.patient_id for image in own} - {""}),
        "cases": len({image.source.case_id for image in own} - {""}),
        "counts": _counts(own),
        "published": _published(own),
        "sizes": _tally(f"{image.measures.width} × {image.measures.height}" for image in own),
        "modes": _tally(image.measures.mode for image in own),
        "colours": colours,
        "blank": [image.source.name for image in own if image.measures.blank],
        "pen": [image.source.name for image in own if image.measures.pen],
        "blurred": [image.source.name for image in own if image.measures.blurred],
        "odd_images": findings.odd_images(own),
        "odd_patients": findings.odd_groups(colours["patients"]),
    }


def _of_other(against: pathlib.Path, sources: Sequence[Source]) -> list[Source]:
    """Find the images of the other root; their names start with that root.

    Raises:
      DataError: as for `inputs.find`; or both roots share a file.
    """
    prefix = printable(against.parent if against.is_file() else against)
    others = inputs.find(against)
    files = {os.path.realpath(source.path) for source in sources}
    for other in others:
        if os.path.realpath(other.path) in files:
            raise DataError(f"{printable(other.path)} is a file of both datasets; give two datasets that share no file")
    return [dataclasses.replace(other, name=f"{prefix}/{other.name}") for other in others]


def _duplicates_facts(
    duplicates: Duplicates, images: Sequence[AuditImage], splits: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    sources = [images[i].source for i in duplicates.images]
    near = duplicates.near
    return {
        "kind": "exact" if near is None else "near",
        "images": [source.name for source in sources],
        "labels": [source.label for source in sources],
        "patients": [source.patient_id for source in sources],
        "view": hashes.VIEWS[near.view] if near else None,
        "distance": near.distance if near else 0,
        "correlation": round(near.correlation, 4) if near else 1.0,
        "label_conflict": _in_conflict(duplicates, images),
        "crosses": {
            name: [sides[i] for i in duplicates.images] for name, sides in splits.items() if duplicates.crosses(sides)
        },
    }


def _in_conflict(duplicates: Duplicates, images: Sequence[AuditImage]) -> bool:
    return len({images[i].source.label for i in duplicates.images} - {""}) > 1


def _important_first(
    duplicates: Iterable[Duplicates], images: Sequence[AuditImage], splits: Mapping[str, Sequence[str]]
) -> list[Duplicates]:
    """Sort duplicates on several sides first, then those with several labels."""
    return sorted(
        duplicates,
        key=lambda d: (not any(d.crosses(sides) for sides in splits.values()), not _in_conflict(d, images)),
    )


def _split_facts(
    name: str, sides: Sequence[str], images: Sequence[AuditImage], duplicates: Sequence[Duplicates]
) -> dict[str, Any]:
    crossing = [d for d in duplicates if d.crosses(sides)]
    # Patient names of two datasets mean the same patients only if both are BreakHis.
    known = [i for i, image in enumerate(images) if name != AGAINST or image.source.breakhis]
    known_sources, known_sides = [images[i].source for i in known], [sides[i] for i in known]
    return {
        "sides": _tally(side for side in sides if side),
        "exact": sum(d.near is None for d in crossing),
        "near": sum(d.near is not None for d in crossing),
        "images_in_them": len({i for d in crossing for i in d.images if sides[i]}),
        "patients": findings.groups_on_several_sides(known_sources, known_sides, patient_of),
        "siblings": findings.siblings(known_sources, known_sides),
    }


def _counts(images: Sequence[AuditImage]) -> dict[str, dict[str, Any]]:
    """Count images, patients and cases of each label, and its images by magnification."""
    table: dict[str, dict[str, Any]] = {}
    for label in sorted({image.source.label for image in images}):
        sources = [image.source for image in images if image.source.label == label]
        table[label] = {
            "images": len(sources),
            "patients": len({s.patient_id for s in sources} - {""}),
            "cases": len({s.case_id for s in sources} - {""}),
            "magnifications": _tally(s.magnification for s in sources if s.magnification),
        }
    return table


def _published(images: Sequence[AuditImage]) -> dict[str, Any] | None:
    """Compare BreakHis images with the published table, at the magnifications found; None without BreakHis images."""
    names = {s.image_id: s for image in images if (s := image.source.breakhis) is not None}.values()
    if not names:
        return None
    magnifications = tuple(m for m in filenames.MAGNIFICATIONS if any(name.magnification == m for name in names))
    table = compare_with_published(collections.Counter(name.subtype for name in names), magnifications)
    return {"magnifications": list(magnifications), "subtypes": table, "text": describe_missing(table)}


def _rules(max_distance: int) -> dict[str, str]:
    return {
        "exact": "equal size and equal RGB values of every pixel, even in different file bytes (SHA-256)",
        "near": f"in one of eight views (flips and quarter turns) the hashes differ in at most {max_distance} of "
        f"{hashes.BITS} bits, and the grey values averaged to {hashes.SIDE} × {hashes.SIDE} correlate by "
        f"at least {hashes.LEAST_CORRELATION}; blank pictures are not compared. Crops, overlapping fields and "
        "rotations by other angles are not found",
        "patients": "slide folders in BreakHis, where 14-13412, filed under both DC and LC, counts once; the case if a "
        "list has no patient",
        **measures.RULES,
    }


def _verdict(facts: Mapping[str, Any], own: Sequence[AuditImage], strict_cases: bool) -> tuple[list[str], list[str]]:
    """Return the leaks and the warnings as sentences."""
    leaks: list[str] = []
    warnings: list[str] = []
    for name, split in facts["splits"].items():
        if split["exact"] or split["near"]:
            leaks.append(
                f"{name}: the same picture on several sides: {split['exact']} sets of identical and {split['near']} "
                f"pairs of nearly identical images ({split['images_in_them']} images)"
            )
        if split["patients"]:
            leaks.append(f"{name}: patients on several sides: {count_and_names(split['patients'])}")
        if split["siblings"]:
            (leaks if strict_cases else warnings).append(
                f"{name}: cases on several sides through sibling patients (slide folders with the same accession "
                f"number, probably of the same person): {count_and_names(split['siblings'])}"
            )
        without = facts["images"] - sum(split["sides"].values())
        if without and name != AGAINST:
            warnings.append(f"{name}: images on no side: {without} of {facts['images']}")
    warnings += facts["not_read"]
    warnings += _duplicates_warnings(facts["duplicates"])
    if unmatched := facts["split_rows_without_image"]:
        warnings.append(f"rows of the split that name no image: {unmatched}")
    for key, what in (("unreadable", "that cannot be read"), ("misnamed", "without a BreakHis name")):
        if facts[key]:
            warnings.append(f"images {what}: {count_and_names(map(_file_name, facts[key]))}")
    unknown = sum(not patient_of(image.source) for image in own)
    if unknown:
        warnings.append(f"patient unknown for {unknown} of {len(own)} images: leaks by patient cannot be detected")
    for key, what in _UNUSUAL.items():
        if facts[key]:
            warnings.append(f"images {what}: {count_and_names(map(_file_name, facts[key]))}")
    if facts["odd_patients"]:
        warnings.append(f"patients with unusual colours: {count_and_names(facts['odd_patients'])}")
    return leaks, warnings


def _duplicates_warnings(duplicates: Sequence[Mapping[str, Any]]) -> list[str]:
    warnings = []
    conflicts = [entry for entry in duplicates if entry["label_conflict"]]
    if conflicts:
        pairs = _tally(" and ".join(sorted(set(entry["labels"]) - {""})) for entry in conflicts)
        examples = ", ".join(f"{labels} ({count})" for labels, count in list(pairs.items())[: findings.MAX_NAMED])
        warnings.append(f"pictures with several labels: {len(conflicts)}, such as {examples}")
    rest = sum(not entry["label_conflict"] and not entry["crosses"] for entry in duplicates)
    if rest:
        warnings.append(f"duplicate pictures on one side with one label: {rest}")
    return warnings


def _file_name(name: str) -> str:
    return name.rpartition("/")[2]


def _tally(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(collections.Counter(values).items()))


def _rows(
    sources: Sequence[Source],
    measured: Sequence[measures.Measures | str],
    good: Sequence[int],
    splits: Mapping[str, Sequence[str]],
    duplicates: Sequence[Duplicates],
) -> list[dict[str, Any]]:
    """Return one row per image, including unreadable ones."""
    place = {i: k for k, i in enumerate(good)}
    twin_of: dict[int, int] = {}
    for group in duplicates:
        for k in group.images:
            other = next(j for j in group.images if j != k)
            twin_of.setdefault(k, other)
    rows = []
    for i, (source, m) in enumerate(zip(sources, measured, strict=True)):
        row: dict[str, Any] = {"path": source.name}
        row |= {key: getattr(source, key) for key in _KNOWN}
        row |= {f"side in {name}": sides[place[i]] if i in place else "" for name, sides in splits.items()}
        if isinstance(m, str):
            rows.append(row | {"problem": m})
            continue
        twin = twin_of.get(place[i])
        row |= {key: getattr(m, key) for key in ("width", "height", "mode", "pixel_hash")}
        row["same_picture_as"] = sources[good[twin]].name if twin is not None else ""
        row |= {key: round(getattr(m, key), 4) for key in _MEASURED}
        row["problem"] = ", ".join(key for key in ("blank", "pen", "blurred") if getattr(m, key))
        rows.append(row)
    return rows
