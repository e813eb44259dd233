"""What an audit finds in a table of images: the same picture twice, patients and cases on two sides, odd colours."""

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


@dataclasses.dataclass(frozen=True)
class Looked:
    """A readable image."""

    source: Source
    measures: Measures


@dataclasses.dataclass(frozen=True)
class Twins:
    """Images that show one picture.

    Attributes:
      images: their positions.
      near: how the hashes of two nearly equal pictures compare, each of which may be there several times; None where
        all pixels are equal.
    """

    images: tuple[int, ...]
    near: hashes.NearPair | None = None

    def crosses(self, sides: Sequence[str]) -> bool:
        """Whether the picture stands on several sides."""
        return len({sides[i] for i in self.images} - {""}) > 1


def find_twins(images: Sequence[Looked], asked: int, max_distance: int) -> list[Twins]:
    """All sets of equal pictures, then all pairs of nearly equal ones, with an image among the first `asked` each.

    Blank pictures are compared by their pixels only.
    """
    copies: dict[str, list[int]] = {}
    for i, image in enumerate(images):
        copies.setdefault(image.measures.pixel_hash, []).append(i)
    pictures = list(copies.values())  # in the order of their first copies, so that the asked come first
    exact = [Twins(tuple(there)) for there in pictures if len(there) > 1 and there[0] < asked]
    pictures = [there for there in pictures if not images[there[0]].measures.blank]
    pairs = hashes.near_pairs(
        np.array([images[there[0]].measures.grey for there in pictures]),
        sum(there[0] < asked for there in pictures),
        max_distance,
    )
    return exact + [Twins((*pictures[pair.first], *pictures[pair.second]), pair) for pair in pairs]


def patient_of(source: Source) -> str:
    """Who must not stand on two sides: the patient, else the case; BreakHis's slide 13412 is one under both names."""
    return DUPLICATE_SLIDES.get(source.patient_id, source.patient_id) or source.case_id


def groups_on_several_sides(
    images: Iterable[Looked], sides: Iterable[str], group_of: Callable[[Source], str]
) -> dict[str, dict[str, int]]:
    """The groups of which images stand on several sides: group -> side -> number of images."""
    counts: dict[str, collections.Counter[str]] = {}
    for image, side in zip(images, sides, strict=True):
        group = group_of(image.source)
        if group and side:
            counts.setdefault(group, collections.Counter())[side] += 1
    return {group: dict(sorted(there.items())) for group, there in sorted(counts.items()) if len(there) > 1}


def siblings(images: Sequence[Looked], sides: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Cases on several sides by way of several patients (slide folders): case -> patient -> its sides."""
    found: dict[str, dict[str, set[str]]] = {}
    for image, side in zip(images, sides, strict=True):
        source = image.source
        if side and source.case_id and source.patient_id:
            found.setdefault(source.case_id, {}).setdefault(patient_of(source), set()).add(side)
    return {
        case: {patient: sorted(there) for patient, there in sorted(patients.items())}
        for case, patients in sorted(found.items())
        if len(patients) > 1 and len(set().union(*patients.values())) > 1
    }


def colours(images: Sequence[Looked], key: Callable[[Source], str]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over the images of each group of their mean L*, a*, b*, and the means of the rest."""
    groups: dict[str, list[Measures]] = {}
    for image in images:
        if key(image.source):
            groups.setdefault(key(image.source), []).append(image.measures)
    table = {}
    for group, there in sorted(groups.items()):
        values = {name: np.array([getattr(m, name) for m in there]) for name in (*COLOURS, "lightness_sd", "sharpness")}
        table[group] = {"images": len(there)} | {
            name: {"mean": round(float(v.mean()), 2), "sd": round(float(v.std()), 2)} for name, v in values.items()
        }
    return table


def odd_groups(table: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The groups of `colours` whose mean colour stands apart from the others' -> in which way."""
    return _odd(list(table), {name: [row[name]["mean"] for row in table.values()] for name in COLOURS})


def odd_images(images: Sequence[Looked]) -> dict[str, str]:
    """The images whose mean colour stands apart from the others', name -> in which way."""
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
