"""Pictures that look the same: a perceptual hash that handles flips and quarter turns, and a check of the pixels.

A picture is reduced to its grey values, averaged to 64 × 64 whatever its shape. The hash consists of the signs of the
lowest 16 × 16 coefficients of its cosine transform: 255 bits, because the mean is always positive (the idea of Zauner
2010, "pHash", with signs instead of comparisons with the median). Flipping or transposing the picture changes the signs
of coefficients or swaps them, so the hashes of all eight views come from one transform. Similar hashes are not
sufficient: the grey values of the pair must also correlate.

Not found reliably: crops (two thirds of crops by 1 % are found), overlapping fields, other rotations.
"""

import dataclasses
from collections.abc import Iterator

import cv2
import numpy as np

SIDE = 64
BITS = 255
# Chosen on real images: no two of 260 images of BreakHis and WSSS4LUAD differ by less than 89 bits or correlate by more
# than 0.78; their JPEG copies (quality 20 or better) stay within 14 bits and above 0.99, in every view.
MAX_DISTANCE = 40
LEAST_CORRELATION = 0.95
VIEWS = (
    "not turned", "mirrored left to right", "mirrored top to bottom", "turned by 180°",
    "mirrored on the diagonal", "turned by 90° clockwise", "turned by 90° counterclockwise",
    "mirrored on the other diagonal",
)  # fmt: skip
_LOWEST = 16  # coefficients per side
_BLOCK = 1 << 21  # distances in memory at a time


@dataclasses.dataclass(frozen=True)
class NearPair:
    """Two pictures that look the same.

    Attributes:
      first: position of the first picture.
      second: position of the second picture.
      view: position in `VIEWS` of the change that turns the first into the second.
      distance: number of hash bits that differ.
      correlation: correlation of their grey values at 64 × 64.
    """

    first: int
    second: int
    view: int
    distance: int
    correlation: float


def grey_of(rgb: np.ndarray) -> np.ndarray:
    """Average a picture, `uint8 [h, w, 3]`, to grey values `uint8 [64, 64]`, whatever its shape."""
    return cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def see(grey: np.ndarray, view: int) -> np.ndarray:
    """Return a square picture in one of the eight `VIEWS`."""
    if view & 4:
        grey = grey.T
    return grey[:: -1 if view & 2 else 1, :: -1 if view & 1 else 1]


def hash_views(grey: np.ndarray) -> np.ndarray:
    """Hash the eight views of a picture, `[64, 64]` -> `uint64 [8, 4]`; the first is the picture itself."""
    lowest = cv2.dct(grey.astype(np.float32))[:_LOWEST, :_LOWEST]
    sign = np.where(np.arange(_LOWEST) % 2, np.float32(-1), np.float32(1))
    views = []
    for view in range(len(VIEWS)):
        seen = lowest.T if view & 4 else lowest
        seen = seen * sign if view & 1 else seen
        views.append(seen * sign[:, np.newaxis] if view & 2 else seen)
    return np.packbits(np.stack(views).reshape(len(VIEWS), -1) > 0, axis=1).view(np.uint64)


def near_pairs(greys: np.ndarray, n_own: int, max_distance: int = MAX_DISTANCE) -> list[NearPair]:
    """Find all pairs whose first picture is one of the first `n_own`, in order.

    Args:
      greys: `uint8 [n, 64, 64]`; none may be blank, because the hash of a blank picture is noise.
      n_own: the pictures after these are compared with these, but not with each other.
      max_distance: number of hash bits, of 255, that may differ in a pair.
    """
    if not len(greys):
        return []
    hashes = np.stack([hash_views(grey) for grey in greys])
    pairs = []
    for first, second in _candidates(hashes, n_own, max_distance):
        distances = np.bitwise_count(hashes[first] ^ hashes[second, 0]).sum(axis=1)
        view = int(distances.argmin())
        correlation = _correlation(see(greys[first], view), greys[second])
        if correlation >= LEAST_CORRELATION:
            pairs.append(NearPair(first, second, view, int(distances[view]), correlation))
    return pairs


def _candidates(hashes: np.ndarray, n_own: int, max_distance: int) -> Iterator[tuple[int, int]]:
    """Yield the positions of pairs whose hashes, `uint64 [n, 8, 4]`, are close in some view."""
    rows = max(1, _BLOCK // len(hashes))
    plain = np.ascontiguousarray(hashes[:, 0].T)
    for start in range(0, n_own, rows):
        block = hashes[start : min(start + rows, n_own)]
        close = np.zeros((len(block), len(hashes) - start), bool)
        for view in range(len(VIEWS)):
            distance = np.zeros(close.shape, np.uint8)  # at most 255
            for word in range(plain.shape[0]):
                distance += np.bitwise_count(block[:, view, word, np.newaxis] ^ plain[word, start:])
            close |= distance <= max_distance
        first, second = np.nonzero(np.triu(close, 1))
        yield from zip((first + start).tolist(), (second + start).tolist(), strict=True)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
