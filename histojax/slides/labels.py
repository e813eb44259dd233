"""Labels on a slide: which ones a tile carries, and each label's colour and file name."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from histojax.evaluation.thresholds import is_positive

Colour = tuple[int, int, int]

PREFIX = "prob_"
UNLABELLED: Colour = (128, 128, 128)
# QuPath's own colours for its default classes, so that maps look the same in both programs.
_QUPATH_COLOURS: dict[str, Colour] = {
    "tumor": (200, 0, 0),
    "stroma": (150, 200, 150),
    "necrosis": (50, 50, 50),
    "immune cells": (160, 90, 160),
}
# Okabe and Ito (2008), distinguishable with colour blindness; without black and the two hues used above.
_OTHER_COLOURS: tuple[Colour, ...] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 114, 178),
    (240, 228, 66),
    (204, 121, 167),
    (0, 158, 115),
)
_MAX_NAME = 80  # characters of a label in a file name, far below the limit of file systems


def label_names(table: pd.DataFrame) -> tuple[str, ...]:
    """The labels with probabilities in a tile table, in the order of its columns `prob_<label>`."""
    return tuple(str(name).removeprefix(PREFIX) for name in table.columns if str(name).startswith(PREFIX))


def carried_labels(table: pd.DataFrame, thresholds: Mapping[str, float] | None) -> NDArray[np.bool_]:
    """Decide which labels each tile carries.

    Args:
      table: a tile table with probabilities.
      thresholds: label to threshold; a tile carries every label whose probability is at or above its threshold, so it
        may carry several or none. None means exclusive classes: a tile carries the most probable one.

    Returns:
      bool [n, k], labels in the order of `label_names`.

    Raises:
      KeyError: a label has no threshold.
    """
    names = label_names(table)
    probabilities = table[[PREFIX + name for name in names]].to_numpy(np.float64)
    if thresholds is not None:
        return is_positive(probabilities, np.array([thresholds[name] for name in names]))
    return np.arange(len(names)) == probabilities.argmax(axis=1, keepdims=True)


def label_colours(names: Sequence[str]) -> dict[str, Colour]:
    """A colour (red, green, blue in 0 … 255) per label; depends only on the labels and their order."""
    others = [name for name in names if name.lower() not in _QUPATH_COLOURS]
    colours = {name: _OTHER_COLOURS[i % len(_OTHER_COLOURS)] for i, name in enumerate(others)}
    return {name: _QUPATH_COLOURS.get(name.lower()) or colours[name] for name in names}


def blend(colours: Sequence[Colour]) -> Colour:
    """The mean colour, for a tile with several labels; `UNLABELLED` for none."""
    if not colours:
        return UNLABELLED
    red, green, blue = np.mean(colours, axis=0).round().astype(int).tolist()
    return red, green, blue


def unique_file_names(names: Sequence[str]) -> dict[str, str]:
    """A file name per name, of letters, digits, `_`, `-` and `.`; no two are alike, even ignoring case."""
    out: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        plain = re.sub(r"[^\w.-]+", "_", name)[:_MAX_NAME].lstrip(".") or "_"
        unique, number = plain, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{plain}_{number}"
        taken.add(unique.casefold())
        out[name] = unique
    return out
