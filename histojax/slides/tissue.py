"""Where a slide has tissue to look at, on a mask of about 8 µm/px; and what is there instead.

Tissue is told from glass by Otsu's threshold on saturation (Otsu 1979). Ink is told from stain by what it absorbs:
hematoxylin and eosin absorb green most (Ruifrok & Johnston 2001), so that what absorbs red more is blue or green ink,
what absorbs all alike and strongly is black, what absorbs green and blue alike and no red is red. A fold is tissue
upon tissue, darker and more saturated than the slide's own tissue (saturation against intensity, after Bautista &
Yagi 2009). Blur is a lack of the finest detail against the coarser detail in the same place, which does not take pale
tissue for blurred. The rules are for H&E.
"""

import concurrent.futures
import dataclasses
import itertools
import os

import cv2
import numpy as np
from PIL import Image

from histojax.core.files import atomic_write
from histojax.slides.readers.reader import Slide

KINDS = ("background", "tissue", "pen", "blur", "fold")
_BACKGROUND, _TISSUE, _PEN, _BLUR, _FOLD = range(len(KINDS))
_PALETTE = (255, 255, 255, 214, 96, 150, 40, 80, 220, 240, 190, 40, 60, 20, 70)

_LEAST_SATURATION, _GREATEST_SATURATION = 18, 30  # of 255; where a slide is all glass or all tissue, Otsu's is neither
_LEAST_PIXELS, _GREATEST_SHARE = 4, 0.05  # of the mask, for whatever has a least area
_PEN_REACH_UM = 50.0  # the pale rim of a stroke
_LEAST_PEN_MM2 = 0.01
_FOLD_ABOVE_MEDIAN, _LEAST_FOLD = 0.4, 0.1  # of saturation minus intensity, both in 0…1
_LEAST_FOLD_MM2 = 0.01
_BLUR_MPP, _BLUR_WINDOW_UM, _LEAST_BLUR_MM2 = 2.0, 100.0, 0.02
_FINE_SIGMA, _COARSE_SIGMA = 1.0, 4.0  # in pixels of _BLUR_MPP
_NOISE, _LEAST_DETAIL = 0.5, 0.1  # squared grey levels: what rounding and JPEG add, less than which says nothing
_BLOCK, _THREADS = 128, 4  # mask pixels read at once to judge sharpness, and how many such blocks at a time

_DENSITY = np.log(np.float32(255) / np.maximum(np.arange(256, dtype=np.float32), 1))  # of each grey level


@dataclasses.dataclass(frozen=True)
class TissueSpec:
    """What counts as tissue.

    Attributes:
      mpp: µm per mask pixel; the slide's own where that is coarser.
      min_object_mm2: smaller pieces are debris.
      max_hole_mm2: smaller holes are part of the tissue.
      sharpness: least energy of detail below 2 pixels of 2 µm relative to that of 2 to 8 pixels. Sharp tissue has 0.5
        to 4; blurred by a Gaussian of sigma 2 µm 0.1 to 0.4, of 4 µm 0.02 to 0.07.
    """

    mpp: float = 8.0
    min_object_mm2: float = 0.02
    max_hole_mm2: float = 0.005
    sharpness: float = 0.1


