"""Colours of hematoxylin and eosin in an image, and images brought to the colours of others.

Optical densities are natural logarithms of light, -ln((pixel + 1) / `LIGHT`). Macenko et al. 2009 (ISBI) find the two
stains as the ends of the fan that the densities of an image span; Reinhard et al. 2001 (IEEE CG&A) match mean and
spread of the three channels of CIELAB.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

MACENKO, REINHARD = "macenko", "reinhard"
METHODS = (MACENKO, REINHARD)
LIGHT = 240.0  # of empty glass; a scanner's white is not 255
_STAINED = 0.15  # a pixel shows its stains where the density of every channel is at least this (Macenko et al.)
_TAIL = 1.0  # percent of the fan that noise may hold on either side; and of a stain's highest densities
MIN_TISSUE = 0.1  # of an image's pixels; with less, its stains are a guess
_MIN_STAINED = 0.02  # of them must show their stains; pale stroma does not
_MIN_ANGLE = 0.05  # radians between the stains; closer ones cannot be told apart
_DENSITY = -np.log((np.arange(256, dtype=np.float64) + 1) / LIGHT)
_LIGHTEST = int(np.flatnonzero(_DENSITY >= _STAINED).max())  # pixel value
_DENSITY_LUT = np.repeat(_DENSITY.astype(np.float32)[:, None], 3, axis=1)[None]

Image = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Stains:
    """The stains of an image.

    Attributes:
      vectors: unit vectors of density in R, G and B, hematoxylin first, (2, 3).
      strength: the 99th percentile of the density of each, (2,).
    """

    vectors: Array
    strength: Array


@dataclasses.dataclass(frozen=True)
class Colours:
    """Mean and standard deviation of an image's L, a and b (CIELAB), (3,) each."""

    mean: Array
    deviation: Array


def tissue_fraction(image: Image) -> float:
    """The fraction of pixels that are tissue, within 0 … 1: those dark in green, which both stains absorb most."""
    return _share(cv2.inRange(cv2.extractChannel(image, 1), 0, _LIGHTEST))  # a third of the time that numpy takes


def find_stains(image: Image) -> Stains | None:
    """Find hematoxylin and eosin by Macenko's method.

    Args:
      image: `u8 [h, w, 3]`.

    Returns:
      The stains; None with too little tissue (`MIN_TISSUE`) or stains that cannot be told apart.
    """
    shown = cv2.inRange(image, (0, 0, 0), (_LIGHTEST,) * 3)
    if tissue_fraction(image) < MIN_TISSUE or _share(shown) < _MIN_STAINED:
        return None
    density = cv2.LUT(image, _DENSITY_LUT).reshape(-1, 3)
    stained = density.compress(shown.ravel() > 0, axis=0)
    covariance, _ = cv2.calcCovarMatrix(stained, None, cv2.COVAR_NORMAL | cv2.COVAR_ROWS, ctype=cv2.CV_64F)
    plane = np.linalg.eigh(covariance)[1][:, 1:].astype(np.float32)  # the two directions of the largest spread
    x, y = np.ascontiguousarray((stained @ plane).T)
    ends = np.percentile(np.arctan2(y, x), (_TAIL, 100 - _TAIL))
    if ends[1] - ends[0] < _MIN_ANGLE:
        return None
    vectors = np.stack([np.cos(ends), np.sin(ends)], 1) @ plane.astype(np.float64).T
    if vectors[0, 0] <= vectors[1, 0]:
        vectors = vectors[::-1]  # hematoxylin absorbs more red
    amounts = density @ np.linalg.pinv(vectors).astype(np.float32)
    strength = np.percentile(amounts, 100 - _TAIL, axis=0)
    return Stains(vectors, strength) if (strength > 0).all() else None


def restain(image: Image, found: Stains, wanted: Stains, *, keep_rest: bool = False) -> Image:
    """Replace the stains of an image by others of their own strength.

    Args:
      image: `u8 [h, w, 3]`.
      found: its stains.
      wanted: the stains of the result.
      keep_rest: whether the density that the two stains do not explain, such as pigment's, stays as it is; Macenko's
        method drops it.

    Returns:
      `u8 [h, w, 3]`.
    """
    amounts = np.linalg.pinv(found.vectors)
    change = amounts @ np.diag(wanted.strength / found.strength) @ wanted.vectors
    if keep_rest:
        change += np.eye(3) - amounts @ found.vectors
    return _light(cv2.transform(cv2.LUT(image, _DENSITY_LUT), np.ascontiguousarray(change.T, np.float32)))


