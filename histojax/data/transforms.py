"""Pixel operations: uint8 RGB in, uint8 RGB out; random ones take an explicit generator."""

import dataclasses
import threading
from typing import NamedTuple

import cv2
import numpy as np

from data_pipelines.pixels import resize
from data_pipelines.stain import StainNormalizer, find_stains, perturb

# grain's threads do the work; OpenCV's own would fight them for the cores.
cv2.setNumThreads(0)

# Ruifrok & Johnston 2001: optical density of hematoxylin, eosin and DAB in red, green and blue.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], dtype=np.float32)
_STAINS /= np.linalg.norm(_STAINS, axis=1, keepdims=True)
_UNMIX = np.linalg.inv(_STAINS)
_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)  # optical density of each pixel value
_local = threading.local()


@dataclasses.dataclass(frozen=True)
class AugmentSpec:
    """Random changes of a training image; the fields of `config.data.augment`. 0 or False means off.

    Attributes:
      flips: flip left-right and up-down, each with probability 1/2.
      quarter_turns: rotate by 0, 90, 180 or 270 degrees. Tissue has no upright orientation; with flips, this is the
        dihedral group.
      crop_scale: smallest fraction of the image's area that a random resized crop keeps; 1: no crop.
      crop_ratio: largest aspect ratio of the crop relative to the image's.
      colour_jitter: brightness, contrast and saturation are each scaled by up to 1 ± this.
      stain_jitter: hematoxylin and eosin densities are scaled by up to 1 ± this and shifted by up to ± this/10
        (Tellez et al. 2018, on Ruifrok & Johnston's stains).
      macenko_jitter: the same of the stains that Macenko's method finds in the image itself; an image in which it
        finds none is not changed.
      blur: largest sigma of a Gaussian blur, in pixels of the resized image; applied to half of the images.
    """

    flips: bool = True
    quarter_turns: bool = True
    crop_scale: float = 1.0
    crop_ratio: float = 4 / 3
    colour_jitter: float = 0.0
    stain_jitter: float = 0.0
    macenko_jitter: float = 0.0
    blur: float = 0.0


class Orientation(NamedTuple):
    """One of the eight orientations of a square: mirrored left-right or not, then turned counterclockwise.

    Attributes:
      mirrored: whether the image is mirrored.
      quarters: number of quarter turns, 0 … 3.
    """

    mirrored: bool
    quarters: int

    @classmethod
    def of(cls, up_down: bool, left_right: bool, quarters: int) -> "Orientation":
        """Return the orientation after flips up-down and left-right and then `quarters` quarter turns."""
        # Up-down is left-right and a half turn.
        return cls(up_down != left_right, (2 * up_down + quarters) % 4)


UPRIGHT = Orientation(False, 0)


def orient(image: np.ndarray, orientation: Orientation, out: np.ndarray | None = None) -> np.ndarray:
    """Mirror and turn an image in one pass. OpenCV moves pixels; numpy moves bytes and takes five times as long.

    Args:
      image: `u8 [h, w, 3]`.
      orientation: the orientation to give it.
      out: contiguous array to write to, `u8 [h, w, 3]`, of which the sides change places with a quarter turn.

    Returns:
      `out`; without it, a new array, or the image itself if it stays as it is.
    """
    match orientation:
        case (False, 0):
            if out is None:
                return image
            out[...] = image
            return out
        case (False, 1):
            return cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE, out)
        case (False, 2):
            return cv2.flip(image, -1, out)
        case (False, 3):
            return cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE, out)
        case (True, 0):
            return cv2.flip(image, 1, out)
        case (True, 1):
            return cv2.transpose(image, out)
        case (True, 2):
            return cv2.flip(image, 0, out)
    return cv2.flip(cv2.transpose(image), -1, out)


def augment(
    image: np.ndarray, size: int, spec: AugmentSpec, rng: np.random.Generator, stain: StainNormalizer | None = None
) -> np.ndarray:
    """Crop a training image, resize it to `[size, size, 3]`, normalise its stains and change it at random."""
    return orient(*augment_except_last_turn(image, size, spec, rng, stain))


