"""Maps of a slide's probabilities: pictures for people (PNG) and an image that lies over the slide (OME-TIFF).

A pixel of the grid is the cell that a tile stands for: stride × stride around the tile's centre. Where tiles overlap,
the cells therefore begin (tile - stride) / 2 to the right of and below the slide's corner.
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
from histojax.slides.labels import PREFIX, UNLABELLED, Color, blend, carried_labels, label_colors, label_names

_LONGEST, _SHORTEST = 6.0, 1.5  # inches of the sides of the map itself
_LEFT, _RIGHT, _BELOW, _ABOVE = 0.9, 1.9, 0.7, 0.5  # inches around it
_DPI = 150
_OPACITY = 0.55
_NOWHERE = "0.85"  # grey where no tile is
_LEGEND = 12  # kinds of tiles that the overlay's legend shows: of many labels there may be hundreds
_OUTLINES = ("#0033ff", "#ff00ff", "#000000")
_RASTER_UM = 8.0  # about the side of a pixel of the OME-TIFF: a tile of 112 µm has 14 × 14 of them
_TIFF_TILE = 256
_SMALLEST_LEVEL = 128  # pixels: the pyramid ends with the first level that is no longer


def grid_of(table: pd.DataFrame, geometry: Geometry, column: str) -> NDArray[np.float32]:
    """The values of a column of a tile table on the slide's grid: float32 [rows, columns], NaN where no tile is."""
    shape = math.ceil(geometry.height / geometry.stride), math.ceil(geometry.width / geometry.stride)
    grid = np.full(shape, np.nan, np.float32)
    grid[table["row"].to_numpy(), table["column"].to_numpy()] = table[column].to_numpy(np.float32)
    return grid


def write_heatmap(
    path: str | os.PathLike[str], table: pd.DataFrame, geometry: Geometry, label: str, *, slide: str
) -> None:
    """Draws the probability of a label as PNG, with a colour bar and axes in mm; grey where no tile is."""
    figure, axes = _canvas(geometry, f"{label}: {slide}")
    image = axes.imshow(
        grid_of(table, geometry, PREFIX + label),
        extent=_extent(geometry),
        cmap=matplotlib.colormaps["magma"].with_extremes(bad=_NOWHERE),
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    _show_slide(axes, geometry)
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
    """Draws the tiles' labels over the slide as PNG, with a legend and axes in mm.

    Args:
      path: of the PNG.
      table: a tile table with probabilities.
      geometry: of its tiles.
      thumbnail: uint8 [h, w, 3], the whole slide at any size.
      slide: its name.
      thresholds: as for `labels.carried_labels`.
      outlines: name -> polygons in level-0 pixels to be outlined: a region of interest, a hot spot.
    """
    kinds, kind, count = np.unique(carried_labels(table, thresholds), axis=0, return_inverse=True, return_counts=True)
    looks = [_look(label_names(table), there) for there in kinds]
    layer = np.zeros((*grid_of(table, geometry, "tissue").shape, 4), np.float32)
    if looks:
        tints = np.array([[channel / 255 for channel in colour] + [_OPACITY] for _, colour in looks])
        layer[table["row"].to_numpy(), table["column"].to_numpy()] = tints[kind.reshape(-1)]

    figure, axes = _canvas(geometry, slide)
    width, height = _in_mm(geometry, geometry.width), _in_mm(geometry, geometry.height)
    axes.imshow(thumbnail, extent=(0, width, height, 0))
    axes.imshow(layer, extent=_extent(geometry), interpolation="nearest")
    common = [looks[index] for index in np.argsort(-count, kind="stable")]
    if len(common) > _LEGEND:
        common = [*common[:_LEGEND], (f"{len(common) - _LEGEND} rarer: the mean of their labels'", UNLABELLED)]
    handles = [Patch(facecolor=_hex(colour), alpha=_OPACITY, label=fonts.drawable(name)) for name, colour in common]
    for number, (name, outline) in enumerate((outlines or {}).items()):
        colour = _OUTLINES[number % len(_OUTLINES)]
        handles.append(Patch(facecolor="none", edgecolor=colour, label=fonts.drawable(name)))
        for line in shapely.get_parts(shapely.boundary(outline)):
            xs, ys = shapely.get_coordinates(line).T * (geometry.mpp / 1000)
            axes.plot(xs, ys, color=colour, linewidth=1.2)
    _show_slide(axes, geometry)
    if handles:
        shown = axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8)
        for text in shown.get_texts():
            text.set_parse_math(False)
    _save(figure, path)


