"""A model of slides that needs no training: purple tiles are tumor, pink ones stroma."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from histojax.slides import cohort, pictures
from histojax.slides.tsr.spec import TSRSpec

SMALL = TSRSpec(min_tumor_mm2=0, min_tissue_mm2=0.01, block_um=80, hot_spot_um=120, resamples=50)


def by_colour(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """How purple and how pink each tile is."""
    for batch in batches:
        red = batch[..., 0].mean((1, 2)) / 255
        yield np.stack([1 - red, red], axis=1).astype(np.float32)


def model(**changes: Any) -> cohort.Model:
    fields = {"labels": ("tumor", "stroma"), "thresholds": {"tumor": 0.4, "stroma": 0.65}, "image_size": 16}
    fields |= {"tile_um": 24.0, "batch_size": 8, "stream": by_colour, "confusion": None}
    facts = {"name": "arithmetic", "checkpoint": "0", "step": 1, "data": "none", "protocol": "none"}
    return cohort.Model(**fields | {"facts": facts} | changes)


def coarse_pictures(patch: pytest.MonkeyPatch) -> None:
    """Draw the pictures of a slide with few pixels: at full size they take most of the time of a small slide.

    `pictures_test` and the end-to-end tests look at pictures of full size.
    """
    patch.setattr(pictures, "_DPI", 40)
