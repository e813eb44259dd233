"""Findings of an audit: duplicate pictures, patients and cases on several sides, unusual colours."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.audit import hashes
from data_pipelines.audit.inputs import Source
from data_pipelines.audit.measures import Measures, robust_z, stands_apart
from data_pipelines.breakhis.filenames import DUPLICATE_SLIDES

COLOURS = ("lightness", "red_green", "yellow_blue")
MAX_NAMED = 3  # names in a sentence


@dataclasses.dataclass(frozen=True)
class AuditImage:
    """A readable image: what was known before, and what was measured."""

    source: Source
    measures: Measures


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Images that show the same picture.

    Attributes:
      images: their positions.
      near: comparison of two nearly identical pictures, each of which may occur several times; None: all pixels are
        identical.
    """

    images: tuple[int, ...]
    near: hashes.NearPair | None = None

    def crosses(self, sides: Sequence[str]) -> bool:
        """Return whether the picture is on several sides."""
        return len({sides[i] for i in self.images} - {""}) > 1


def find_duplicates(images: Sequence[AuditImage], n_own: int, max_distance: int) -> list[Duplicates]:
    """Find all sets of identical pictures, then all pairs of nearly identical ones.

    Blank pictures are compared only for identical pixels.

    Args:
      images: the audited images, then those of the other dataset.
      n_own: number of audited images; every result contains at least one of them.
      max_distance: number of differing hash bits up to which pictures are nearly identical.
    """
    by_hash: dict[str, list[int]] = {}
    for i, image in enumerate(images):
        by_hash.setdefault(image.measures.pixel_hash, []).append(i)
    pictures = list(by_hash.values())  # in the order of their first copies, so the audited images come first
    exact = [Duplicates(tuple(copies)) for copies in pictures if len(copies) > 1 and copies[0] < n_own]
    pictures = [copies for copies in pictures if not images[copies[0]].measures.blank]
    pairs = hashes.near_pairs(
        np.array([images[copies[0]].measures.grey for copies in pictures]),
        sum(copies[0] < n_own for copies in pictures),
        max_distance,
    )
    return exact + [Duplicates((*pictures[pair.first], *pictures[pair.second]), pair) for pair in pairs]


def patient_of(source: Source) -> str:
    """Return the unit that must not be on two sides: the patient, else the case; BreakHis slide 13412 counts once."""
    return DUPLICATE_SLIDES.get(source.patient_id, source.patient_id) or source.case_id


def groups_on_several_sides(
    sources: Iterable[Source], sides: Iterable[str], group_of: Callable[[Source], str]
) -> dict[str, dict[str, int]]:
    """Return the groups with images on several sides: group -> side -> number of images."""
    counts: dict[str, collections.Counter[str]] = {}
    for source, side in zip(sources, sides, strict=True):
        group = group_of(source)
        if group and side:
            counts.setdefault(group, collections.Counter())[side] += 1
    return {group: dict(sorted(by_side.items())) for group, by_side in sorted(counts.items()) if len(by_side) > 1}


def siblings(sources: Iterable[Source], sides: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Return the cases whose patients (slide folders) are on different sides: case -> patient -> its sides."""
    found: dict[str, dict[str, set[str]]] = {}
    for source, side in zip(sources, sides, strict=True):
        if side and source.case_id and source.patient_id:
            found.setdefault(source.case_id, {}).setdefault(patient_of(source), set()).add(side)
    return {
        case: {patient: sorted(patient_sides) for patient, patient_sides in sorted(patients.items())}
        for case, patients in sorted(found.items())
        if len(patients) > 1 and len(set().union(*patients.values())) > 1
    }


def count_and_names(names: Iterable[str]) -> str:
    """Return the number of names and the first of them."""
    names = list(names)
    return f"{len(names)} ({', '.join(names[:MAX_NAMED])}{', …' if len(names) > MAX_NAMED else ''})"


def colours(images: Sequence[AuditImage], key: Callable[[Source], str]) -> dict[str, dict[str, Any]]:
    """Return the mean and standard deviation of the images' colours, lightness spread and sharpness, by group."""
    groups: dict[str, list[Measures]] = {}
    for image in images:
        if key(image.source):
            groups.setdefault(key(image.source), []).append(image.measures)
    table = {}
    for group, measures in sorted(groups.items()):
        values = {
            name: np.array([getattr(m, name) for m in measures]) for name in (*COLOURS, "lightness_sd", "sharpness")
        }
        table[group] = {"images": len(measures)} | {
            name: {"mean": round(float(v.mean()), 2), "sd": round(float(v.std()), 2)} for name, v in values.items()
        }
    return table


def odd_groups(table: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the groups of `colours` whose mean colour differs from the others': group -> how."""
    return _odd(list(table), {name: [row[name]["mean"] for row in table.values()] for name in COLOURS})


def odd_images(images: Sequence[AuditImage]) -> dict[str, str]:
    """Return the images whose mean colour differs from the others': name -> how."""
    names = [image.source.name for image in images]
    return _odd(names, {name: [getattr(image.measures, name) for image in images] for name in COLOURS})


def _odd(names: Sequence[str], columns: Mapping[str, Sequence[float]]) -> dict[str, str]:
    z = {column: robust_z(np.array(values)) for column, values in columns.items()}
    apart = np.any([stands_apart(values) for values in z.values()], axis=0)
    signs = dict(zip(COLOURS, ("L*", "a*", "b*"), strict=True))
    return {
        names[i]: ", ".join(f"{signs[c]} {z[c][i]:+.1f} sd" for c in z if stands_apart(z[c][i]))
        for i in np.nonzero(apart)[0].tolist()
    }
