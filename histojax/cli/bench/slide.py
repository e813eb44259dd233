"""The histojax worker of `histojax bench slide`: `python -m histojax.cli.bench.slide JSON`."""

import pathlib
import time
from typing import Any

import numpy as np
import pandas as pd

from histojax.cli.bench import worker
from histojax.core.errors import RunError
from histojax.slides.grid import GridSpec, make_grid, read_tiles
from histojax.slides.readers.reader import open_slide
from histojax.slides.tissue import TissueSpec, find_tissue


class TileReader:
    """Reads the tissue tiles of a slide; the part that histojax and its peer share.

    A repeat opens the slide again and ends with the pixels of every tissue tile as an array `uint8 [s, s, 3]`; nothing
    is kept from the repeat before. The table of tissue tiles is computed once and is not part of a repeat. The µm/px of
    the tiles are those of level 0 times the nearest power of two, the only ones that DeepZoom has, so that both sides
    read the same area into the same number of pixels.
    """

    def __init__(self, spec: dict[str, Any]):
        self._path, self._mpp = pathlib.Path(spec["slide"]), spec["mpp"]
        self._size, self._threads, self._batch = spec["image_size"], spec["threads"], spec["batch_size"]
        self._tissue = spec["tissue"]
        with open_slide(self._path, self._mpp) as slide:
            self._halvings = max(0, round(np.log2((spec["tile_mpp"] or slide.mpp) / slide.mpp)))
            self._grid = GridSpec(self._size, slide.mpp * 2**self._halvings)
            _, table = make_grid(slide, find_tissue(slide, TissueSpec()), self._grid)
            right, bottom = table["minx"] + table["width"], table["miny"] + table["height"]
            inside = (right <= slide.width) & (bottom <= slide.height)
            self._table: pd.DataFrame = table[inside]  # DeepZoom's tiles at the edge are smaller
            self._reader = slide.reader
        if not len(self._table):
            raise RunError(f"{self._path}: no tissue tile of {self._size} pixels at {self._grid.mpp:g} µm/px")
        self._read_tiles()

    def _read_tiles(self) -> int:
        """Read the tissue tiles of the slide; return their number."""
        raise NotImplementedError  # differs per side

    def _version(self) -> str:
        """Return the name and version of the reader."""
        raise NotImplementedError  # differs per side

    def facts(self) -> dict[str, Any]:
        """See `worker.Side`."""
        return {"images": len(self._table), "mpp": self._grid.mpp, "version": self._version()}

    def run(self, repeats: int) -> dict[str, Any]:
        """See `worker.Side`."""
        began = time.perf_counter()
        images = sum(self._read_tiles() for _ in range(repeats))
        return {"seconds": time.perf_counter() - began, "images": images}


class _Histojax(TileReader):
    def _read_tiles(self) -> int:
        with open_slide(self._path, self._mpp) as slide:
            table = self._table
            if self._tissue:
                table = make_grid(slide, find_tissue(slide, TissueSpec()), self._grid)[1]
            return sum(len(tiles) for tiles in read_tiles(slide, table, self._size, self._batch, self._threads))

    def _version(self) -> str:
        return str(self._reader)


if __name__ == "__main__":
    worker.serve(_Histojax)