def perturb(image: Image, found: Stains, scale: Array, shift: Array) -> Image:
    """Change the amounts of an image's stains; what neither of them explains stays as it is.

    Args:
      image: `u8 [h, w, 3]`, as is the result.
      found: its stains.
      scale: multiplies the density of each, (2,).
      shift: is added to the density of each, (2,).
    """
    change = np.eye(3) + np.linalg.pinv(found.vectors) @ np.diag(scale - 1) @ found.vectors
    matrix = np.hstack([change.T, (shift @ found.vectors)[:, None]]).astype(np.float32)
    return _light(cv2.transform(cv2.LUT(image, _DENSITY_LUT), matrix))


def find_colours(image: Image) -> Colours | None:
    """Mean and spread of an image `u8 [h, w, 3]` in CIELAB; None with too little tissue or a single colour."""
    if tissue_fraction(image) < MIN_TISSUE:
        return None
    mean, deviation = (values.ravel() for values in cv2.meanStdDev(_lab(image)))
    return Colours(mean, deviation) if (deviation > 0).all() else None


def recolour(image: Image, found: Colours, wanted: Colours) -> Image:
    """Give an image `u8 [h, w, 3]` the mean and spread of others."""
    scale = wanted.deviation / found.deviation
    shift = np.hstack([np.diag(scale), (wanted.mean - found.mean * scale)[:, None]]).astype(np.float32)
    rgb = cv2.cvtColor(cv2.transform(_lab(image), shift), cv2.COLOR_LAB2RGB)
    return cv2.convertScaleAbs(np.clip(rgb, 0, 1), alpha=255.0)


@dataclasses.dataclass(frozen=True)
class StainNormalizer:
    """Brings images to the colours of a reference.

    Attributes:
      method: one of `METHODS`.
      target: for macenko the vectors of hematoxylin and eosin and their strengths, 8 numbers; for reinhard the mean and
        the standard deviation of L, a and b, 6 numbers.
    """

    method: str
    target: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"stain normalisation {self.method!r} is not one of {', '.join(METHODS)}")
        wanted = 8 if self.method == MACENKO else 6
        if len(self.target) != wanted or not np.isfinite(self.target).all():
            raise ValueError(
                f"the target of {self.method} has {len(self.target)} numbers; it needs {wanted} finite ones"
            )

    @classmethod
    def from_json(cls, saved: Mapping[str, Any] | None) -> "StainNormalizer | None":
        """The normaliser of a checkpoint's entry `stain`, from its `method` and `target`; None: there is none."""
        return None if saved is None else cls(saved["method"], tuple(saved["target"]))

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {"method": self.method, "target": list(self.target)}

    def apply(self, image: Image) -> tuple[Image, bool]:
        """Return the image `u8 [h, w, 3]` in the reference's colours, and whether it had enough tissue to change it."""
        target = np.array(self.target)
        if self.method == MACENKO:
            stains = find_stains(image)
            if stains is None:
                return image, False
            return restain(image, stains, Stains(target[:6].reshape(2, 3), target[6:])), True
        colours = find_colours(image)
        return (image, False) if colours is None else (recolour(image, colours, Colours(target[:3], target[3:])), True)


def fit(method: str, images: Iterable[Image]) -> tuple[StainNormalizer, int, int]:
    """Fit a normaliser to the typical colours of images: the median of each number over those with enough tissue.

    Args:
      method: one of `METHODS`.
      images: `u8 [h, w, 3]` each.

    Returns:
      The normaliser, the number of images that it rests on, and the number left out for want of tissue.

    Raises:
      ValueError: the method is unknown, or no image has enough tissue.
    """
    rows: list[Sequence[float]] = []
    left_out = 0
    for image in images:
        found = find_stains(image) if method == MACENKO else find_colours(image)
        if found is None:
            left_out += 1
        elif isinstance(found, Stains):
            rows.append([*found.vectors.ravel(), *found.strength])
        else:
            rows.append([*found.mean, *found.deviation])
    if not rows:
        raise ValueError(
            f"none of the {left_out} images has {MIN_TISSUE:.0%} of tissue with stains that can be told apart"
        )
    target = np.median(np.array(rows), axis=0)
    if method == MACENKO:
        vectors = target[:6].reshape(2, 3)
        target[:6] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).ravel()
    return StainNormalizer(method, tuple(float(number) for number in target)), len(rows), left_out


def _share(mask: Image) -> float:
    """The fraction of a mask that is not 0."""
    return cv2.countNonZero(mask) / mask.size


def _lab(image: Image) -> npt.NDArray[np.float32]:
    """`f32 [h, w, 3]` in CIELAB."""
    return np.asarray(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)


def _light(density: npt.NDArray[np.float32]) -> Image:
    """Pixels of densities."""
    light = cv2.exp(-density)
    return np.asarray(cv2.convertScaleAbs(np.minimum(light * LIGHT, 255.0)), np.uint8)
