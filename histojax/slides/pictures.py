"""Pictures of a slide's predictions: labels and probabilities over the H&E, with a legend, a scale bar and axes in mm.

A picture is composed pixel by pixel, and its legend in the same way over the mean colour of the tissue, so that a
colour in the legend is the colour on the map.
"""

import math
import os
from collections.abc import Mapping, Sequence

import cv2
import matplotlib
import numpy as np
import pandas as pd
import shapely
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from histojax.core.files import atomic_write
from histojax.evaluation import fonts
from histojax.slides.geometry import Geometry
from histojax.slides.labels import PREFIX, Colour, carried_labels, label_colours, label_names

Pixels = NDArray[np.float32]  # [h, w, 3] or [n, 3], 0 … 255

_MAX_SIDE, _MIN_SIDE = 6.0, 1.5  # inches of the map itself
_LEFT, _RIGHT, _BELOW, _ABOVE = 0.9, 2.6, 0.7, 0.5  # margins in inches
_POINTS = 11  # of all text: legible where a page shows the picture at half its size
_DPI = 150
_TINT = 0.5  # opacity of labels over the grey tissue
_COLOUR_KEPT = 0.25  # fraction of the stain's own colour that remains below a label
_EDGE = 0.6  # brightness of the border between tiles of different labels
_STRIPE = 6  # pixels: width of the stripes of tiles with several labels
_HEAT = 0.65  # opacity of probabilities over the grey tissue
_FAINT = 0.4  # opacity of the slide below a heatmap
HEAT_COLOURS = "magma_r"
_MAX_LEGEND = 12  # entries; many labels can combine in hundreds of ways
OUTLINES = ("#0033ff", "#ff00ff", "#000000")
_HALO = [patheffects.withStroke(linewidth=2.5, foreground="white")]
_SWATCH = (0.42, 0.26)  # inches
_PADDING = 0.1  # inches around a picture
_ROW, _LINE = 0.36, 0.19  # inches between legend entries, and between the lines of one


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
    """Draw the tiles' labels over the slide as PNG; tiles with several labels have stripes of their colours.

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
    entries = [_legend_entry(label_names(table), carried) for carried in kinds]
    figure, axes, shape = _canvas(geometry, slide)
    base = _resized(thumbnail, shape)
    cells = _on_pixels(table, geometry, kind.reshape(-1), shape)
    picture = base.copy()
    phase, borders = _stripes(shape), _borders(cells)
    for index, (_, colours) in enumerate(entries):
        inside = cells == index
        picture[inside] = _labelled(base[inside], phase[inside], colours)
        picture[inside & borders] *= _EDGE
    _show(axes, picture, geometry)

    tissue = base[cells >= 0].mean(0) if (cells >= 0).any() else np.full(3, 255, np.float32)
    legend = _Legend(figure, axes)
    common = np.argsort(-count, kind="stable")
    for index in common[:_MAX_LEGEND]:
        name, colours = entries[index]
        legend.add(name, _labelled(np.broadcast_to(tissue, (*legend.swatch, 3)), _stripes(legend.swatch), colours))
    if len(common) > _MAX_LEGEND:
        legend.add(f"{len(common) - _MAX_LEGEND} rarer combinations: stripes of their labels", None)
    for number, (name, outline) in enumerate((outlines or {}).items()):
        colour = OUTLINES[number % len(OUTLINES)]
        legend.add(name, None, outline=colour)
        for line in shapely.get_parts(shapely.boundary(outline)):
            xs, ys = (shapely.get_coordinates(line) * (geometry.mpp / 1000, geometry.mpp_y / 1000)).T
            axes.plot(xs, ys, color=colour, linewidth=1.4, path_effects=_HALO)
    _save(figure, path)


def write_slide(path: str | os.PathLike[str], geometry: Geometry, thumbnail: NDArray[np.uint8], *, slide: str) -> None:
    """Draw the slide alone as PNG, at the size and with the scale bar of the other pictures, to look at beside them.

    Args:
      path: the PNG file to write.
      geometry: the tile grid.
      thumbnail: the whole slide at any size, uint8 [h, w, 3].
      slide: the slide's name.
    """
    figure, axes, shape = _canvas(geometry, slide)
    _show(axes, _resized(thumbnail, shape), geometry)
    _save(figure, path)


def write_heatmap(
    path: str | os.PathLike[str],
    table: pd.DataFrame,
    geometry: Geometry,
    thumbnail: NDArray[np.uint8],
    label: str,
    *,
    slide: str,
    threshold: float | None = None,
) -> None:
    """Draw the probability of a label over the faint slide as PNG, with its threshold marked in the colour bar.

    Args:
      path: the PNG file to write.
      table: a tile table with probabilities.
      geometry: the tile grid.
      thumbnail: the whole slide at any size, uint8 [h, w, 3].
      label: the label.
      slide: the slide's name.
      threshold: from which probability on a tile carries the label; None for exclusive classes.
    """
    figure, axes, shape = _canvas(geometry, f"{label}: {slide}")
    faint = _blend(np.full(3, 255, np.float32), _resized(thumbnail, shape), _FAINT)
    grey = faint.mean(2, keepdims=True)
    values = table[PREFIX + label].to_numpy(np.float64)
    rows = _on_pixels(table, geometry, np.arange(len(table)), shape)
    picture = faint.copy()
    tiles = rows >= 0
    picture[tiles] = _blend(grey[tiles], _heat(values)[rows[tiles]], _HEAT)
    _show(axes, picture, geometry)
    _add_colour_bar(figure, axes, grey[tiles].mean() if tiles.any() else 255.0, threshold)
    _save(figure, path)


# --- Pixels -------------------------------------------------------------------------------------------------


def _resized(thumbnail: NDArray[np.uint8], shape: tuple[int, int]) -> Pixels:
    height, width = shape
    shrinks = thumbnail.shape[0] >= height and thumbnail.shape[1] >= width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(thumbnail, (width, height), interpolation=method).astype(np.float32)


def _on_pixels(
    table: pd.DataFrame, geometry: Geometry, values: NDArray[np.int64], shape: tuple[int, int]
) -> NDArray[np.int64]:
    """The value of the tile whose cell holds each pixel of a picture of the slide, int [h, w]; -1 without a tile."""
    grid = np.full((geometry.rows + 1, geometry.columns + 1), -1, np.int64)
    grid[table["row"].to_numpy(), table["column"].to_numpy()] = values
    left, top = geometry.offset
    rows = _cells(shape[0], geometry.height, top, geometry.stride_height, geometry.rows)
    columns = _cells(shape[1], geometry.width, left, geometry.stride, geometry.columns)
    return grid[rows][:, columns]


def _cells(pixels: int, length: int, offset: float, stride: int, cells: int) -> NDArray[np.int64]:
    """The row (or column) of cells that holds the centre of each pixel; the one after the last for none."""
    centres = (np.arange(pixels) + 0.5) * length / pixels
    index = np.floor((centres - offset) / stride).astype(np.int64)
    return np.where((index >= 0) & (index < cells), index, cells)


def _stripes(shape: tuple[int, int]) -> NDArray[np.int64]:
    """The number of the diagonal stripe that each pixel lies on, int [h, w]."""
    y, x = np.indices(shape)
    return np.asarray((x + y) // _STRIPE)


def _labelled(tissue: Pixels, stripe: NDArray[np.int64], colours: Sequence[Colour]) -> Pixels:
    """Tissue under the colour of a label, or under stripes of several; unchanged without a label.

    The tissue loses most of its own colour, so that labels keep theirs on purple and pink.
    """
    if not colours:
        return tissue
    muted = _blend(tissue.mean(-1, keepdims=True), tissue, _COLOUR_KEPT)
    return _blend(muted, np.array(colours, np.float32)[stripe % len(colours)], _TINT)


def _blend(below: Pixels, above: Pixels, opacity: float) -> Pixels:
    return np.float32(1 - opacity) * below + np.float32(opacity) * above


def _borders(cells: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the pixel to the right or below has another value, bool [h, w]."""
    out = np.zeros(cells.shape, bool)
    out[:, :-1] |= cells[:, :-1] != cells[:, 1:]
    out[:-1] |= cells[:-1] != cells[1:]
    return out


