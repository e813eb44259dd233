"""DT Grad-CAM: a Grad-CAM map thresholded dynamically, cleaned and contoured.

The paper that names it (arXiv 2308.13150) says that the threshold is dynamic, and its rule is not public. Here the
threshold is found anew in each map, by Otsu's method unless another rule is asked for; that is our choice.
"""

import dataclasses
import itertools
import json
import os
import re
import uuid
from collections.abc import Callable
from typing import Any

import contourpy
import cv2
import numpy as np

from histojax.core.errors import RunError
from histojax.core.files import atomic_write

_BINS = 256
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "histojax:explanations")
_COLOUR = (200, 0, 0)


def otsu(values: np.ndarray) -> float:
    """The threshold that parts values into two groups with the greatest variance between them (Otsu 1979).

    Of a histogram of 256 bins from the least to the greatest value, the centre of the last bin of the lower group, as
    scikit-image's `threshold_otsu` has it. Of values that are all alike, that value.
    """
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if low == high:
        return low
    counts, edges = np.histogram(values, _BINS, (low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below, sums = np.cumsum(counts), np.cumsum(counts * centres)
    above, rest = below[-1] - below[:-1], sums[-1] - sums[:-1]
    between = below[:-1] * above * (sums[:-1] / below[:-1] - rest / above) ** 2
    return float(centres[np.argmax(between)])


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the threshold of a map is found.

    Attributes:
      name: `otsu`, `percentile` or `mean_sd`.
      number: the percentile, 0 … 100, or how many standard deviations above the mean.
    """

    name: str = "otsu"
    number: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """Of `otsu`, `percentile:90` or `mean_sd:1`.

        Raises:
          RunError: it is none of these, or the number is out of range.
        """
        if text == "otsu":
            return cls()
        found = re.fullmatch(r"(percentile|mean_sd):(-?\d+(?:\.\d+)?)", text)
        if found is None:
            raise RunError(f"--threshold={text} is neither otsu nor like percentile:90 or mean_sd:1")
        rule = cls(found[1], float(found[2]))
        if rule.name == "percentile" and not 0 <= rule.number <= 100:
            raise RunError(f"--threshold={text}: a percentile is in 0 … 100")
        return rule

    def __str__(self) -> str:
        return self.name if self.name == "otsu" else f"{self.name}:{self.number:g}"

    def threshold(self, values: np.ndarray) -> float:
        """The threshold of a map; what lies above it, and not on it, is marked."""
        rules: dict[str, Callable[[], Any]] = {
            "otsu": lambda: otsu(values),
            "percentile": lambda: np.percentile(values, self.number),
            "mean_sd": lambda: values.mean(dtype=np.float64) + self.number * values.std(dtype=np.float64),
        }
        return float(rules[self.name]())


@dataclasses.dataclass(frozen=True)
class Marking:
    """What a map marks.

    Attributes:
      threshold: of the map.
      mask: bool [height, width].
      parts: polygons, each a list of rings `f64 [n, 2]` of x and y in pixels from the image's upper left corner: the
        outline, then its holes; the first point is not repeated.
    """

    threshold: float
    mask: np.ndarray
    parts: list[list[np.ndarray]]


def mark(values: np.ndarray, rule: Rule, min_part: float = 0.01) -> Marking:
    """The parts of a map f32 [height, width] above its threshold.

    Holes and then parts of less than `min_part` of the map's area are dropped. Pixels of a part share sides; those of a
    hole may touch at corners.
    """
    threshold = rule.threshold(values)
    mask = values > threshold
    least = min_part * mask.size
    mask |= _small(~mask, least, 8)
    mask &= ~_small(mask, least, 4)
    return Marking(threshold, mask, outlines(mask))


def outlines(mask: np.ndarray) -> list[list[np.ndarray]]:
    """The parts of a mask bool [height, width] as polygons, as `Marking.parts` has them.

    Lines run between the pixels inside and those outside, corners cut off by half a pixel.
    """
    around = np.pad(mask, 1).astype(np.float32)
    generator = contourpy.contour_generator(z=around, fill_type=contourpy.FillType.OuterOffset)
    parts = []
    # Index 1 is the first pixel, whose centre is at 0.5.
    for points, offsets in zip(*generator.filled(0.5, 1.5), strict=True):
        rings = [points[a : b - 1] - 0.5 for a, b in itertools.pairwise(offsets)]
        parts.append([_corners(ring) for ring in rings])
    return parts


def write_geojson(path: str | os.PathLike[str], marking: Marking, *, image: str, name: str) -> None:
    """Writes the parts as GeoJSON that QuPath opens, in the image's own pixels, the largest part first.

    Args:
      path: of the file.
      marking: of the image's map for one class.
      image: the image's name; a part's `id` depends on it, on the class and on the part's outline.
      name: of the class.
    """
    features = []
    for rings in sorted(marking.parts, key=lambda rings: -area(rings)):
        closed = [[*ring.tolist(), ring[0].tolist()] for ring in rings]
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(_NAMESPACE, json.dumps([image, name, closed]))),
                "geometry": {"type": "Polygon", "coordinates": closed},
                "properties": {
                    "objectType": "annotation",
                    "classification": {"name": name, "color": list(_COLOUR)},
                    "measurements": {"area_px": area(rings), "share": area(rings) / marking.mask.size},
                },
            }
        )
    with atomic_write(path) as temporary:
        text = json.dumps({"type": "FeatureCollection", "features": features}, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def area(rings: list[np.ndarray]) -> float:
    """Square pixels of a polygon, without its holes."""

    def enclosed(ring: np.ndarray) -> float:
        x, y = ring.T
        return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2

    return enclosed(rings[0]) - sum(enclosed(ring) for ring in rings[1:])


def _small(mask: np.ndarray, least: float, connectivity: int) -> np.ndarray:
    """The parts of a mask with fewer than `least` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=connectivity)
    small = stats[:, cv2.CC_STAT_AREA] < least
    small[0] = False  # what is outside of the mask
    return small[labels]


def _corners(ring: np.ndarray) -> np.ndarray:
    """A ring without the points that lie on a straight line between their neighbours."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
