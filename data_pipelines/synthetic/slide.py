"""A seeded H&E-like slide with known areas of tissue: for trying `histojax slide` without a slide of your own."""

import dataclasses
import os
import pathlib

import cv2
import numpy as np
import numpy.typing as npt

from data_pipelines.liver_tiles.spec import LIVER_LABELS
from data_pipelines.synthetic import morphology, stain, tiles
from data_pipelines.synthetic.publish import write_png

_CELL = 112  # pixels: side of the squares that are drawn one by one
_AREA = 3.0  # squares: typical diameter of an area of one tissue
_BIAS = (0.5, -0.8, -0.5, 0.5)  # of the tissues, in the order of the labels: more or less of each


@dataclasses.dataclass(frozen=True)
class SlideSyntheticSpec:
    """What to draw. The stain is that of no patient of the synthetic tiles.

    Attributes:
      seed: not negative.
      rows: height in squares of 112 pixels; the outermost are glass.
      columns: width in such squares.

    Raises:
      ValueError: a field has an illegal value.
    """

    seed: int = 0
    rows: int = 12
    columns: int = 14

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")
        if not (3 <= self.rows <= 100 and 3 <= self.columns <= 100):
            raise ValueError(f"rows x columns is {self.rows}x{self.columns}; each must be 3 to 100")


def write_slide(path: str | os.PathLike[str], spec: SlideSyntheticSpec = SlideSyntheticSpec()) -> dict[str, float]:
    """Draw a slide and write it as PNG.

    Args:
      path: file to write.
      spec: what to draw.

    Returns:
      Fraction of the tissue's area by label; the fractions add up to 1.
    """
    pixels, fractions = draw_slide(spec)
    write_png(pathlib.Path(path), pixels)
    return fractions


def draw_slide(spec: SlideSyntheticSpec) -> tuple[npt.NDArray[np.uint8], dict[str, float]]:
    """Return a slide, RGB uint8 (112 rows, 112 columns, 3), and the fraction of its tissue by label."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((0x511DE, spec.seed))))
    look = stain.draw_look(rng)
    height, width = spec.rows * _CELL, spec.columns * _CELL
    tissue, shares = _outline(rng, height, width), _areas(rng, height, width)
    pixels = stain.develop(np.zeros((2, height, width)), np.zeros((height, width)), look, rng)  # glass
    for top in range(0, height, _CELL):
        for left in range(0, width, _CELL):
            place = slice(top, top + _CELL), slice(left, left + _CELL)
            if tissue[place].any():
                drawn = tiles.draw(rng, look, shares[:, place[0], place[1]])
                pixels[place] = np.where(tissue[place][..., None], drawn, pixels[place])
    areas = (shares * tissue).sum((1, 2))
    return pixels, dict(zip(LIVER_LABELS, (areas / areas.sum()).tolist(), strict=True))


def _outline(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Draw where tissue is, (height, width): an uneven ellipse with a square of glass around it."""
    y, x = np.indices((height, width))
    radius = np.hypot((y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5)
    uneven = 0.42 + 0.02 * morphology.smooth_noise(rng, height, width, 2 * _CELL)
    margin = np.minimum.reduce([y, x, height - 1 - y, width - 1 - x])
    return (radius < uneven) & (margin >= _CELL // 2)


def _areas(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.float64]:
    """Draw the fraction of each tissue per pixel, (4, height, width), summing to 1, with soft borders."""
    field = np.stack([bias + morphology.smooth_noise(rng, height, width, _AREA * _CELL) for bias in _BIAS])
    nearest = field.argmax(0)
    soft = np.stack([cv2.GaussianBlur((nearest == i).astype(np.float64), (0, 0), 0.01 * _CELL) for i in range(4)])
    soft[soft < 1e-3] = 0.0  # a square without a tissue need not draw it
    return soft / soft.sum(0)
