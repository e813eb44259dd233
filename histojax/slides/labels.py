"""The labels of a model on a slide: which a tile has, in which colour, under which file name."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histojax.evaluation.thresholds import is_positive

Colour = tuple[int, int, int]

PREFIX = "prob_"
UNLABELLED: Colour = (128, 128, 128)
# QuPath's own colours for its default classes, so that a map looks alike here and there.
_KNOWN: dict[str, Colour] = {
    "tumor": (200, 0, 0),
    "stroma": (150, 200, 150),
    "necrosis": (50, 50, 50),
    "immune cells": (160, 90, 160),
}
# Okabe and Ito (2008), distinct to colour-blind eyes; without the black and the two hues that are taken above.
_OTHERS: tuple[Colour, ...] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 114, 178),
    (240, 228, 66),
    (204, 121, 167),
    (0, 158, 115),
)
_LONGEST_NAME = 80  # characters of a label in a file name: far below what file systems allow


def names_of(table: pd.DataFrame) -> tuple[str, ...]:
    """The labels that a tile table has probabilities of, in the order of its columns `prob_<label>`."""
    return tuple(str(name).removeprefix(PREFIX) for name in table.columns if str(name).startswith(PREFIX))


def predicted(table: pd.DataFrame, thresholds: Mapping[str, float] | None) -> NDArray[np.bool_]:
    """Whether a tile has a label: bool [n, k], labels in the order of `names_of`.

    A label is there where its probability is at least its threshold; a tile may have several, or none. Without
    thresholds the classes exclude each other, and a tile has the most probable one. Raises KeyError for a label
    without its threshold.
    """
    names = names_of(table)
    probabilities = table[[PREFIX + name for name in names]].to_numpy(np.float64)
    if thresholds is not None:
        return is_positive(probabilities, np.array([thresholds[name] for name in names]))
    return np.arange(len(names)) == probabilities.argmax(axis=1, keepdims=True)


def colours_of(names: Sequence[str]) -> dict[str, Colour]:
    """A colour for each label, red, green and blue in 0 … 255; it depends on the labels and their order alone."""
    unknown = [name for name in names if name.lower() not in _KNOWN]
    return {
        name: _KNOWN[name.lower()] if name.lower() in _KNOWN else _OTHERS[unknown.index(name) % len(_OTHERS)]
        for name in names
    }


def blend(colours: Sequence[Colour]) -> Colour:
    """The colour of a tile with several labels: their mean; `UNLABELLED` without any."""
    if not colours:
        return UNLABELLED
    red, green, blue = np.mean(colours, axis=0).round().astype(int).tolist()
    return red, green, blue


def file_names_of(names: Sequence[str]) -> dict[str, str]:
    """A file's or folder's name for each name: letters, digits, `_`, `-`, `.`; no two alike, even without case."""
    out: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        plain = re.sub(r"[^\w.-]+", "_", name)[:_LONGEST_NAME].lstrip(".") or "_"
        unique, number = plain, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{plain}_{number}"
        taken.add(unique.casefold())
        out[name] = unique
    return out
