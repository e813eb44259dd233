"""Both sides of a benchmark of reading slides, each in a process of its own: `python -m histojax.bench.slide JSON`.

A repeat opens the slide anew and ends with the pixels of every tissue tile as an array `uint8 [s, s, 3]`; nothing is
kept from the repeat before. The peer is OpenSlide's own DeepZoomGenerator, as its users loop over it or from a pool of
threads that share it. It knows resolutions that are level 0's divided by powers of two: µm/px is rounded to the nearest
of them, so that both give the same area in the same number of pixels. Where that needs resampling it uses Lanczos'
filter, and histojax averages over areas.
"""

import concurrent.futures
import pathlib
import time
from typing import Any

import numpy as np
import openslide
import pandas as pd
from openslide.deepzoom import DeepZoomGenerator

from histojax.cli.bench import worker
from histojax.core.errors import RunError
from histojax.slides.grid import GridSpec, make_grid, read_tiles
from histojax.slides.readers.reader import open_slide
from histojax.slides.tissue import TissueSpec, find_tissue


class _Side:
    """What both have: the table of tissue tiles, which is found once and is no part of a repeat."""

    def __init__(self, spec: dict[str, Any]):
        self._path, self._mpp = pathlib.Path(spec["slide"]), spec["mpp"]
        self._size, self._threads, self._batch = spec["image_size"], spec["threads"], spec["batch_size"]
        self._tissue = spec["tissue"]
        with open_slide(self._path, self._mpp) as slide:
            self._halvings = max(0, round(np.log2((spec["tile_mpp"] or slide.mpp) / slide.mpp)))
            self._grid = GridSpec(self._size, slide.mpp * 2**self._halvings)
            geometry, table = make_grid(slide, find_tissue(slide, TissueSpec()), self._grid)
            inside = (table["minx"] + geometry.tile <= slide.width) & (table["miny"] + geometry.tile <= slide.height)
            self._table: pd.DataFrame = table[inside]  # DeepZoom's tiles at the edge are smaller
            self._reader = slide.reader
        if not len(self._table):
            raise RunError(f"{self._path}: no tissue tile of {self._size} pixels of {self._grid.mpp:g} µm")
        self._once()

    def _once(self) -> int:
        """Reads the slide's tissue tiles; how many."""
        raise NotImplementedError  # each side's own

    def facts(self) -> dict[str, Any]:
        """See `contestant.Side`."""
        return {"images": len(self._table), "mpp": self._grid.mpp, "version": self._version()}

    def _version(self) -> str:
        """Of the reader."""
        raise NotImplementedError  # each side's own

    def run(self, repeats: int) -> dict[str, Any]:
        """See `contestant.Side`."""
        began = time.perf_counter()
        images = sum(self._once() for _ in range(repeats))
        return {"seconds": time.perf_counter() - began, "images": images}


class _Ours(_Side):
    def _once(self) -> int:
        with open_slide(self._path, self._mpp) as slide:
            table = self._table
            if self._tissue:
                table = make_grid(slide, find_tissue(slide, TissueSpec()), self._grid)[1]
            return sum(len(tiles) for tiles in read_tiles(slide, table, self._size, self._batch, self._threads))

    def _version(self) -> str:
        return str(self._reader)


class _DeepZoom(_Side):
    def _once(self) -> int:
        addresses = list(zip(self._table["column"], self._table["row"], strict=True))
        with openslide.OpenSlide(self._path) as slide:
            generator = DeepZoomGenerator(slide, tile_size=self._size, overlap=0)
            level = generator.level_count - 1 - self._halvings

            def read(address: tuple[int, int]) -> int:
                tile = np.asarray(generator.get_tile(level, address))
                assert tile.shape == (self._size, self._size, 3)
                return 1

            if self._threads == 1:
                return sum(map(read, addresses))
            with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
                return sum(pool.map(read, addresses))

    def _version(self) -> str:
        return f"openslide-python {openslide.__version__}"


def _make(spec: dict[str, Any]) -> Any:
    return {"histojax": _Ours, "deepzoom": _DeepZoom}[spec["side"]](spec)


if __name__ == "__main__":
    worker.serve(_make)
