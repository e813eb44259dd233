"""Normalisation of pixels, the first step of every model."""

from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np

Images = TypeVar("Images", jax.Array, np.ndarray)


def normalise(images: Images, mean: Sequence[float], std: Sequence[float]) -> Images:
    """Scale pixels to 0 … 1, subtract the mean and divide by the standard deviation.

    Args:
      images: u8 [b, h, w, 3].
      mean: of each channel, for values in 0 … 1.
      std: standard deviation of each channel, for values in 0 … 1.

    Returns:
      f32 [b, h, w, 3], of the same library as `images`.
    """
    mean_row, std_row = (np.asarray(values, np.float32).reshape(1, 1, 1, 3) for values in (mean, std))
    normalised: Images = (images.astype(np.float32) / 255 - mean_row) / std_row
    return normalised
