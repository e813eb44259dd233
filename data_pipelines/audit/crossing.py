"""Nearly identical pictures on two sides of a split of a prepared dataset: what a run checks before its first epoch."""

import concurrent.futures
import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from data_pipelines.audit import hashes, measures
from data_pipelines.pixels import decode
from data_pipelines.prepare import open_images
from histojax.core.files import atomic_write

_log = logging.getLogger(__name__)
_FILE = "greys.npy"
_SLOW = 2000  # images from which the first measurement is announced


@dataclasses.dataclass(frozen=True)
class Crossing:
    """Two pictures that look the same and are on two sides.

    Attributes:
      first: position of the first image in the table; it is tested, or in validation if the other is in training.
      second: position of the second image.
      sides: their sides.
      view: how the second is turned or mirrored, as in `hashes.VIEWS`.
    """

    first: int
    second: int
    sides: tuple[str, str]
    view: str


def find_crossing(directory: pathlib.Path, sides: Sequence[str]) -> list[Crossing]:
    """Find pictures that look the same on two sides; `hashes` says what is found and what is not.

    Args:
      directory: of the prepared dataset, in which the images' grey values are kept for the next run.
      sides: side of each image, in the order of the table; empty: the image is left out.
    """
    greys = _greys(directory)
    blank = [measures.is_blank(grey) for grey in greys]
    pairs: list[Crossing] = []
    for held_out, others in (("test", ("train", "val")), ("val", ("train",))):
        own = [i for i, side in enumerate(sides) if side == held_out and not blank[i]]
        rest = [i for i, side in enumerate(sides) if side in others and not blank[i]]
        order = [*own, *rest]
        for pair in hashes.near_pairs(greys[order], len(own)):
            if pair.second >= len(own):
                first, second = order[pair.first], order[pair.second]
                pairs.append(Crossing(first, second, (sides[first], sides[second]), hashes.VIEWS[pair.view]))
    return pairs


def _greys(directory: pathlib.Path) -> np.ndarray:
    """Return the grey values of every image, `uint8 [n, 64, 64]`; they are measured once."""
    path, images = directory / _FILE, open_images(directory)
    try:
        greys: np.ndarray = np.load(path, allow_pickle=False)
        if greys.shape == (len(images), hashes.SIDE, hashes.SIDE):
            return greys
    except (OSError, ValueError, EOFError):  # not written yet, or damaged
        pass
    if len(images) > _SLOW:
        _log.info("comparing %d images with each other, once", len(images))

    def measure(i: int) -> np.ndarray:
        return hashes.grey_of(decode(images[i]["image"]))

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        greys = np.stack(list(pool.map(measure, range(len(images)))))
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, greys, allow_pickle=False)
    return greys
