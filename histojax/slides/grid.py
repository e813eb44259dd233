"""The tiles of a slide: where there is tissue, at the model's µm/px; and their pixels, in batches."""

import concurrent.futures
import dataclasses
import math
import threading
from collections.abc import Generator, Iterator

import numpy as np
import pandas as pd

from histojax.core import prefetch
from histojax.core.errors import RunError
from histojax.slides.geometry import Geometry
from histojax.slides.readers.reader import Slide, SlideError
from histojax.slides.tissue import Tissue


@dataclasses.dataclass(frozen=True)
class GridSpec:
    """The tiles that a model sees; raises RunError where it says no grid.

    Attributes:
      size: side of a tile in pixels of `mpp`.
      mpp: µm per pixel of a tile.
      overlap: of neighbouring tiles, as a share of a side: at least 0, less than 1.
      min_tissue: least share of a tile that is tissue.
    """

    size: int
    mpp: float
    overlap: float = 0.0
    min_tissue: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.mpp < math.inf:
            raise RunError(f"tiles of {self.size} pixels of {self.mpp} µm: both must be greater than 0")
        if not 0 <= self.overlap < 1:
            raise RunError(f"overlap of tiles is {self.overlap}: give a share of a side, at least 0 and less than 1")
        if not 0 <= self.min_tissue <= 1:
            raise RunError(f"least share of tissue is {self.min_tissue}: give a share, 0 to 1")


def make_grid(slide: Slide, tissue: Tissue, spec: GridSpec) -> tuple[Geometry, pd.DataFrame]:
    """The grid of a slide and the table of its tiles with tissue, by row, then column.

    Columns: minx, miny, width, height (level-0 pixels), row, column (of the grid, so that minx = column · stride),
    tissue (share of the tile). Tiles at the right and lower edge may reach beyond the slide. No tissue, no rows.

    Raises:
      SlideError: the slide's pixels are larger than a tile.
    """
    tile = round(spec.size * spec.mpp / slide.mpp)
    if tile < 1:
        message = f"{slide.path}: a pixel has {slide.mpp:g} µm, more than a tile of {spec.size * spec.mpp:g} µm"
        raise SlideError(message)
    stride = max(1, round(tile * (1 - spec.overlap)))
    geometry = Geometry(slide.width, slide.height, slide.mpp, tile, stride)
    columns, rows = (max(0, math.ceil((side - tile) / stride)) + 1 for side in (slide.width, slide.height))
    kept = []
    for row in range(rows):  # by row, so that memory does not grow with the whole grid
        boxes = np.full((columns, 4), tile, np.int64)
        boxes[:, 0], boxes[:, 1] = np.arange(columns) * stride, row * stride
        shares = tissue.shares(boxes)
        column = np.flatnonzero((shares >= spec.min_tissue) & (shares > 0))
        if len(column):
            kept.append((row, column, shares[column]))
    column = np.concatenate([np.zeros(0, np.int64), *(columns for _, columns, _ in kept)])
    row_of = np.repeat([row for row, _, _ in kept], [len(columns) for _, columns, _ in kept]).astype(np.int64)
    table = pd.DataFrame(
        {
            "minx": column * stride,
            "miny": row_of * stride,
            "width": np.full(len(column), tile, np.int64),
            "height": np.full(len(column), tile, np.int64),
            "row": row_of,
            "column": column,
            "tissue": np.concatenate([np.zeros(0), *(shares for _, _, shares in kept)]),
        }
    )
    return geometry, table


def read_tiles(
    slide: Slide, table: pd.DataFrame, out_size: int, batch: int, threads: int
) -> Generator[np.ndarray, None, None]:
    """Batches `uint8 [b, s, s, 3]` of the table's tiles, s = out_size, in its order; the last may be smaller.

    Threads read at most two batches ahead. Closing the generator stops them.

    Raises:
      SlideError: a tile cannot be read; the message names the slide and the tile.
    """
    boxes = table[["minx", "miny", "width", "height"]].to_numpy(np.int64)
    stop = threading.Event()

    def read(part: np.ndarray, out: np.ndarray) -> None:
        for (x, y, width, height), place in zip(part.tolist(), out, strict=True):
            if stop.is_set():
                return
            place[:] = slide.read(x, y, width, height, out_size, out_size)

    pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="tiles")

    def started() -> Iterator[tuple[np.ndarray, list[concurrent.futures.Future[None]]]]:
        for start in range(0, len(boxes), batch):
            chosen = boxes[start : start + batch]
            out = np.empty((len(chosen), out_size, out_size, 3), np.uint8)
            # Neighbours to one thread: they share the tiles of the file.
            parts = np.array_split(np.arange(len(chosen)), min(threads, len(chosen)))
            yield out, [pool.submit(read, chosen[p], out[p[0] : p[-1] + 1]) for p in parts]

    try:
        yield from prefetch.finished(started())
    finally:
        stop.set()
        pool.shutdown()
