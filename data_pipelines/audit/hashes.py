"""Pictures that are the same to the eye: a perceptual hash that knows flips and quarter turns, and a check on pixels.

A picture is its grey values, averaged to 64 × 64 whatever its shape. Of its cosine transform the signs of the lowest
16 × 16 coefficients are the hash: 255 bits, for the mean is always positive (the idea of Zauner 2010, "pHash", with
signs for comparisons with the median). A flip or a transposition of the picture changes signs of coefficients, or swaps
them, so that the hashes of all eight views come from one transform. What two hashes say is not believed: the greys of
the pair must correlate.

Not surely found: crops (of those by 1 % two thirds are), overlapping fields, turns other than by quarters.
"""

import dataclasses
from collections.abc import Iterator

import cv2
import numpy as np

SIDE = 64
BITS = 255
# Chosen on real images: of 260 images of BreakHis and WSSS4LUAD no two come closer than 89 bits or correlate by more
# than 0.78; their JPEG copies (quality 20 and better) stay within 14 bits and above 0.99, whatever their view.
MAX_DISTANCE = 40
LEAST_CORRELATION = 0.95
VIEWS = (
    "not turned", "mirrored left to right", "mirrored top to bottom", "turned by 180°",
    "mirrored on the diagonal", "turned by 90° clockwise", "turned by 90° counterclockwise",
    "mirrored on the other diagonal",
)  # fmt: skip
_LOWEST = 16  # coefficients a side
_BLOCK = 1 << 21  # distances held at a time


@dataclasses.dataclass(frozen=True)
class NearPair:
    """Two pictures that are one to the eye.

    Attributes:
      first, second: their positions.
      view: position in `VIEWS` of what makes the second of the first.
      distance: bits in which their hashes differ.
      correlation: of their greys at 64 × 64.
    """

    first: int
    second: int
    view: int
    distance: int
    correlation: float


def grey_of(rgb: np.ndarray) -> np.ndarray:
    """Grey values `uint8 [64, 64]` of a picture `uint8 [h, w, 3]`, averaged, its shape not kept."""
    return cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def see(grey: np.ndarray, view: int) -> np.ndarray:
    """A square picture in one of the eight `VIEWS`."""
    if view & 4:
        grey = grey.T
    return grey[:: -1 if view & 2 else 1, :: -1 if view & 1 else 1]


def hash_views(grey: np.ndarray) -> np.ndarray:
    """The hashes of the eight views of a picture `[64, 64]`: `uint64 [8, 4]`, the first that of the picture itself."""
    lowest = cv2.dct(grey.astype(np.float32))[:_LOWEST, :_LOWEST]
    sign = np.where(np.arange(_LOWEST) % 2, np.float32(-1), np.float32(1))
    views = []
    for view in range(len(VIEWS)):
        seen = lowest.T if view & 4 else lowest
        seen = seen * sign if view & 1 else seen
        views.append(seen * sign[:, np.newaxis] if view & 2 else seen)
    return np.packbits(np.stack(views).reshape(len(VIEWS), -1) > 0, axis=1).view(np.uint64)


def near_pairs(greys: np.ndarray, asked: int, max_distance: int = MAX_DISTANCE) -> list[NearPair]:
    """Every pair of which the first is one of the first `asked` pictures, in order.

    Args:
      greys: `uint8 [n, 64, 64]`; none may be blank, for what is left of a blank picture is noise.
      asked: all pictures after these are compared with these, not with each other.
      max_distance: bits of 255 in which the hashes of a pair may differ.
    """
    if not len(greys):
        return []
    hashes = np.stack([hash_views(grey) for grey in greys])
    pairs = []
    for first, second in _candidates(hashes, asked, max_distance):
        distances = np.bitwise_count(hashes[first] ^ hashes[second, 0]).sum(axis=1)
        view = int(distances.argmin())
        correlation = _correlation(see(greys[first], view), greys[second])
        if correlation >= LEAST_CORRELATION:
            pairs.append(NearPair(first, second, view, int(distances[view]), correlation))
    return pairs


def _candidates(hashes: np.ndarray, asked: int, max_distance: int) -> Iterator[tuple[int, int]]:
    """Positions of the pairs whose hashes are close in some view; of hashes `uint64 [n, 8, 4]`."""
    rows = max(1, _BLOCK // len(hashes))
    plain = np.ascontiguousarray(hashes[:, 0].T)
    for start in range(0, asked, rows):
        block = hashes[start : min(start + rows, asked)]
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
