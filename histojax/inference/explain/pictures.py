"""Pictures of explanations: a map over its image, and contact sheets of many."""

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
# White where the map is zero, so that the tissue is seen as it is; then ever darker, for colour-blind eyes, too.
_CMAP = LinearSegmentedColormap.from_list("map", ["#ffffff", "#ffe066", "#ff8c1a", "#e31a1c"])
_LINE = "#00a5ff"  # no hue of the map, nor of hematoxylin and eosin
_THUMB = 330  # pixels of the longer side on a contact sheet
_LONGEST, _SHORTEST = 4.2, 1.2  # inches of a panel's sides
_EDGE, _TOP, _GAP, _BAR, _RIGHT = 0.15, 0.62, 0.15, 0.18, 0.62  # inches around and between the panels


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image and what was seen in it.

    Attributes:
      image: uint8 [h, w, 3].
      values: the map, f32 [h, w], in 0 … 1.
      marking: what the map marks; None: nothing was thresholded.
      name: of the image.
      target: the class and its probability, in words.
      remark: on the map, in words; may be empty.
    """

    image: np.ndarray
    values: np.ndarray
    marking: Marking | None
    name: str
    target: str
    remark: str

    def thumbnail(self) -> "Picture":
        """The same, small enough to keep many of them."""
        height, width = self.values.shape
        scale = _THUMB / max(height, width)
        if scale >= 1:
            return self
        size = max(1, round(width * scale)), max(1, round(height * scale))
        marking = self.marking
        if marking is not None:
            share = cv2.resize(marking.mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
            marking = Marking(marking.threshold, share >= 0.5, outlines(share >= 0.5))
        image, values = (cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in (self.image, self.values))
        return dataclasses.replace(self, image=image, values=values, marking=marking)


def blend(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The map's colours, times the image in grey: uint8 [h, w, 3].

    Grey, so that no colour of a stain is taken for one of the map; a product, so that glass shows the colour bar's.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] / 255
    return np.rint(255 * grey * _CMAP(values)[..., :3]).astype(np.uint8)


def write_overlay(path: str | os.PathLike[str], picture: Picture) -> None:
    """Draws image and map side by side as PNG, with a colour bar, and the outlines of what is marked on both."""
    height, width = picture.values.shape
    scale = _LONGEST / max(height, width)
    panel = max(_SHORTEST, width * scale), max(_SHORTEST, height * scale)
    whole = 2 * _EDGE + 2 * panel[0] + 2 * _GAP + _BAR + _RIGHT, _TOP + panel[1] + _EDGE
    figure = Figure(figsize=whole, dpi=_DPI)
    FigureCanvasAgg(figure)

    def place(left: float, wide: float) -> Axes:
        return figure.add_axes((left / whole[0], _EDGE / whole[1], wide / whole[0], panel[1] / whole[1]))

    left = _EDGE
    for pixels in (picture.image, blend(picture.image, picture.values)):
        _show(place(left, panel[0]), pixels, picture.marking)
        left += panel[0] + _GAP
    bar = figure.colorbar(ScalarMappable(cmap=_CMAP), cax=place(left, _BAR))
    bar.set_label("Grad-CAM, share of its maximum", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    if picture.marking is not None:
        bar.ax.axhline(picture.marking.threshold, color=_LINE, linewidth=2)
    top = 1 - 0.2 / whole[1]
    _write(figure, _EDGE / whole[0], top, picture.target, 11)
    below = ", ".join(filter(None, (_shortened(picture.name, 60), picture.remark)))
    _write(figure, _EDGE / whole[0], top - 0.22 / whole[1], below, 8)
    _save(figure, path)


def write_contact_sheet(path: str | os.PathLike[str], rows: Sequence[Sequence[Picture]], title: str) -> None:
    """Draws a row for each image as PNG: the image itself, then its map for each class.

    Args:
      path: of the PNG.
      rows: thumbnails; those of a row are of one image.
      title: what all have in common.
    """
    columns = 1 + max(len(row) for row in rows)
    cell, text = _THUMB / _DPI, 0.42  # inches
    heights = [cell * min(1.0, row[0].values.shape[0] / row[0].values.shape[1]) for row in rows]
    whole = columns * (cell + _GAP) + _GAP, sum(heights) + (len(rows) + 1) * text
    figure = Figure(figsize=whole, dpi=_DPI)
    FigureCanvasAgg(figure)
    _write(figure, _GAP / whole[0], 1 - 0.2 / whole[1], title, 10)
    bottom = whole[1] - text + _GAP
    for row, height in zip(rows, heights, strict=True):
        bottom -= height + text
        panels: list[tuple[np.ndarray, Marking | None, str]] = [(row[0].image, None, row[0].name)]
        for one in row:
            words = one.target if one.values.any() else f"{one.target}, {one.remark}"
            panels.append((blend(one.image, one.values), one.marking, words))
        for column, (pixels, marking, words) in enumerate(panels):
            left = _GAP + column * (cell + _GAP)
            axes = figure.add_axes((left / whole[0], bottom / whole[1], cell / whole[0], height / whole[1]))
            axes.set_anchor("NW")
            _show(axes, pixels, marking, aspect="equal")
            _write(figure, left / whole[0], (bottom + height + 0.08) / whole[1], _shortened(words, 34), 7)
    _save(figure, path)


def write_mask(path: str | os.PathLike[str], mask: np.ndarray) -> None:
    """Writes a mask bool [h, w] as PNG, 255 where it is marked."""
    done, data = cv2.imencode(".png", mask.astype(np.uint8) * 255)
    if not done:
        raise ValueError(f"a mask of shape {mask.shape} cannot be encoded")
    with atomic_write(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _show(axes: Axes, pixels: np.ndarray, marking: Marking | None, aspect: Literal["auto", "equal"] = "auto") -> None:
    height, width = pixels.shape[:2]
    axes.imshow(pixels, extent=(0, width, height, 0), aspect=aspect)
    for rings in marking.parts if marking is not None else []:
        for ring in rings:
            axes.fill(*ring.T, facecolor="none", edgecolor=_LINE, linewidth=1.3, clip_on=False)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _write(figure: Figure, x: float, y: float, words: str, size: float) -> None:
    figure.text(x, y, fonts.drawable(words), fontsize=size, fontfamily=fonts.FONT, va="center", parse_math=False)


def _shortened(text: str, longest: int) -> str:
    """A text with its middle left out where it is too long: names differ at their ends."""
    kept = longest - 1
    return text if len(text) <= longest else f"{text[: math.ceil(kept / 2)]}…{text[-(kept // 2) :]}"


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
