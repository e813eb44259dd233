"""What is wrong with a dataset or a split: pictures that are there twice, leaks, conflicts, counts, sizes, colours."""

import collections
import concurrent.futures
import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_pipelines.audit import findings, hashes, inputs, measures
from data_pipelines.audit.findings import Looked, Twins, patient_of
from data_pipelines.audit.inputs import Source
from data_pipelines.breakhis import filenames
from data_pipelines.breakhis.scan import compare_with_published, describe_missing
from data_pipelines.errors import DataError

_log = logging.getLogger(__name__)
AGAINST = "between datasets"  # the split whose sides are the two roots
_KNOWN = ("image_id", "label", "patient_id", "case_id", "magnification")
_MEASURED = (*findings.COLOURS, "lightness_sd", "pen_share", "sharpness")
_ODD = {"blank": "blank", "pen": "marked by pen", "blurred": "blurred", "odd_images": "odd in colour"}
_NAMED = 3  # that a sentence names of many


@dataclasses.dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
      facts: JSON-able. `leaks` and `warnings` are sentences; `duplicates`, `splits`, `counts`, `colours` and so on
        what they are about; `rules` how each thing is decided.
      rows: a row an image, by column.
      paths: the file of each image that `facts["duplicates"]` names.
    """

    facts: dict[str, Any]
    rows: list[dict[str, Any]]
    paths: dict[str, pathlib.Path]

    @property
    def leaks(self) -> list[str]:
        """Why what is measured on this split says too much; empty: no leak was found."""
        return self.facts["leaks"]


def audit(
    root: pathlib.Path,
    *,
    split: pathlib.Path | None = None,
    folds: pathlib.Path | None = None,
    against: pathlib.Path | None = None,
    max_distance: int = hashes.MAX_DISTANCE,
    strict_cases: bool = False,
) -> Audit:
    """Looks at every image of a root, and at how splits divide them.

    Args:
      root: a folder, or a list (.csv); see `audit_sources.find`.
      split: a table of image_id (or path) and split.
      folds: a folder with BreakHis's `dsfold1.txt` …
      against: another root, none of whose pictures should be in `root`.
      max_distance: bits of 255 in which the hashes of nearly equal pictures may differ.
      strict_cases: a case on two sides is a leak, though its slide folders are different ones.

    Raises:
      DataError: nothing to look at, or a table that cannot be read.
    """
    if not 0 <= max_distance <= hashes.BITS // 4:
        raise DataError(f"max_distance={max_distance} is not in 0 … {hashes.BITS // 4} (of {hashes.BITS})")
    sources = inputs.find(root)
    departures = inputs.departures(sources)
    splits: dict[str, list[str]] = {}
    strange = 0
    if any(source.given_split for source in sources):
        splits["as given"] = [source.given_split for source in sources]
    if split is not None:
        sources, splits[inputs.text(split.name)], strange = inputs.read_split(split, root, sources)
    if folds is not None:
        splits |= inputs.read_fold_sides(folds, sources)
    others = _of_other(against, sources) if against is not None else []
    if others:
        splits = {name: sides + [""] * len(others) for name, sides in splits.items()}
        splits[AGAINST] = ["first"] * len(sources) + ["second"] * len(others)

    everything = sources + others
    _log.info("looking at %d images", len(everything))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        measured = list(pool.map(lambda source: measures.measure(source.path), everything))
    unreadable = {s.name: m for s, m in zip(everything, measured, strict=True) if isinstance(m, str)}
    good = [i for i, m in enumerate(measured) if not isinstance(m, str)]
    images = [Looked(everything[i], m) for i in good if not isinstance(m := measured[i], str)]
    splits = {name: [sides[i] for i in good] for name, sides in splits.items()}
    asked = sum(i < len(sources) for i in good)
    if not asked:
        name, reason = next(iter(unreadable.items()))
        raise DataError(f"{inputs.text(root)}: no image of {len(sources)} can be read; {name}: {reason}")
    twins = findings.find_twins(images, asked, max_distance)
    own = images[:asked]

    facts: dict[str, Any] = {
        "root": inputs.text(root),
        "against": inputs.text(against) if against is not None else None,
        "images": asked,
        "images_against": len(images) - asked,
        "pictures": len({image.measures.pixel_hash for image in own}),
        "patients": len({image.source.patient_id for image in own} - {""}),
        "cases": len({image.source.case_id for image in own} - {""}),
        "unreadable": unreadable,
        "misnamed": departures,
        "duplicates": [_twins_facts(t, images, splits) for t in _telling_first(twins, images, splits)],
        "splits": {name: _split_facts(name, sides, images, twins) for name, sides in splits.items()},
        "split_rows_without_image": strange,
        "counts": _counts(own),
        "published": _published(own),
        "sizes": _tally(f"{image.measures.width} × {image.measures.height}" for image in own),
        "modes": _tally(image.measures.mode for image in own),
        "colours": {
            "labels": findings.colours(own, lambda source: source.label),
            "patients": findings.colours(own, lambda source: source.patient_id),
        },
        "blank": [image.source.name for image in own if image.measures.blank],
        "pen": [image.source.name for image in own if image.measures.pen],
        "blurred": [image.source.name for image in own if image.measures.blurred],
        "odd_images": findings.odd_images(own),
        "rules": _rules(max_distance),
    }
    facts["odd_patients"] = findings.odd_groups(facts["colours"]["patients"])
    facts["leaks"], facts["warnings"] = _verdict(facts, own, strict_cases)
    named = {name for entry in facts["duplicates"] for name in entry["images"]}
    return Audit(
        facts,
        _rows(everything, measured, good, splits, twins),
        {image.source.name: image.source.path for image in images if image.source.name in named},
    )


def _of_other(against: pathlib.Path, sources: Sequence[Source]) -> list[Source]:
    """The images of the other root under names that tell it.

    Raises:
      DataError: as `audit_sources.find`; a file that is of both roots.
    """
    prefix = inputs.text(against.parent if against.is_file() else against)
    others = inputs.find(against)
    files = {os.path.realpath(source.path) for source in sources}
    for other in others:
        if os.path.realpath(other.path) in files:
            raise DataError(f"{inputs.text(other.path)} is a file of both datasets; give two that share no file")
    return [dataclasses.replace(other, name=f"{prefix}/{other.name}") for other in others]


def _twins_facts(twins: Twins, images: Sequence[Looked], splits: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    there = [images[i].source for i in twins.images]
    near = twins.near
    return {
        "kind": "exact" if near is None else "near",
        "images": [source.name for source in there],
        "labels": [source.label for source in there],
        "patients": [source.patient_id for source in there],
        "view": hashes.VIEWS[near.view] if near else None,
        "distance": near.distance if near else 0,
        "correlation": round(near.correlation, 4) if near else 1.0,
        "label_conflict": _in_conflict(twins, images),
        "crosses": {
            name: [sides[i] for i in twins.images] for name, sides in splits.items() if twins.crosses(sides)
        },
    }  # fmt: skip


def _in_conflict(twins: Twins, images: Sequence[Looked]) -> bool:
    return len({images[i].source.label for i in twins.images} - {""}) > 1


def _telling_first(
    twins: Iterable[Twins], images: Sequence[Looked], splits: Mapping[str, Sequence[str]]
) -> list[Twins]:
    """Those on several sides first, then those under several labels."""
    return sorted(
        twins, key=lambda t: (not any(t.crosses(sides) for sides in splits.values()), not _in_conflict(t, images))
    )


def _split_facts(name: str, sides: Sequence[str], images: Sequence[Looked], twins: Sequence[Twins]) -> dict[str, Any]:
    crossing = [t for t in twins if t.crosses(sides)]
    # Names of patients of two datasets mean the same where both are BreakHis's.
    known = [i for i, image in enumerate(images) if name != AGAINST or image.source.breakhis]
    there, theirs = [images[i] for i in known], [sides[i] for i in known]
    return {
        "sides": _tally(side for side in sides if side),
        "exact": sum(t.near is None for t in crossing),
        "near": sum(t.near is not None for t in crossing),
        "images_in_them": len({i for t in crossing for i in t.images if sides[i]}),
        "patients": findings.groups_on_several_sides(there, theirs, patient_of),
        "siblings": findings.siblings(there, theirs),
    }


def _counts(images: Sequence[Looked]) -> dict[str, dict[str, Any]]:
    """Images, patients and cases of each label, and its images by magnification."""
    table: dict[str, dict[str, Any]] = {}
    for label in sorted({image.source.label for image in images}):
        there = [image.source for image in images if image.source.label == label]
        table[label] = {
            "images": len(there),
            "patients": len({s.patient_id for s in there} - {""}),
            "cases": len({s.case_id for s in there} - {""}),
            "magnifications": _tally(s.magnification for s in there if s.magnification),
        }
    return table


def _published(images: Sequence[Looked]) -> dict[str, Any] | None:
    """BreakHis's images beside the published table, at the magnifications that are there; None without any."""
    names = {s.image_id: s for image in images if (s := image.source.breakhis) is not None}.values()
    if not names:
        return None
    there = tuple(m for m in filenames.MAGNIFICATIONS if any(name.magnification == m for name in names))
    table = compare_with_published(collections.Counter(name.subtype for name in names), there)
    return {"magnifications": list(there), "subtypes": table, "text": describe_missing(table)}


