"""Tiles per second: histojax.slides against OpenSlide's DeepZoomGenerator, over the same tissue tiles of a slide.

    python benchmarks/slide_tiles.py slide.svs --threads 2

A round opens the slide anew and ends with the pixels of every tissue tile as an array `uint8 [s, s, 3]`:

* tiles: open_slide and read_tiles with --threads threads;
* whole: open_slide, find_tissue, make_grid and read_tiles, so that finding the tissue counts, too;
* deepzoom: DeepZoomGenerator.get_tile of the same tiles one after the other, as its users loop over it;
* deepzoom, threads: the same from a pool of --threads threads, which share the generator.

DeepZoom knows resolutions that are level 0's divided by powers of two; --tile_mpp is rounded to the nearest of them,
so that both give the same area in the same number of pixels. Where that needs resampling DeepZoom uses Lanczos' filter
and histojax averages over areas. Tissue and the table of tiles are found once for DeepZoom and not counted there.
Rounds alternate; printed are medians over rounds and, for each round, nothing is kept from the one before.
"""

import argparse
import concurrent.futures
import os
import pathlib
import statistics
import time
from collections.abc import Callable

import numpy as np
import openslide
import pandas as pd
from openslide.deepzoom import DeepZoomGenerator

from histojax.slides.grid import GridSpec, make_grid, read_tiles
from histojax.slides.reader import open_slide
from histojax.slides.tissue import TissueSpec, find_tissue


def main() -> None:
    """Prints the comparison for one slide."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=pathlib.Path)
    parser.add_argument("--mpp", type=float, help="µm per level-0 pixel, where the slide does not say")
    parser.add_argument("--tile", type=int, default=224, help="side of a tile in pixels (default: 224)")
    parser.add_argument("--tile_mpp", type=float, help="µm per pixel of a tile (default: the slide's)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    path, size, threads, batch = arguments.slide, arguments.tile, arguments.threads, arguments.batch

    with open_slide(path, arguments.mpp) as slide:
        halvings = max(0, round(np.log2((arguments.tile_mpp or slide.mpp) / slide.mpp)))
        spec = GridSpec(size, slide.mpp * 2**halvings)
        geometry, table = make_grid(slide, find_tissue(slide, TissueSpec()), spec)
        inside = (table["minx"] + geometry.tile <= slide.width) & (table["miny"] + geometry.tile <= slide.height)
        table = table[inside]  # DeepZoom's tiles at the edge are smaller
        print(f"{path.name}: {slide.width} × {slide.height} px of {slide.mpp:g} µm; {slide.reader}")
        print(
            f"{len(table)} tissue tiles of {size} px of {spec.mpp:g} µm; {threads} threads; {arguments.rounds} rounds"
        )

    ways: dict[str, Callable[[], int]] = {
        "tiles": lambda: _tiles(path, arguments.mpp, table, size, batch, threads),
        "whole": lambda: _whole(path, arguments.mpp, spec, batch, threads),
        "deepzoom": lambda: _deepzoom(path, table, size, halvings, 1),
        "deepzoom, threads": lambda: _deepzoom(path, table, size, halvings, threads),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            count = way()
            rates[name].append(count / (time.perf_counter() - start))
    median = {name: statistics.median(rate) for name, rate in rates.items()}
    for name, rate in rates.items():
        print(f"{name:18} {median[name]:8.0f} tiles/s (median; {min(rate):.0f} … {max(rate):.0f})")
    for ours in ("tiles", "whole"):
        for theirs in ("deepzoom", "deepzoom, threads"):
            print(f"{ours} / {theirs}: {median[ours] / median[theirs]:.2f}")


def _tiles(path: pathlib.Path, mpp: float | None, table: pd.DataFrame, size: int, batch: int, threads: int) -> int:
    with open_slide(path, mpp) as slide:
        return sum(len(tiles) for tiles in read_tiles(slide, table, size, batch, threads))


def _whole(path: pathlib.Path, mpp: float | None, spec: GridSpec, batch: int, threads: int) -> int:
    with open_slide(path, mpp) as slide:
        _, table = make_grid(slide, find_tissue(slide, TissueSpec()), spec)
        return sum(len(tiles) for tiles in read_tiles(slide, table, spec.size, batch, threads))


def _deepzoom(path: pathlib.Path, table: pd.DataFrame, size: int, halvings: int, threads: int) -> int:
    addresses = list(zip(table["column"], table["row"], strict=True))
    with openslide.OpenSlide(path) as slide:
        generator = DeepZoomGenerator(slide, tile_size=size, overlap=0)
        level = generator.level_count - 1 - halvings

        def read(address: tuple[int, int]) -> int:
            tile = np.asarray(generator.get_tile(level, address))
            assert tile.shape == (size, size, 3)
            return 1

        if threads == 1:
            return sum(map(read, addresses))
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(read, addresses))


if __name__ == "__main__":
    main()