class Tissue:
    """The kind of every pixel of the mask.

    Attributes:
      kinds: `uint8 [h, w]`, an index of `KINDS`.
      scale_x: level-0 pixels across a mask pixel.
      scale_y: level-0 pixels down a mask pixel.
    """

    def __init__(self, kinds: np.ndarray, scale_x: float, scale_y: float) -> None:
        self.kinds, self.scale_x, self.scale_y = kinds, scale_x, scale_y
        self._integral = cv2.integral(self.mask.astype(np.uint8), sdepth=cv2.CV_64F)

    @property
    def mask(self) -> np.ndarray:
        """`bool [h, w]`: whether it is tissue to look at."""
        return self.kinds == _TISSUE

    def shares(self, boxes: np.ndarray) -> np.ndarray:
        """The share of tissue, `f64 [n]`, in boxes `[n, 4]` of minx, miny, width, height in level-0 pixels.

        Mask pixels count by the part of them that is in the box; outside the slide there is no tissue.
        """
        x, y, width, height = np.asarray(boxes, np.float64).reshape(-1, 4).T
        left, right = x / self.scale_x, (x + width) / self.scale_x
        top, bottom = y / self.scale_y, (y + height) / self.scale_y
        inside = self._upto(right, bottom) - self._upto(left, bottom) - self._upto(right, top) + self._upto(left, top)
        return np.clip(inside / ((right - left) * (bottom - top)), 0, 1)

    def mm2(self, mpp: float) -> dict[str, float]:
        """Area of each kind in mm², given µm per level-0 pixel."""
        counts = np.bincount(self.kinds.ravel(), minlength=len(KINDS))
        area = self.scale_x * self.scale_y * (mpp / 1000) ** 2
        return {kind: float(count * area) for kind, count in zip(KINDS, counts, strict=True)}

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the kinds as a PNG file whose palette index is the kind."""
        picture = Image.fromarray(self.kinds, mode="P")
        picture.putpalette(_PALETTE)
        with atomic_write(path) as temporary:
            picture.save(temporary, format="PNG")

    def _upto(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Mask pixels of tissue left of x and above y, exactly: the integral is bilinear within a pixel."""
        height, width = self.kinds.shape
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        column, row = np.minimum(x.astype(int), width - 1), np.minimum(y.astype(int), height - 1)
        right, down = x - column, y - row
        above = self._integral[row, column] * (1 - right) + self._integral[row, column + 1] * right
        below = self._integral[row + 1, column] * (1 - right) + self._integral[row + 1, column + 1] * right
        return above * (1 - down) + below * down


def find_tissue(slide: Slide, spec: TissueSpec) -> Tissue:
    """Finds tissue; a slide without any gives an empty mask. Blur is not judged on slides coarser than 2 µm/px.

    Raises:
      SlideError: the slide cannot be read.
    """
    mask_mpp = max(spec.mpp, slide.mpp)
    width, height = (max(1, round(side * slide.mpp / mask_mpp)) for side in (slide.width, slide.height))
    rgb = slide.read(0, 0, slide.width, slide.height, width, height)
    pixel_mm2 = slide.width * slide.height * (slide.mpp / 1000) ** 2 / (width * height)

    def area(mm2: float) -> int:
        # A region cut out of a slide has pieces of pieces.
        return max(_LEAST_PIXELS, round(min(mm2 / pixel_mm2, _GREATEST_SHARE * width * height)))

    pen = _pen(rgb, area(_LEAST_PEN_MM2), round(_PEN_REACH_UM / mask_mpp))
    saturation = cv2.medianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1], 3)
    tissue = (saturation > _threshold(saturation[~pen])) & ~pen
    tissue = _without_small(tissue, area(spec.min_object_mm2))
    tissue = _without_holes(tissue, area(spec.max_hole_mm2))
    kinds = np.where(tissue, np.uint8(_TISSUE), np.uint8(_BACKGROUND))
    kinds[_folds(rgb, tissue & ~pen, area(_LEAST_FOLD_MM2))] = _FOLD
    if slide.mpp <= _BLUR_MPP:
        blurred = _blurred(slide, kinds == _TISSUE, mask_mpp, spec.sharpness)
        kinds[_without_small(blurred, area(_LEAST_BLUR_MM2))] = _BLUR
    kinds[pen] = _PEN
    return Tissue(kinds, slide.width / width, slide.height / height)


