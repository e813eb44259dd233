"""The OpenSlide worker of `histojax bench slide --against deepzoom`: `python -m benchmarks.deepzoom_peer JSON`.

It reads tiles with OpenSlide's own DeepZoomGenerator, as its users do: in a loop, or from a pool of threads that share
one generator. Its resolutions are those of level 0 divided by powers of two. Where a tile needs resampling it uses a
Lanczos filter; histojax averages over areas.
"""

import concurrent.futures

import numpy as np
import openslide
from openslide.deepzoom import DeepZoomGenerator

from histojax.cli.bench import worker
from histojax.cli.bench.slide import TileReader


class _DeepZoom(TileReader):
    def _read_tiles(self) -> int:
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


if __name__ == "__main__":
    worker.serve(_DeepZoom)
