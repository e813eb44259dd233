"""The tissue tiles of a slide at the model's µm/px, and their pixels in batches."""

import concurrent.futures
import dataclasses
import math
import threading
from collections.abc import Generator, Iterator

import numpy as np
import pandas as pd

from data_pipelines.stain import StainNormalizer
from histojax.core import prefetch
from histojax.core.errors import RunError
from histojax.slides.geometry import Geometry
from histojax.slides.readers.reader import Slide, SlideError
from histojax.slides.tissue import Tissue


@dataclasses.dataclass(frozen=True)
class GridSpec:
    """Size and placement of tiles; raises RunError for an invalid field.

    Attributes:
      size: side of a tile in pixels, at `mpp`.
      mpp: µm per pixel of a tile.
      overlap: fraction of a side shared by neighbouring tiles, at least 0 and below 1.
      min_tissue: smallest fraction of tissue in a tile.
    """

    size: int
    mpp: float
    overlap: float = 0.0
    min_tissue: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.mpp < math.inf:
            raise RunError(f"tiles of {self.size} pixels at {self.mpp} µm/px: both must be greater than 0")
        if not 0 <= self.overlap < 1:
            raise RunError(f"--overlap {self.overlap}: give a fraction of a side, at least 0 and below 1")
        if not 0 <= self.min_tissue <= 1:
            raise RunError(f"--min_tissue {self.min_tissue}: give a fraction, 0 to 1")


def make_grid(slide: Slide, tissue: Tissue, spec: GridSpec) -> tuple[Geometry, pd.DataFrame]:
    """Lay a grid over a slide and list its tiles with enough tissue.

    Tiles at the right and lower edge may reach beyond the slide.

    Args:
      slide: the slide.
      tissue: its tissue mask.
      spec: size and placement of the tiles.

    Returns:
      The grid, and a table sorted by row, then column, with the columns minx, miny, width, height (level-0 pixels),
      row, column (grid position, so that minx = column · stride and miny = row · stride_height) and tissue (fraction of
      the tile). A slide without tissue has no rows.

    Raises:
      SlideError: a tile is smaller than a pixel of the slide.
    """
    tile = round(spec.size * spec.mpp / slide.mpp)
    if tile < 1:
        message = f"{slide.path}: a pixel of {slide.mpp:g} µm is larger than a tile of {spec.size * spec.mpp:g} µm"
        raise SlideError(message)
    stride = stride_of(tile, spec.overlap)
    geometry = Geometry(slide.width, slide.height, slide.mpp, tile, stride, slide.stretch)
    tall, down = geometry.tile_height, geometry.stride_height
    columns = max(0, math.ceil((slide.width - tile) / stride)) + 1
    rows = max(0, math.ceil((slide.height - tall) / down)) + 1
    tissue_rows = []
    for row in range(rows):  # row by row, so that memory does not grow with the area of the grid
        boxes = np.full((columns, 4), tile, np.int64)
        boxes[:, 0], boxes[:, 1], boxes[:, 3] = np.arange(columns) * stride, row * down, tall
        fractions = tissue.fractions(boxes)
        column = np.flatnonzero((fractions >= spec.min_tissue) & (fractions > 0))
        if len(column):
            tissue_rows.append((row, column, fractions[column]))
    column = np.concatenate([np.zeros(0, np.int64), *(columns for _, columns, _ in tissue_rows)])
    row_of = np.repeat([row for row, _, _ in tissue_rows], [len(columns) for _, columns, _ in tissue_rows]).astype(
        np.int64
    )
    table = pd.DataFrame(
        {
            "minx": column * stride,
            "miny": row_of * down,
            "width": np.full(len(column), tile, np.int64),
            "height": np.full(len(column), tall, np.int64),
            "row": row_of,
            "column": column,
            "tissue": np.concatenate([np.zeros(0), *(fractions for _, _, fractions in tissue_rows)]),
        }
    )
    return geometry, table


def stride_of(tile: int, overlap: float) -> int:
    """The distance between neighbouring tiles that share the fraction `overlap` of their side; level-0 pixels."""
    return max(1, round(tile * (1 - overlap)))


def read_tiles(
    slide: Slide,
    table: pd.DataFrame,
    out_size: int,
    batch: int,
    threads: int,
    stain: StainNormalizer | None = None,
    normalised: np.ndarray | None = None,
) -> Generator[np.ndarray, None, None]:
    """Read the tiles of a table in batches; threads read at most two batches ahead.

    Closing the generator stops the threads.

    Args:
      slide: the slide.
      table: the table of its tiles.
      out_size: side s of a tile in pixels.
      batch: tiles per batch.
      threads: number of reader threads.
      stain: brings each tile to the colours of a reference; None: tiles stay as they are.
      normalised: `bool [n]`, is set to whether each tile had enough tissue for that.

    Yields:
      Batches `uint8 [b, s, s, 3]` in the table's order; the last one may be smaller.

    Raises:
      SlideError: a tile cannot be read; the message names the slide and the tile.
    """
    boxes = table[["minx", "miny", "width", "height"]].to_numpy(np.int64)
    stop = threading.Event()

    def read(part: np.ndarray, out: np.ndarray, start: int) -> None:
        for number, ((x, y, width, height), tile) in enumerate(zip(part.tolist(), out, strict=True), start):
            if stop.is_set():
                return
            tile[:] = slide.read(x, y, width, height, out_size, out_size)
            if stain is not None:
                tile[:], enough = stain.apply(tile)
                if normalised is not None:
                    normalised[number] = enough

    pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="tiles")

    def started() -> Iterator[tuple[np.ndarray, list[concurrent.futures.Future[None]]]]:
        for start in range(0, len(boxes), batch):
            batch_boxes = boxes[start : start + batch]
            out = np.empty((len(batch_boxes), out_size, out_size, 3), np.uint8)
            # Neighbours go to the same thread, since they share tiles of the file.
            parts = np.array_split(np.arange(len(batch_boxes)), min(threads, len(batch_boxes)))
            yield out, [pool.submit(read, batch_boxes[p], out[p[0] : p[-1] + 1], start + p[0]) for p in parts]

    try:
        yield from prefetch.finished(started())
    finally:
        stop.set()
        pool.shutdown()
