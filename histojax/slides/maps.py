"""Maps of a slide's probabilities: PNG pictures for people, and an OME-TIFF that lies over the slide.

A grid pixel is the cell that a tile represents: stride × stride around the tile's centre. If tiles overlap, the cells
therefore start (tile - stride) / 2 to the right of and below the slide's corner.
"""

import math
import os
import uuid
from collections.abc import Mapping, Sequence

import cv2
import matplotlib
import numpy as np
import pandas as pd
import shapely
import tifffile
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from histojax.core.files import atomic_write
from histojax.evaluation import fonts
from histojax.slides.geometry import Geometry
from histojax.slides.labels import PREFIX, UNLABELLED, Colour, blend, carried_labels, label_colours, label_names

_MAX_SIDE, _MIN_SIDE = 6.0, 1.5  # inches of the map itself
_LEFT, _RIGHT, _BELOW, _ABOVE = 0.9, 1.9, 0.7, 0.5  # margins in inches
_DPI = 150
_OPACITY = 0.55
_NO_TILE = "0.85"  # grey
_MAX_LEGEND = 12  # entries in the overlay's legend; many labels can combine in hundreds of ways
_OUTLINES = ("#0033ff", "#ff00ff", "#000000")
_RASTER_UM = 8.0  # approximate pixel size of the OME-TIFF: a tile of 112 µm has 14 × 14 pixels
_TIFF_TILE = 256
_SMALLEST_LEVEL = 128  # pixels: the pyramid ends with the first level of at most this length


def grid_of(table: pd.DataFrame, geometry: Geometry, column: str) -> NDArray[np.float32]:
    """A column of a tile table on the slide's grid: float32 [rows, columns], NaN without a tile."""
    grid = np.full((geometry.rows, geometry.columns), np.nan, np.float32)
    grid[table["row"].to_numpy(), table["column"].to_numpy()] = table[column].to_numpy(np.float32)
    return grid


def write_heatmap(
    path: str | os.PathLike[str], table: pd.DataFrame, geometry: Geometry, label: str, *, slide: str
) -> None:
    """Draw the probability of a label as PNG, with a colour bar and axes in mm; grey without a tile."""
    figure, axes = _canvas(geometry, f"{label}: {slide}")
    image = axes.imshow(
        grid_of(table, geometry, PREFIX + label),
        extent=_extent(geometry),
        cmap=matplotlib.colormaps["magma"].with_extremes(bad=_NO_TILE),
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    _set_limits(axes, geometry)
    box = axes.get_position()
    bar = figure.add_axes((box.x1 + 0.2 / figure.get_figwidth(), box.y0, 0.18 / figure.get_figwidth(), box.height))
    figure.colorbar(image, cax=bar, label="probability")
    _save(figure, path)


def write_overlay(
    path: str | os.PathLike[str],
    table: pd.DataFrame,
    geometry: Geometry,
    thumbnail: NDArray[np.uint8],
    *,
    slide: str,
    thresholds: Mapping[str, float] | None,
    outlines: Mapping[str, BaseGeometry] | None = None,
) -> None:
    """Draw the tiles' labels over the slide as PNG, with a legend and axes in mm.

    Args:
      path: the PNG file to write.
      table: a tile table with probabilities.
      geometry: the tile grid.
      thumbnail: the whole slide at any size, uint8 [h, w, 3].
      slide: the slide's name.
      thresholds: label to threshold, or None for exclusive classes, as in `labels.carried_labels`.
      outlines: name to polygons in level-0 pixels that are outlined, such as a region of interest or the hot spot.
    """
    kinds, kind, count = np.unique(carried_labels(table, thresholds), axis=0, return_inverse=True, return_counts=True)
    styles = [_legend_entry(label_names(table), carried) for carried in kinds]
    layer = np.zeros((*grid_of(table, geometry, "tissue").shape, 4), np.float32)
    if styles:
        tints = np.array([[channel / 255 for channel in colour] + [_OPACITY] for _, colour in styles])
        layer[table["row"].to_numpy(), table["column"].to_numpy()] = tints[kind.reshape(-1)]

    figure, axes = _canvas(geometry, slide)
    width, height = _size_mm(geometry)
    axes.imshow(thumbnail, extent=(0, width, height, 0))
    axes.imshow(layer, extent=_extent(geometry), interpolation="nearest")
    common = [styles[index] for index in np.argsort(-count, kind="stable")]
    if len(common) > _MAX_LEGEND:
        common = [
            *common[:_MAX_LEGEND],
            (f"{len(common) - _MAX_LEGEND} rarer combinations: mean of their colours", UNLABELLED),
        ]
    handles = [Patch(facecolor=_hex(colour), alpha=_OPACITY, label=fonts.drawable(name)) for name, colour in common]
    for number, (name, outline) in enumerate((outlines or {}).items()):
        colour = _OUTLINES[number % len(_OUTLINES)]
        handles.append(Patch(facecolor="none", edgecolor=colour, label=fonts.drawable(name)))
        for line in shapely.get_parts(shapely.boundary(outline)):
            xs, ys = (shapely.get_coordinates(line) * (geometry.mpp / 1000, geometry.mpp_y / 1000)).T
            axes.plot(xs, ys, color=colour, linewidth=1.2)
    _set_limits(axes, geometry)
    if handles:
        shown = axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8)
        for text in shown.get_texts():
            text.set_parse_math(False)
    _save(figure, path)