def _heat(values: NDArray[np.float64]) -> Pixels:
    """The colours of probabilities, [n, 3]."""
    return np.asarray(matplotlib.colormaps[HEAT_COLOURS](values)[:, :3] * 255, np.float32)


# --- Figures ------------------------------------------------------------------------------------------------


def _canvas(geometry: Geometry, title: str) -> tuple[Figure, Axes, tuple[int, int]]:
    """A figure, axes of the slide's shape (widened if it is very long), and their height and width in pixels."""
    longest = max(_size_mm(geometry))
    width, height = (max(_MIN_SIDE, length * _MAX_SIDE / longest) for length in _size_mm(geometry))
    size = width + _LEFT + _RIGHT, height + _BELOW + _ABOVE
    figure = Figure(figsize=size, dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((_LEFT / size[0], _BELOW / size[1], width / size[0], height / size[1]))
    axes.set_title(fonts.drawable(title), loc="left", fontsize=_POINTS, fontfamily=fonts.FONT, parse_math=False)
    axes.set_xlabel("mm", fontsize=_POINTS)
    axes.set_ylabel("mm", fontsize=_POINTS)
    axes.tick_params(labelsize=_POINTS)
    return figure, axes, (round(height * _DPI), round(width * _DPI))


def _size_mm(geometry: Geometry) -> tuple[float, float]:
    """The width and height of the slide in mm."""
    return geometry.width * geometry.mpp / 1000, geometry.height * geometry.mpp_y / 1000


def _show(axes: Axes, picture: Pixels, geometry: Geometry) -> None:
    """Draw a picture of the whole slide, with a scale bar."""
    width, height = _size_mm(geometry)
    pixels = np.clip(picture, 0, 255).round().astype(np.uint8)
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="nearest")
    axes.set_aspect("auto")  # the axes already have the slide's shape, unless they were widened
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    length = _round_length(width / 4)
    y = height * 0.97
    axes.plot([width * 0.03, width * 0.03 + length], [y, y], color="black", linewidth=3, path_effects=_HALO)
    text = f"{length:g} mm" if length >= 1 else f"{length * 1000:g} µm"
    axes.text(
        width * 0.03 + length / 2, height * 0.955, text, ha="center", va="bottom", fontsize=_POINTS, path_effects=_HALO
    )