def write_ome_tiff(path: str | os.PathLike[str], table: pd.DataFrame, geometry: Geometry, *, slide: str) -> None:
    """Writes the probabilities as a pyramidal, tiled OME-TIFF: a channel a label, uint8, 255 a probability of 1.

    Its first pixel begins at the slide's corner and PhysicalSizeX and PhysicalSizeY are in µm, so that it lies over
    the slide; 0 is also where no tile is. The pixels are parts of a cell of about 8 µm, never the slide's own. Halved
    levels follow as SubIFDs until one is no longer than 128 pixels.
    """
    names = label_names(table)
    parts = max(1, round(geometry.stride * geometry.mpp / _RASTER_UM))
    side = geometry.stride / parts
    rows, columns = (_cells(length, side, geometry) for length in (geometry.height, geometry.width))
    raster = np.stack([_sampled(grid_of(table, geometry, PREFIX + name), rows, columns) for name in names])
    levels = [raster]
    while max(levels[-1].shape[1:]) > _SMALLEST_LEVEL:
        levels.append(np.stack([_halved(channel) for channel in levels[-1]]))
    colours = label_colors(names)
    metadata = {
        "axes": "CYX",
        "Name": fonts.printable(slide),
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_URL, f"histojax:heatmap/{slide}")),  # else a new one each time
        "PhysicalSizeX": side * geometry.mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": side * geometry.mpp,
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


def _cells(length: int, side: float, geometry: Geometry) -> NDArray[np.int64]:
    """The row (or column) of the grid that each pixel's centre lies in; -1: before the first."""
    centres = (np.arange(math.ceil(length / side)) + 0.5) * side
    return np.maximum(np.floor((centres - _offset(geometry)) / geometry.stride).astype(np.int64), -1)


def _sampled(grid: NDArray[np.float32], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.uint8]:
    values = np.rint(np.nan_to_num(grid) * 255).astype(np.uint8)
    values = np.pad(values, ((0, 1), (0, 1)))  # what -1 points to
    return values[rows][:, columns]


def _halved(channel: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = channel.shape
    half = cv2.resize(channel, (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA)
    return half.astype(np.uint8, copy=False)


def _ome_colour(colour: Color) -> int:
    """Red, green, blue and an opaque alpha in a signed 32-bit number, as OME-XML has it."""
    red, green, blue = colour
    return int(np.uint32(red << 24 | green << 16 | blue << 8 | 255).view(np.int32))


def _offset(geometry: Geometry) -> float:
    return (geometry.tile - geometry.stride) / 2


def _in_mm(geometry: Geometry, pixels: float) -> float:
    return pixels * geometry.mpp / 1000


def _extent(geometry: Geometry) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of the grid in mm."""
    start = _offset(geometry)
    rows, columns = math.ceil(geometry.height / geometry.stride), math.ceil(geometry.width / geometry.stride)
    right, bottom = (_in_mm(geometry, start + cells * geometry.stride) for cells in (columns, rows))
    return _in_mm(geometry, start), right, bottom, _in_mm(geometry, start)


def _canvas(geometry: Geometry, title: str) -> tuple[Figure, Axes]:
    """A figure whose axes have the slide's shape, unless that is so long and narrow that nothing could be seen."""
    scale = _LONGEST / max(geometry.width, geometry.height)
    width, height = (max(_SHORTEST, length * scale) for length in (geometry.width, geometry.height))
    whole = width + _LEFT + _RIGHT, height + _BELOW + _ABOVE
    figure = Figure(figsize=whole, dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((_LEFT / whole[0], _BELOW / whole[1], width / whole[0], height / whole[1]))
    axes.set_title(fonts.drawable(title), loc="left", fontsize=9, fontfamily=fonts.FONT, parse_math=False)
    axes.set_xlabel("mm")
    axes.set_ylabel("mm")
    return figure, axes


def _show_slide(axes: Axes, geometry: Geometry) -> None:
    axes.set_xlim(0, _in_mm(geometry, geometry.width))
    axes.set_ylim(_in_mm(geometry, geometry.height), 0)
    axes.set_aspect("auto")  # the axes have the shape already, or cannot have it
    axes.set_facecolor(_NOWHERE)


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", metadata={"Software": None})


def _look(names: Sequence[str], there: NDArray[np.bool_]) -> tuple[str, Color]:
    """Name and colour in the legend of tiles that have the labels `there`, bool [k]."""
    present = [name for name, is_there in zip(names, there, strict=True) if is_there]
    colours = label_colors(names)
    return " + ".join(present) or "no label", blend([colours[name] for name in present])


def _hex(colour: Color) -> str:
    red, green, blue = colour
    return f"#{red:02x}{green:02x}{blue:02x}"
