"""Loader and augmentation settings for the tests of the stream of batches."""

import dataclasses
from typing import Any

from histojax.data.pipeline import LoaderSpec
from histojax.data.transforms import AugmentSpec

SIZE = 8
OFF = AugmentSpec(flips=False, quarter_turns=False)
ON = AugmentSpec(crop_scale=0.5, colour_jitter=0.2, stain_jitter=0.1, blur=1.0)
SPEC = LoaderSpec(batch_size=4, image_size=SIZE, seed=0, threads=2)


def spec(**fields: Any) -> LoaderSpec:
    """Return `SPEC` with some fields replaced."""
    return dataclasses.replace(SPEC, **fields)