def _round_length(most: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is at most `most`."""
    power = 10.0 ** math.floor(math.log10(most))
    return max(step * power for step in (1, 2, 5) if step * power <= most * (1 + 1e-9))


class _Legend:
    """A legend to the right of a map, filled from the top."""

    def __init__(self, figure: Figure, axes: Axes) -> None:
        box, (width, height) = axes.get_position(), figure.get_size_inches()
        self.swatch = round(_SWATCH[1] * _DPI), round(_SWATCH[0] * _DPI)
        # One unit is one inch.
        self._axes = figure.add_axes((box.x1 + 0.15 / width, box.y0, _RIGHT / width, box.height))
        self._axes.set_xlim(0, _RIGHT)
        self._axes.set_ylim(-box.height * height, 0)
        self._axes.axis("off")
        self._y = 0.0

    def add(self, name: str, picture: Pixels | None, outline: str = "none") -> None:
        """Add an entry: a picture of the shape `swatch`, a frame in the colour `outline`, or only text."""
        extent = (0.0, _SWATCH[0], self._y - _SWATCH[1], self._y)
        if picture is not None:
            pixels = picture.round().astype(np.uint8)
            self._axes.imshow(pixels, extent=extent, interpolation="nearest", aspect="auto", clip_on=False)
        if outline != "none":
            frame = Rectangle((0, extent[2]), *_SWATCH, facecolor="none", edgecolor=outline, clip_on=False)
            self._axes.add_patch(frame)
        for number, line in enumerate(fonts.wrap(name, _RIGHT - _SWATCH[0] - 0.2, _POINTS)):
            if number:
                self._y -= _LINE
            self._axes.text(
                _SWATCH[0] + 0.08, self._y - _SWATCH[1] / 2, line, va="center", fontsize=_POINTS, fontfamily=fonts.FONT,
                parse_math=False,
            )  # fmt: skip
        self._y -= _ROW


def _add_colour_bar(figure: Figure, axes: Axes, grey: float, threshold: float | None) -> None:
    """Draw the colours of 0 … 1 over the mean grey of the tissue below the tiles."""
    box, width = axes.get_position(), figure.get_size_inches()[0]
    bar = figure.add_axes((box.x1 + 0.2 / width, box.y0, 0.2 / width, box.height))
    colours = _blend(np.full(3, grey, np.float32), _heat(np.linspace(0, 1, 256))[:, None], _HEAT)
    bar.imshow(colours.round().astype(np.uint8), extent=(0, 1, 0, 1), origin="lower", aspect="auto")
    bar.set_xticks([])
    bar.yaxis.tick_right()
    bar.tick_params(labelsize=_POINTS)
    bar.set_title("probability", fontsize=_POINTS, loc="left")
    if threshold is not None:
        bar.axhline(threshold, color="black", linewidth=1.5, path_effects=_HALO)
        bar.annotate(
            f"◄ threshold {threshold:.3g}", (1, threshold), (0.36 * 72, 0), textcoords="offset points", va="center",
            fontsize=_POINTS, annotation_clip=False,
        )  # fmt: skip


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    # As `bbox_inches="tight"`, for which matplotlib would draw everything twice.
    box = figure.get_tightbbox().padded(_PADDING)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches=box, metadata={"Software": None})


def _legend_entry(names: Sequence[str], carried: NDArray[np.bool_]) -> tuple[str, list[Colour]]:
    """Legend text and colours of tiles that carry the labels `carried`, bool [k]."""
    present = [name for name, is_carried in zip(names, carried, strict=True) if is_carried]
    colours = label_colours(names)
    return " + ".join(present) or "no label", [colours[name] for name in present]