def _threshold(saturation: np.ndarray) -> float:
    if saturation.size == 0:
        return _GREATEST_SATURATION
    otsu, _ = cv2.threshold(saturation.reshape(1, -1), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return float(np.clip(otsu, _LEAST_SATURATION, _GREATEST_SATURATION))


def _without_small(mask: np.ndarray, least: int) -> np.ndarray:
    """The mask `bool [h, w]` without its connected pieces of fewer than `least` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= least
    keep[0] = False
    return keep[labels]


def _without_holes(mask: np.ndarray, least: int) -> np.ndarray:
    """The mask `bool [h, w]` with holes of fewer than `least` pixels filled; what opens to the border is no hole."""
    around = np.pad(~mask, 1, constant_values=True)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(around.astype(np.uint8), connectivity=4)
    fill = stats[:, cv2.CC_STAT_AREA] < least
    fill[[0, labels[0, 0]]] = False
    return mask | fill[labels][1:-1, 1:-1]


def _pen(rgb: np.ndarray, least: int, reach: int) -> np.ndarray:
    """Strokes of ink and black borders, `bool [h, w]`."""
    red, green, blue = cv2.split(_DENSITY[rgb])
    lowest, highest = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
    blue_or_green = (red > 1.25 * green) & (red > 0.25) | (red > green) & (red > 1.2)  # on glass, on tissue
    black = (lowest > 0.9) & (lowest > 0.75 * highest)
    red_ink = (green > 1.0) & (blue > 0.7 * green) & (red < 0.25 * green)
    # Thinner than a stroke: pigment, dye on a margin, the fringe of colour that a scanner gives to an edge.
    strokes = cv2.morphologyEx((blue_or_green | black | red_ink).astype(np.uint8), cv2.MORPH_OPEN, _disc(2))
    return cv2.dilate(_without_small(strokes > 0, least).astype(np.uint8), _disc(reach)) > 0


def _folds(rgb: np.ndarray, tissue: np.ndarray, least: int) -> np.ndarray:
    """Folds within the tissue, `bool [h, w]`."""
    if not tissue.any():
        return tissue
    _, saturation, value = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV).astype(np.float32) / 255)
    excess = cv2.GaussianBlur(saturation - value, (0, 0), 1)
    dark = tissue & (excess > max(float(np.median(excess[tissue])) + _FOLD_ABOVE_MEDIAN, _LEAST_FOLD))
    opened = cv2.morphologyEx(dark.astype(np.uint8), cv2.MORPH_OPEN, _disc(1))
    closed = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, _disc(2)) > 0
    return _without_small(closed & tissue, least)


def _blurred(slide: Slide, tissue: np.ndarray, mask_mpp: float, sharpness: float) -> np.ndarray:
    """Where tissue lacks fine detail, `bool [h, w]`; reads the blocks that have tissue, at about 2 µm/px."""
    height, width = tissue.shape
    scale_x, scale_y = slide.width / width, slide.height / height
    finer = max(1, round(mask_mpp / _BLUR_MPP))
    fine, coarse = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)

    def measure(corner: tuple[int, int]) -> None:
        part = np.s_[corner[0] : corner[0] + _BLOCK, corner[1] : corner[1] + _BLOCK]
        if not tissue[part].any():
            return
        h, w = tissue[part].shape
        box = (round(corner[1] * scale_x), round(corner[0] * scale_y), round(w * scale_x), round(h * scale_y))
        grey = cv2.cvtColor(slide.read(*box, w * finer, h * finer), cv2.COLOR_RGB2GRAY).astype(np.float32)
        smooth = cv2.GaussianBlur(grey, (0, 0), _FINE_SIGMA)
        half = cv2.resize(smooth, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)  # it has no finer detail
        smoother = cv2.GaussianBlur(half, (0, 0), _COARSE_SIGMA / 2)
        for energy, detail in ((fine, grey - smooth), (coarse, half - smoother)):
            energy[part] = cv2.resize(cv2.multiply(detail, detail), (w, h), interpolation=cv2.INTER_AREA)

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(measure, itertools.product(range(0, height, _BLOCK), range(0, width, _BLOCK))))
    window = (max(1, round(_BLUR_WINDOW_UM / mask_mpp)),) * 2
    weight = np.maximum(cv2.blur(tissue.astype(np.float32), window), 1e-6)
    fine, coarse = (cv2.blur(energy * tissue, window) / weight for energy in (fine, coarse))
    blurred = tissue & (coarse > _LEAST_DETAIL) & (np.maximum(fine - _NOISE, 0) < sharpness * coarse)
    # A window that reaches into sharp tissue is sharp: give back the margin.
    return tissue & (cv2.dilate(blurred.astype(np.uint8), _disc(round(0.4 * window[0]))) > 0)


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
