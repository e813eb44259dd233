"""DT Grad-CAM: threshold a Grad-CAM map dynamically, clean the mask and trace its outlines.

The paper that names it (arXiv 2308.13150) calls the threshold dynamic, but its rule is not public. Here the threshold
is computed for each map, by Otsu's method unless another rule is given. That is our choice.
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
    """Compute the threshold that maximises the variance between the two groups that it separates (Otsu 1979).

    The result is the centre of the last bin of the lower group, in a histogram of 256 bins from the least to the
    greatest value, as in scikit-image's `threshold_otsu`. If all values are equal, it is that value.
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
    """How the threshold of a map is computed.

    Attributes:
      name: `otsu`, `percentile` or `mean_sd`.
      number: the percentile, 0 … 100, or the number of standard deviations above the mean; unused by `otsu`.
    """

    name: str = "otsu"
    number: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """Parse `otsu`, `percentile:90` or `mean_sd:1`.

        Raises:
          RunError: an unknown rule, or a number out of range.
        """
        if text == "otsu":
            return cls()
        match = re.fullmatch(r"(percentile|mean_sd):(-?\d+(?:\.\d+)?)", text)
        if match is None:
            raise RunError(f"--threshold={text} is not a rule: give otsu, or for example percentile:90 or mean_sd:1")
        rule = cls(match[1], float(match[2]))
        if rule.name == "percentile" and not 0 <= rule.number <= 100:
            raise RunError(f"--threshold={text}: a percentile must lie in 0 … 100")
        return rule

    def __str__(self) -> str:
        return self.name if self.name == "otsu" else f"{self.name}:{self.number:g}"

    def threshold(self, values: np.ndarray) -> float:
        """Compute the threshold of a map. Values above it are marked, values equal to it are not."""
        rules: dict[str, Callable[[], Any]] = {
            "otsu": lambda: otsu(values),
            "percentile": lambda: np.percentile(values, self.number),
            "mean_sd": lambda: values.mean(dtype=np.float64) + self.number * values.std(dtype=np.float64),
        }
        return float(rules[self.name]())


@dataclasses.dataclass(frozen=True)
class Marking:
    """The marked area of a map.

    Attributes:
      threshold: values above it are marked.
      mask: bool [height, width].
      parts: polygons of the connected parts. Each is a list of rings `f64 [n, 2]`, x and y in pixels from the upper
        left corner of the image: the outline, then its holes. The first point is not repeated at the end.
    """

    threshold: float
    mask: np.ndarray
    parts: list[list[np.ndarray]]


def mark(values: np.ndarray, rule: Rule, min_part: float = 0.01) -> Marking:
    """Mark the parts of a map f32 [height, width] that lie above its threshold.

    First holes are filled, then parts are dropped, that are smaller than `min_part`, a fraction of the map's area.
    Pixels of one part are connected by their sides, those of one hole by sides or corners.
    """
    threshold = rule.threshold(values)
    mask = values > threshold
    min_pixels = min_part * mask.size
    mask |= _small_parts(~mask, min_pixels, connectivity=8)
    mask &= ~_small_parts(mask, min_pixels, connectivity=4)
    return Marking(threshold, mask, outlines(mask))


def outlines(mask: np.ndarray) -> list[list[np.ndarray]]:
    """Trace the parts of a mask bool [height, width] as polygons, in the form of `Marking.parts`.

    Lines run between the pixels inside and those outside; corners are cut off by half a pixel.
    """
    padded = np.pad(mask, 1).astype(np.float32)
    generator = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
    parts = []
    # Because of the padding, index 1 is the first pixel, whose centre is at 0.5.
    for points, offsets in zip(*generator.filled(0.5, 1.5), strict=True):
        rings = [points[a : b - 1] - 0.5 for a, b in itertools.pairwise(offsets)]
        parts.append([_drop_collinear(ring) for ring in rings])
    return parts


def write_geojson(path: str | os.PathLike[str], marking: Marking, *, image: str, name: str) -> None:
    """Write the parts as GeoJSON for QuPath, in pixels of the image, the largest part first.

    Args:
      path: file to write.
      marking: marked area of the image's map for one class.
      image: name of the image; the `id` of a part depends on it, on the class and on the part's outline.
      name: name of the class.
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
    """Compute the area of a polygon without its holes, in square pixels."""

    def enclosed(ring: np.ndarray) -> float:
        x, y = ring.T
        return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2

    return enclosed(rings[0]) - sum(enclosed(ring) for ring in rings[1:])


def _small_parts(mask: np.ndarray, min_pixels: float, *, connectivity: int) -> np.ndarray:
    """Return the mask of the connected parts with fewer than `min_pixels` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=connectivity)
    small = stats[:, cv2.CC_STAT_AREA] < min_pixels
    small[0] = False  # label 0: everything outside of the mask
    return small[labels]


def _drop_collinear(ring: np.ndarray) -> np.ndarray:
    """Drop the points that lie on a straight line between their neighbours."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