def write_ome_tiff(path: str | os.PathLike[str], table: pd.DataFrame, geometry: Geometry, *, slide: str) -> None:
    """Write the probabilities as a pyramidal, tiled OME-TIFF: one uint8 channel per label, with 255 for probability 1.

    The first pixel starts at the slide's corner, and PhysicalSizeX and PhysicalSizeY are in µm, so that the image lies
    over the slide. Areas without a tile are 0. A pixel is a part of a cell, about 8 µm wide, never a pixel of the
    slide. Levels of half the size follow as SubIFDs until one has at most 128 pixels.
    """
    names = label_names(table)
    parts = max(1, round(geometry.stride * geometry.mpp / _RASTER_UM))
    across, down = geometry.stride / parts, geometry.stride_height / parts  # of a pixel, in level-0 pixels
    left, top = _offset(geometry)
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


def _offset(geometry: Geometry) -> tuple[float, float]:
    """The left and top edge of the first cell in level-0 pixels."""
    return (geometry.tile - geometry.stride) / 2, (geometry.tile_height - geometry.stride_height) / 2


def _size_mm(geometry: Geometry) -> tuple[float, float]:
    """The width and height of the slide in mm."""
    return geometry.width * geometry.mpp / 1000, geometry.height * geometry.mpp_y / 1000


def _extent(geometry: Geometry) -> tuple[float, float, float, float]:
    """The left, right, bottom and top edge of the grid in mm."""
    left, top = _offset(geometry)
    right, bottom = left + geometry.columns * geometry.stride, top + geometry.rows * geometry.stride_height
    x, y = geometry.mpp / 1000, geometry.mpp_y / 1000
    return left * x, right * x, bottom * y, top * y


def _canvas(geometry: Geometry, title: str) -> tuple[Figure, Axes]:
    """A figure whose axes have the slide's shape, widened if the slide is very long and narrow."""
    longest = max(_size_mm(geometry))
    width, height = (max(_MIN_SIDE, length * _MAX_SIDE / longest) for length in _size_mm(geometry))
    size = width + _LEFT + _RIGHT, height + _BELOW + _ABOVE
    figure = Figure(figsize=size, dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((_LEFT / size[0], _BELOW / size[1], width / size[0], height / size[1]))
    axes.set_title(fonts.drawable(title), loc="left", fontsize=9, fontfamily=fonts.FONT, parse_math=False)
    axes.set_xlabel("mm")
    axes.set_ylabel("mm")
    return figure, axes


def _set_limits(axes: Axes, geometry: Geometry) -> None:
    width, height = _size_mm(geometry)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("auto")  # the axes already have the slide's shape, unless they were widened
    axes.set_facecolor(_NO_TILE)


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", metadata={"Software": None})


def _legend_entry(names: Sequence[str], carried: NDArray[np.bool_]) -> tuple[str, Colour]:
    """Legend text and colour of tiles that carry the labels `carried`, bool [k]."""
    present = [name for name, is_carried in zip(names, carried, strict=True) if is_carried]
    colours = label_colours(names)
    return " + ".join(present) or "no label", blend([colours[name] for name in present])


def _hex(colour: Colour) -> str:
    red, green, blue = colour
    return f"#{red:02x}{green:02x}{blue:02x}"
