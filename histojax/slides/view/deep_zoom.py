"""Slides as DeepZoom images: a pyramid of square JPEG tiles, read from the slide one at a time."""

import collections
import dataclasses
import math
import pathlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_pipelines.audit.measures import thumbnail
from data_pipelines.pixels import resize_to
from histojax.slides.readers.reader import Slide, open_slide

TILE, OVERLAP = 510, 1  # pixels: a tile with its neighbours' edges has 512
_OPEN_SLIDES = 2  # each may cache 128 MiB of decoded tiles
_CACHED_TILES = 256  # about 20 MB of JPEG


@dataclasses.dataclass(frozen=True)
class Pyramid:
    """The sizes of a DeepZoom image; level 0 has one pixel, and each level twice as many along a side.

    Attributes:
      width: of the finest level in pixels.
      height: of the finest level in pixels.
    """

    width: int
    height: int

    @property
    def finest(self) -> int:
        """The number of the finest level."""
        return (max(self.width, self.height) - 1).bit_length()

    @property
    def whole(self) -> int:
        """The number of the finest level that is a single tile."""
        return min(self.finest, TILE.bit_length() - 1)

    def size(self, level: int) -> tuple[int, int]:
        """Width and height of a level in pixels."""
        shift = self.finest - level
        return -(-self.width >> shift), -(-self.height >> shift)

    def box(self, level: int, column: int, row: int) -> tuple[int, int, int, int] | None:
        """Left, top, width and height of a tile in pixels of its level; None if there is no such tile."""
        if not 0 <= level <= self.finest:
            return None
        sides = []
        for index, length in zip((column, row), self.size(level), strict=True):
            if not 0 <= index < math.ceil(length / TILE):
                return None
            start = max(0, index * TILE - OVERLAP)
            sides.append((start, min(length, (index + 1) * TILE + OVERLAP) - start))
        (x, width), (y, height) = sides
        return x, y, width, height

    def paths(self) -> Iterator[str]:
        """Yield the path of each tile below the image's folder, coarsest level first."""
        for level in range(self.finest + 1):
            columns, rows = (math.ceil(length / TILE) for length in self.size(level))
            for row in range(rows):
                yield from (f"{level}/{column}_{row}.jpg" for column in range(columns))

    def pixels(self) -> int:
        """The number of pixels of all levels."""
        return sum(math.prod(self.size(level)) for level in range(self.finest + 1))

    def description(self, url: str) -> dict[str, Any]:
        """The image as OpenSeadragon takes it; `url` is its folder, with a slash at the end."""
        size = {"Width": self.width, "Height": self.height}
        schema = "http://schemas.microsoft.com/deepzoom/2008"
        facts = {"xmlns": schema, "Url": url, "Format": "jpg", "Overlap": OVERLAP, "TileSize": TILE, "Size": size}
        return {"Image": facts}


def pyramid_of(facts: Mapping[str, Any], finest_mpp: float | None) -> Pyramid:
    """The DeepZoom image of a slide, with square pixels.

    Args:
      facts: `width`, `height`, `mpp` and `mpp_y` of the slide.
      finest_mpp: the finest level has at least so many µm/px; None: as many as the slide.
    """
    scale = 1.0 if finest_mpp is None else min(1.0, facts["mpp"] / finest_mpp)
    height = facts["height"] * facts["mpp_y"] / facts["mpp"]
    return Pyramid(max(1, round(facts["width"] * scale)), max(1, round(height * scale)))


class Tiles:
    """Reads tiles of slides as JPEG; keeps the latest tiles, and at most two slides open. Safe to use from threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slides: collections.OrderedDict[pathlib.Path, Slide] = collections.OrderedDict()
        self._cache: collections.OrderedDict[tuple[pathlib.Path, Pyramid, int, int, int], bytes] = (
            collections.OrderedDict()
        )

    def read(
        self, path: pathlib.Path, facts: Mapping[str, Any], pyramid: Pyramid, position: tuple[int, int, int]
    ) -> bytes | None:
        """Return a tile; None if there is no such tile.

        Args:
          path: the slide's file.
          facts: of the slide in its record, with `mpp` and the `origin` of its coordinates.
          pyramid: the DeepZoom image of the slide.
          position: level, column and row of the tile.

        Raises:
          SlideError: the slide cannot be read.
        """
        if pyramid.box(*position) is None:
            return None
        key = (path, pyramid, *position)
        with self._lock:  # a user looks at one slide at a time, so that one read at a time is enough
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            pixels = _pixels(self._open(path, facts), pyramid, *position)
            tile = self._cache[key] = thumbnail(pixels, TILE + 2 * OVERLAP)
            if len(self._cache) > _CACHED_TILES:
                self._cache.popitem(last=False)
            return tile

    def open(self, path: pathlib.Path, facts: Mapping[str, Any]) -> None:
        """Open a slide, with the arguments of `read`.

        Raises:
          SlideError: it cannot be opened.
        """
        with self._lock:
            self._open(path, facts)

    def close(self) -> None:
        """Close the slides."""
        with self._lock:
            while self._slides:
                self._slides.popitem()[1].close()

    def _open(self, path: pathlib.Path, facts: Mapping[str, Any]) -> Slide:
        if path not in self._slides:
            # Records without an origin are from before it could be chosen: they count from the whole level 0.
            self._slides[path] = open_slide(path, facts["mpp"], origin=facts.get("origin", "level0"))
            if len(self._slides) > _OPEN_SLIDES:
                self._slides.popitem(last=False)[1].close()
        self._slides.move_to_end(path)
        return self._slides[path]


def _pixels(slide: Slide, pyramid: Pyramid, level: int, column: int, row: int) -> np.ndarray:
    """The pixels of a tile that exists."""
    if level < pyramid.whole:  # of one level, since each would be read from the whole slide
        return resize_to(_pixels(slide, pyramid, pyramid.whole, 0, 0), *pyramid.size(level))
    box = pyramid.box(level, column, row)
    assert box is not None
    x, y, width, height = box
    # The level's pixels in level-0 pixels. Its last column and row may reach beyond the slide, where it is white.
    across = slide.width / pyramid.width * 2 ** (pyramid.finest - level)
    down = slide.height / pyramid.height * 2 ** (pyramid.finest - level)
    left, top = round(x * across), round(y * down)
    right, bottom = max(left + 1, round((x + width) * across)), max(top + 1, round((y + height) * down))
    return slide.read(left, top, right - left, bottom - top, width, height)
