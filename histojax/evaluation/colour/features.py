"""Simple features of an image: 58 of its colours, and 38 of its texture."""

import numpy as np
from scipy.ndimage import gaussian_laplace
from skimage.color import rgb2gray, rgb2hed
from skimage.feature import local_binary_pattern

from histojax.evaluation.metrics import Array

_BINS = 16
_PERCENTILES = (5, 25, 50, 75, 95)
_STAINS = ("hematoxylin", "eosin")  # the first two channels of `rgb2hed`
_RADII = (1, 2, 4)
_POINTS = 8  # of a local binary pattern, which then has 10 uniform values
_SIGMAS = (1, 2, 4, 8)

COLOUR_NAMES = (
    *(f"{channel} {i}/{_BINS}" for channel in ("red", "green", "blue") for i in range(_BINS)),
    *(f"{stain} {p} %" for stain in _STAINS for p in _PERCENTILES),
)
TEXTURE_NAMES = (
    *(f"lbp radius {radius}: {value}" for radius in _RADII for value in range(_POINTS + 2)),
    *(f"laplacian sigma {sigma}: {what}" for sigma in _SIGMAS for what in ("mean absolute", "deviation")),
)
NAMES = (*COLOUR_NAMES, *TEXTURE_NAMES)
VERSION = 1  # increases when the same image gives other features


def colour_and_texture(rgb: Array) -> Array:
    """Compute the features of one image, in the order of `NAMES`; the first are those of `COLOUR_NAMES`.

    Histograms of red, green and blue; percentiles of hematoxylin and eosin (Ruifrok and Johnston 2001); histograms of
    uniform local binary patterns (Ojala et al. 2002); mean absolute value and standard deviation of the Laplacian of
    Gaussians of the grey image.

    Args:
      rgb: u8 [h, w, 3].

    Returns:
      f32 [96].
    """
    stains = rgb2hed(rgb)[..., : len(_STAINS)]
    grey = rgb2gray(rgb)
    levels = np.round(grey * 255).astype(np.uint8)
    parts = [_fractions(rgb[..., channel] // (256 // _BINS), _BINS) for channel in range(3)]
    parts.append(np.percentile(stains, _PERCENTILES, axis=(0, 1)).T.ravel())
    for radius in _RADII:
        pattern = local_binary_pattern(levels, _POINTS, radius, method="uniform")
        parts.append(_fractions(pattern.astype(np.uint8), _POINTS + 2))
    for sigma in _SIGMAS:
        edges = gaussian_laplace(grey.astype(np.float32), sigma)
        parts.append(np.array([np.abs(edges).mean(), edges.std()]))
    return np.concatenate(parts).astype(np.float32)


def _fractions(values: Array, count: int) -> Array:
    """Return the fraction of each of `count` values, f64 [count]."""
    fractions: Array = np.bincount(values.ravel(), minlength=count) / values.size
    return fractions