def augment_except_last_turn(
    image: np.ndarray, size: int, spec: AugmentSpec, rng: np.random.Generator, stain: StainNormalizer | None = None
) -> tuple[np.ndarray, Orientation]:
    """Do as `augment`, but return flips and turns that come last, so that the caller can write the image only once.

    Returns:
      The pixels, which may be the image itself, and the orientation that they still need.
    """
    if spec.crop_scale < 1:
        image = random_crop(image, spec.crop_scale, spec.crop_ratio, rng)
    image = resize(image, size)
    if stain is not None:  # of what the model sees, as in evaluation
        image, _ = stain.apply(image)
    up_down, left_right = (rng.integers(2), rng.integers(2)) if spec.flips else (0, 0)
    orientation = Orientation.of(bool(up_down), bool(left_right), int(rng.integers(4)) if spec.quarter_turns else 0)
    if not (spec.colour_jitter or spec.stain_jitter or spec.macenko_jitter or spec.blur):
        return image, orientation
    image = orient(image, orientation)
    if spec.colour_jitter:
        image = jitter_colour(image, spec.colour_jitter, rng)
    if spec.stain_jitter:
        image = jitter_stain(image, spec.stain_jitter, rng)
    if spec.macenko_jitter:
        image = jitter_macenko(image, spec.macenko_jitter, rng)
    if spec.blur and rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.1, max(spec.blur, 0.1))))
    return image, UPRIGHT


def random_crop(image: np.ndarray, scale: float, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Cut a random window.

    Args:
      image: `u8 [h, w, 3]`.
      scale: smallest fraction of the image's area.
      ratio: largest aspect ratio relative to the image's.
      rng: draws area, aspect ratio and position.
    """
    height, width = image.shape[:2]
    area = rng.uniform(scale, 1)
    # Limited so that the window fits: a side cut off at the border would leave less than `scale`.
    limit = min(np.log(ratio), -np.log(area))
    stretch = np.exp(rng.uniform(-limit, limit) / 2)
    h = max(1, min(height, round(height * np.sqrt(area) * stretch)))
    w = max(1, min(width, round(width * np.sqrt(area) / stretch)))
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    return image[top : top + h, left : left + w]


def jitter_colour(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Scale brightness, contrast around the mean, and saturation, each by up to 1 ± `strength`."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    # All three are linear: one product with a matrix takes a thirtieth of the time and rounds once less.
    matrix = np.full((3, 3), (1 - saturation) / 3, np.float32) + saturation * np.eye(3, dtype=np.float32)
    mean = brightness * np.mean(cv2.mean(image)[:3])
    shift = np.full((3, 1), mean * (1 - contrast))
    return cv2.transform(image, np.hstack([brightness * contrast * matrix, shift]).astype(np.float32))


def jitter_stain(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Scale and shift the optical densities of hematoxylin and eosin; the third channel is unchanged.

    Densities are natural logarithms; the unmixing matrix is linear and applies to them as to decadic ones.
    """
    scale = rng.uniform(1 - strength, 1 + strength, 2).astype(np.float32)
    shift = rng.uniform(-strength / 10, strength / 10, 2).astype(np.float32)
    # Unmixing, change and mixing combine into one matrix; OpenCV multiplies from the left.
    changed = _UNMIX @ np.diag([*scale, 1]).astype(np.float32) @ _STAINS
    matrix = np.hstack([-changed.T, -(shift @ _STAINS[:2])[:, None]])
    # Allocating new arrays of this size would take eight times as long as the computation.
    x, y = _buffers(image.shape)
    cv2.LUT(image, _DENSITY, x)
    cv2.transform(x, matrix, y)
    cv2.exp(y, x)
    return cv2.addWeighted(x, 256, x, 0, -1, dtype=cv2.CV_8U)


def jitter_macenko(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Scale and shift the optical densities of the image's own stains; see `AugmentSpec.macenko_jitter`."""
    scale = rng.uniform(1 - strength, 1 + strength, 2)  # drawn first, so that later numbers do not depend on the image
    shift = rng.uniform(-strength / 10, strength / 10, 2)
    found = find_stains(image)
    if found is None:
        return image
    return perturb(image, found, scale, shift)


def _buffers(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return this thread's two buffers for intermediate values, `float32` of `shape`."""
    if getattr(_local, "shape", None) != shape:
        _local.shape, _local.arrays = shape, (np.empty(shape, np.float32), np.empty(shape, np.float32))
    arrays: tuple[np.ndarray, np.ndarray] = _local.arrays
    return arrays
