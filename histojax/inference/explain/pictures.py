"""Draw explanations: a map over its image, and contact sheets of many images."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from histojax.core.files import atomic_write
from histojax.evaluation import fonts
from histojax.inference.explain.dt_grad_cam import Marking, outlines

_DPI = 150
# White where the map is zero, so that the tissue remains visible; then ever darker, so that colour-blind readers can
# read it.
_CMAP = LinearSegmentedColormap.from_list("map", ["#ffffff", "#ffe066", "#ff8c1a", "#e31a1c"])
_OUTLINE = "#00a5ff"  # a hue that neither the map nor hematoxylin and eosin has
_THUMBNAIL = 330  # pixels of the longer side on a contact sheet
_LONGEST, _SHORTEST = 4.2, 1.2  # longer side of a panel, and the least side, in inches
_EDGE, _GAP, _BAR, _RIGHT = 0.15, 0.15, 0.18, 0.62  # inches around and between the panels
_CELL, _BAR_ROOM = _THUMBNAIL / _DPI, 0.55  # inches of a panel on a contact sheet, and of its colour bar with its text
_BAR_LABEL = "Grad-CAM, fraction of its maximum"
_MAX_LINES = 3  # of a title or caption


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image and its map.

    Attributes:
      image: uint8 [h, w, 3].
      values: the map, f32 [h, w], in 0 … 1.
      marking: marked area of the map; None: the map was not thresholded.
      name: name of the image.
      title: the class and its probability, as text.
      remark: note on the map, as text; may be empty.
      label: the true label; empty if it is not known.
    """

    image: np.ndarray
    values: np.ndarray
    marking: Marking | None
    name: str
    title: str
    remark: str
    label: str = ""

    def thumbnail(self) -> "Picture":
        """Return a copy small enough to keep many of them in memory."""
        height, width = self.values.shape
        scale = _THUMBNAIL / max(height, width)
        if scale >= 1:
            return self
        size = max(1, round(width * scale)), max(1, round(height * scale))
        marking = self.marking
        if marking is not None:
            mask = cv2.resize(marking.mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
            marking = Marking(marking.threshold, mask, outlines(mask))
        image, values = (cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in (self.image, self.values))
        return dataclasses.replace(self, image=image, values=values, marking=marking)


def blend(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Multiply the map's colours by the image in grey: uint8 [h, w, 3].

    The image is grey so that no stain is mistaken for a colour of the map. The product shows the colours of the colour
    bar unchanged where the slide is empty glass.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] / 255
    return np.rint(255 * grey * _CMAP(values)[..., :3]).astype(np.uint8)


def write_overlay(path: str | os.PathLike[str], picture: Picture) -> None:
    """Draw the image and its map side by side as PNG, with a colour bar; outline the marked area on both."""
    panel = _panel_size(*picture.values.shape)
    across = 2 * _EDGE + 2 * panel[0] + 2 * _GAP + _BAR + _RIGHT
    facts = (picture.name, picture.label and f"true label: {picture.label}", picture.remark)
    texts = [
        (_fit(picture.title, across - 2 * _EDGE, 11), 11),
        (_fit(", ".join(filter(None, facts)), across - 2 * _EDGE, 8), 8),
    ]
    top = _EDGE + sum(len(lines) * _line(size) for lines, size in texts)
    inches = across, top + panel[1] + _EDGE
    figure = _figure(inches)

    def add_axes(left: float, width: float) -> Axes:
        return figure.add_axes((left / inches[0], _EDGE / inches[1], width / inches[0], panel[1] / inches[1]))

    left = _EDGE
    for pixels in (picture.image, blend(picture.image, picture.values)):
        _show(add_axes(left, panel[0]), pixels, picture.marking)
        left += panel[0] + _GAP
    bar = figure.colorbar(ScalarMappable(cmap=_CMAP), cax=add_axes(left, _BAR))
    bar.set_label(_BAR_LABEL, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    if picture.marking is not None:
        bar.ax.axhline(picture.marking.threshold, color=_OUTLINE, linewidth=2)
    below = _EDGE / 2
    for lines, size in texts:
        below = _write(figure, _EDGE, below, lines, size)
    _save(figure, path)


def panels_of(overlay: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut the image and its map out of a picture that `write_overlay` wrote.

    Args:
      overlay: the picture, uint8 [h, w, 3].
      height: of the image that it shows, in pixels.
      width: of that image.
    """
    across, down = (round(side * _DPI) for side in _panel_size(height, width))
    edge, gap = round(_EDGE * _DPI), round(_GAP * _DPI)
    rows = slice(len(overlay) - edge - down, len(overlay) - edge)
    return overlay[rows, edge : edge + across], overlay[rows, edge + across + gap : edge + 2 * across + gap]


def _panel_size(height: int, width: int) -> tuple[float, float]:
    """Width and height in inches of an image in an overlay."""
    scale = _LONGEST / max(height, width)
    return max(_SHORTEST, width * scale), max(_SHORTEST, height * scale)


def write_contact_sheet(path: str | os.PathLike[str], rows: Sequence[Sequence[Picture]], title: str) -> None:
    """Draw one row per image as PNG: the image with its name and true label, then its map for each class.

    Args:
      path: file to write.
      rows: thumbnails; each row belongs to one image.
      title: title of the sheet.
    """
    columns = 1 + max(len(row) for row in rows)
    across = columns * (_CELL + _GAP) + _GAP
    heading = _fit(title, across - 2 * _GAP, 10)
    panels = [_panels(row) for row in rows]
    captions = [max(len(panel.caption) for panel in row) * _line(7) for row in panels]
    heights = [_CELL * min(1.0, row[0].values.shape[0] / row[0].values.shape[1]) for row in rows]
    head = 2 * _GAP + len(heading) * _line(10) + _BAR_ROOM
    inches = across, head + sum(heights) + sum(captions) + len(rows) * _GAP
    figure = _figure(inches)
    below = _write(figure, _GAP, _GAP, heading, 10)
    _add_bar(figure, below + _GAP / 2)
    below = head
    for row, caption, height in zip(panels, captions, heights, strict=True):
        for column, panel in enumerate(row):
            left = _GAP + column * (_CELL + _GAP)
            _write(figure, left, below + caption - len(panel.caption) * _line(7), panel.caption, 7)
            bottom = inches[1] - below - caption - height
            axes = figure.add_axes((left / inches[0], bottom / inches[1], _CELL / inches[0], height / inches[1]))
            axes.set_anchor("NW")
            _show(axes, panel.pixels, panel.marking, aspect="equal")
        below += caption + height + _GAP
    _save(figure, path)


@dataclasses.dataclass(frozen=True)
class _Panel:
    """A picture on a contact sheet: its pixels, the area to outline, and the lines above it."""

    pixels: np.ndarray
    marking: Marking | None
    caption: list[str]


def _panels(row: Sequence[Picture]) -> list[_Panel]:
    """Lay out one image: the image itself, then its maps."""
    first = row[0]
    label = _fit(f"true label: {first.label}", _CELL, 7) if first.label else []
    panels = [_Panel(first.image, None, _fit(first.name, _CELL, 7) + label)]
    for picture in row:
        caption = picture.title if picture.values.any() else f"{picture.title}, {picture.remark}"
        panels.append(_Panel(blend(picture.image, picture.values), picture.marking, _fit(caption, _CELL, 7)))
    return panels


def _add_bar(figure: Figure, below: float) -> None:
    """Draw the colour bar of a contact sheet above the maps' first column, `below` inches from the top."""
    width, height = figure.get_size_inches()
    left, thickness = 2 * _GAP + _CELL, 0.12
    axes = figure.add_axes((left / width, 1 - (below + thickness) / height, _CELL / width, thickness / height))
    bar = figure.colorbar(ScalarMappable(cmap=_CMAP), cax=axes, orientation="horizontal")
    bar.set_label(_BAR_LABEL, fontsize=7, labelpad=1)
    bar.ax.tick_params(labelsize=7, pad=1)


def write_mask(path: str | os.PathLike[str], mask: np.ndarray) -> None:
    """Write a mask bool [h, w] as PNG: 255 where it is True, else 0."""
    succeeded, data = cv2.imencode(".png", mask.astype(np.uint8) * 255)
    if not succeeded:
        raise ValueError(f"a mask of shape {mask.shape} cannot be encoded")
    with atomic_write(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _show(axes: Axes, pixels: np.ndarray, marking: Marking | None, aspect: Literal["auto", "equal"] = "auto") -> None:
    height, width = pixels.shape[:2]
    axes.imshow(pixels, extent=(0, width, height, 0), aspect=aspect)
    for rings in marking.parts if marking is not None else []:
        for ring in rings:
            axes.fill(*ring.T, facecolor="none", edgecolor=_OUTLINE, linewidth=1.3, clip_on=False)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _figure(inches: tuple[float, float]) -> Figure:
    figure = Figure(figsize=inches, dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure


def _write(figure: Figure, left: float, below: float, lines: Sequence[str], size: float) -> float:
    """Write lines, `left` and `below` inches from the upper left corner; return where the next line starts."""
    width, height = figure.get_size_inches()
    for line in lines:
        figure.text(
            left / width, 1 - below / height, line, fontsize=size, fontfamily=fonts.FONT, va="top", parse_math=False
        )
        below += _line(size)
    return below


def _line(size: float) -> float:
    """Height of a line of text in inches."""
    return 1.35 * size / 72


def _fit(text: str, inches: float, size: float) -> list[str]:
    """Break a text into at most three lines; a longer one loses its middle, because names differ at their ends."""
    lines, length = fonts.wrap(text, inches, size), len(text)
    while len(lines) > _MAX_LINES:
        length = length * 9 // 10
        lines = fonts.wrap(f"{text[: math.ceil(length / 2)]}…{text[-(length // 2) :]}", inches, size)
    return lines


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
