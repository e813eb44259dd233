"""A slide's probabilities as an OME-TIFF that lies over the slide.

A grid pixel is the cell that a tile represents: stride × stride around the tile's centre. If tiles overlap, the cells
therefore start (tile - stride) / 2 to the right of and below the slide's corner.
"""

import math
import os
import uuid

import cv2
import numpy as np
import pandas as pd
import tifffile
from numpy.typing import NDArray

from histojax.core.files import atomic_write
from histojax.evaluation import fonts
from histojax.slides.geometry import Geometry
from histojax.slides.labels import PREFIX, Colour, label_colours, label_names

_RASTER_UM = 8.0  # approximate pixel size of the OME-TIFF: a tile of 112 µm has 14 × 14 pixels
_TIFF_TILE = 256
_SMALLEST_LEVEL = 128  # pixels: the pyramid ends with the first level of at most this length


def grid_of(table: pd.DataFrame, geometry: Geometry, column: str) -> NDArray[np.float32]:
    """A column of a tile table on the slide's grid: float32 [rows, columns], NaN without a tile."""
    grid = np.full((geometry.rows, geometry.columns), np.nan, np.float32)
    grid[table["row"].to_numpy(), table["column"].to_numpy()] = table[column].to_numpy(np.float32)
    return grid


def write_ome_tiff(path: str | os.PathLike[str], table: pd.DataFrame, geometry: Geometry, *, slide: str) -> None:
    """Write the probabilities as a pyramidal, tiled OME-TIFF: one uint8 channel per label, with 255 for probability 1.

    The first pixel starts at the slide's corner, and PhysicalSizeX and PhysicalSizeY are in µm, so that the image lies
    over the slide. Areas without a tile are 0. A pixel is a part of a cell, about 8 µm wide, never a pixel of the
    slide. Levels of half the size follow as SubIFDs until one has at most 128 pixels.
    """
    names = label_names(table)
    parts = max(1, round(geometry.stride * geometry.mpp / _RASTER_UM))
    across, down = geometry.stride / parts, geometry.stride_height / parts  # of a pixel, in level-0 pixels
    left, top = geometry.offset
    columns = _cells(geometry.width, across, left, geometry.stride)
    rows = _cells(geometry.height, down, top, geometry.stride_height)
    raster = np.stack([_resample(grid_of(table, geometry, PREFIX + name), rows, columns) for name in names])
    levels = [raster]
    while max(levels[-1].shape[1:]) > _SMALLEST_LEVEL:
        levels.append(np.stack([_halve(channel) for channel in levels[-1]]))
    colours = label_colours(names)
    metadata = {
        "axes": "CYX",
        "Name": fonts.printable(slide),
        "UUID": str(
            uuid.uuid5(uuid.NAMESPACE_URL, f"histojax:heatmap/{slide}")
        ),  # fixed, so that equal maps give equal files
        "PhysicalSizeX": across * geometry.mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": down * geometry.mpp_y,
        "PhysicalSizeYUnit": "µm",
        "Channel": {
            "Name": [fonts.printable(name) for name in names],
            "Color": [_ome_colour(colours[name]) for name in names],
        },
    }
    with atomic_write(path) as temporary, tifffile.TiffWriter(temporary, ome=True) as file:
        for number, level in enumerate(levels):
            file.write(
                level,
                tile=(_TIFF_TILE, _TIFF_TILE),
                photometric="minisblack",
                compression="zlib",
                subifds=0 if number else len(levels) - 1,
                subfiletype=1 if number else 0,
                metadata=None if number else metadata,
            )


def _cells(length: int, side: float, offset: float, stride: int) -> NDArray[np.int64]:
    """The grid row (or column) that holds the centre of each pixel; -1 before the first one."""
    centres = (np.arange(math.ceil(length / side)) + 0.5) * side
    return np.maximum(np.floor((centres - offset) / stride).astype(np.int64), -1)


def _resample(grid: NDArray[np.float32], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.uint8]:
    values = np.rint(np.nan_to_num(grid) * 255).astype(np.uint8)
    values = np.pad(values, ((0, 1), (0, 1)))  # index -1 gives 0
    return values[rows][:, columns]


def _halve(channel: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = channel.shape
    half = cv2.resize(channel, (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA)
    return half.astype(np.uint8, copy=False)


def _ome_colour(colour: Colour) -> int:
    """Red, green, blue and an opaque alpha as a signed 32-bit integer, as OME-XML requires."""
    red, green, blue = colour
    return int(np.uint32(red << 24 | green << 16 | blue << 8 | 255).view(np.int32))
