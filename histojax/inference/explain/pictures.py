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
_EDGE, _TOP, _GAP, _BAR, _RIGHT = 0.15, 0.62, 0.15, 0.18, 0.62  # inches around and between the panels


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
    """

    image: np.ndarray
    values: np.ndarray
    marking: Marking | None
    name: str
    title: str
    remark: str

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
    height, width = picture.values.shape
    scale = _LONGEST / max(height, width)
    panel = max(_SHORTEST, width * scale), max(_SHORTEST, height * scale)
    inches = 2 * _EDGE + 2 * panel[0] + 2 * _GAP + _BAR + _RIGHT, _TOP + panel[1] + _EDGE
    figure = Figure(figsize=inches, dpi=_DPI)
    FigureCanvasAgg(figure)

    def add_axes(left: float, width: float) -> Axes:
        return figure.add_axes((left / inches[0], _EDGE / inches[1], width / inches[0], panel[1] / inches[1]))

    left = _EDGE
    for pixels in (picture.image, blend(picture.image, picture.values)):
        _show(add_axes(left, panel[0]), pixels, picture.marking)
        left += panel[0] + _GAP
    bar = figure.colorbar(ScalarMappable(cmap=_CMAP), cax=add_axes(left, _BAR))
    bar.set_label("Grad-CAM, fraction of its maximum", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    if picture.marking is not None:
        bar.ax.axhline(picture.marking.threshold, color=_OUTLINE, linewidth=2)
    top = 1 - 0.2 / inches[1]
    _write(figure, _EDGE / inches[0], top, picture.title, 11)
    subtitle = ", ".join(filter(None, (_shorten(picture.name, 60), picture.remark)))
    _write(figure, _EDGE / inches[0], top - 0.22 / inches[1], subtitle, 8)
    _save(figure, path)


def write_contact_sheet(path: str | os.PathLike[str], rows: Sequence[Sequence[Picture]], title: str) -> None:
    """Draw one row per image as PNG: the image itself, then its map for each class.

    Args:
      path: file to write.
      rows: thumbnails; each row belongs to one image.
      title: title of the sheet.
    """
    columns = 1 + max(len(row) for row in rows)
    cell, text = _THUMBNAIL / _DPI, 0.42  # inches
    heights = [cell * min(1.0, row[0].values.shape[0] / row[0].values.shape[1]) for row in rows]
    inches = columns * (cell + _GAP) + _GAP, sum(heights) + (len(rows) + 1) * text
    figure = Figure(figsize=inches, dpi=_DPI)
    FigureCanvasAgg(figure)
    _write(figure, _GAP / inches[0], 1 - 0.2 / inches[1], title, 10)
    bottom = inches[1] - text + _GAP
    for row, height in zip(rows, heights, strict=True):
        bottom -= height + text
        panels: list[tuple[np.ndarray, Marking | None, str]] = [(row[0].image, None, row[0].name)]
        for picture in row:
            caption = picture.title if picture.values.any() else f"{picture.title}, {picture.remark}"
            panels.append((blend(picture.image, picture.values), picture.marking, caption))
        for column, (pixels, marking, caption) in enumerate(panels):
            left = _GAP + column * (cell + _GAP)
            axes = figure.add_axes((left / inches[0], bottom / inches[1], cell / inches[0], height / inches[1]))
            axes.set_anchor("NW")
            _show(axes, pixels, marking, aspect="equal")
            _write(figure, left / inches[0], (bottom + height + 0.08) / inches[1], _shorten(caption, 34), 7)
    _save(figure, path)


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


def _write(figure: Figure, x: float, y: float, text: str, size: float) -> None:
    figure.text(x, y, fonts.drawable(text), fontsize=size, fontfamily=fonts.FONT, va="center", parse_math=False)


def _shorten(text: str, max_length: int) -> str:
    """Leave out the middle of a text that is too long, because names differ at their ends."""
    budget = max_length - 1
    return text if len(text) <= max_length else f"{text[: math.ceil(budget / 2)]}…{text[-(budget // 2) :]}"


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