def _rules(max_distance: int) -> dict[str, str]:
    return {
        "exact": "equal size and equal RGB values of every pixel, whatever the files' bytes (SHA-256)",
        "near": f"in one of eight views (flips and quarter turns) the hashes differ in at most {max_distance} of "
        f"{hashes.BITS} bits, and the greys averaged to {hashes.SIDE} × {hashes.SIDE} correlate by "
        f"at least {hashes.LEAST_CORRELATION}; blank pictures are left out. Crops, overlapping fields and turns "
        "by other angles are not found",
        "patients": "slide folders in BreakHis, of which 14-13412, filed under DC and under LC, counts as one; where a "
        "list knows the case only, the case",
        **measures.RULES,
    }


def _verdict(facts: Mapping[str, Any], own: Sequence[Looked], strict_cases: bool) -> tuple[list[str], list[str]]:
    """The leaks and the warnings as sentences."""
    leaks: list[str] = []
    warnings: list[str] = []
    for name, found in facts["splits"].items():
        if found["exact"] or found["near"]:
            leaks.append(
                f"{name}: one picture on several sides: {found['exact']} sets of equal and {found['near']} pairs of "
                f"nearly equal images ({found['images_in_them']} images)"
            )
        if found["patients"]:
            leaks.append(f"{name}: patients on several sides: {_listed(found['patients'])}")
        if found["siblings"]:
            (leaks if strict_cases else warnings).append(
                f"{name}: cases on several sides by way of siblings (other slide folders of the same accession number, "
                f"likely the same patient's): {_listed(found['siblings'])}"
            )
        without = facts["images"] - sum(found["sides"].values())
        if without and name != AGAINST:
            warnings.append(f"{name}: images on no side: {without} of {facts['images']}")
    conflicts = [entry for entry in facts["duplicates"] if entry["label_conflict"]]
    if conflicts:
        pairs = _tally(" and ".join(sorted(set(entry["labels"]) - {""})) for entry in conflicts)
        told = ", ".join(f"{labels} ({count})" for labels, count in list(pairs.items())[:_NAMED])
        warnings.append(f"pictures under several labels: {len(conflicts)}, as {told}")
    rest = sum(not entry["label_conflict"] and not entry["crosses"] for entry in facts["duplicates"])
    if rest:
        warnings.append(f"pictures that are there several times, on one side and under one label: {rest}")
    if strange := facts["split_rows_without_image"]:
        warnings.append(f"rows of the split that name no image: {strange}")
    for key, what in (("unreadable", "that cannot be read"), ("misnamed", "not named as BreakHis's are")):
        if facts[key]:
            warnings.append(f"images {what}: {_listed(map(_file, facts[key]))}")
    unknown = sum(not patient_of(image.source) for image in own)
    if unknown:
        warnings.append(f"of {unknown} of {len(own)} images the patient is not known: leaks by patient cannot be seen")
    for key, what in _ODD.items():
        if facts[key]:
            warnings.append(f"images {what}: {_listed(map(_file, facts[key]))}")
    if facts["odd_patients"]:
        warnings.append(f"patients odd in colour: {_listed(facts['odd_patients'])}")
    return leaks, warnings


def _listed(names: Iterable[str]) -> str:
    """How many there are, and the names of the first."""
    names = list(names)
    return f"{len(names)} ({', '.join(names[:_NAMED])}{', …' if len(names) > _NAMED else ''})"


def _file(name: str) -> str:
    return name.rpartition("/")[2]


def _tally(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(collections.Counter(values).items()))


def _rows(
    sources: Sequence[Source],
    measured: Sequence[measures.Measures | str],
    good: Sequence[int],
    splits: Mapping[str, Sequence[str]],
    twins: Sequence[Twins],
) -> list[dict[str, Any]]:
    """A row an image, those that cannot be read among them."""
    place = {i: k for k, i in enumerate(good)}
    twin_of: dict[int, int] = {}
    for t in twins:
        for k in t.images:
            other = next(j for j in t.images if j != k)
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
