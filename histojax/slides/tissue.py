"""Classification of a slide into tissue, background and artefacts, on a mask of about 8 µm/px, for H&E stains.

* Tissue is separated from glass by Otsu's threshold on saturation (Otsu 1979).
* Ink is separated from stain by its absorption; see `pixel_colours.ink`.
* A fold is tissue on top of tissue. It is darker and more saturated than the rest of the slide's tissue (saturation
  minus intensity, after Bautista & Yagi 2009).
* Blur is a lack of the finest detail relative to coarser detail in the same place, so that pale tissue does not count
  as blurred.
"""

import concurrent.futures
import dataclasses
import itertools
import os

import cv2
import numpy as np
from PIL import Image

from histojax.core.files import atomic_write
from histojax.slides import pixel_colours
from histojax.slides.readers.reader import Slide

KINDS = ("background", "tissue", "pen", "blur", "fold")
_BACKGROUND, _TISSUE, _PEN, _BLUR, _FOLD = range(len(KINDS))
_PALETTE = (255, 255, 255, 214, 96, 150, 40, 80, 220, 240, 190, 40, 60, 20, 70)
PALETTE_KEY = "tissue pink, pen blue, blur yellow, folds dark violet"

_MIN_SATURATION, _MAX_SATURATION = 18, 30  # of 255; Otsu's threshold is useless if all is glass or all is tissue
_MIN_PIXELS, _MAX_FRACTION = 4, 0.05  # of the mask: bounds for every minimum area
_PEN_REACH_UM = 50.0  # width of the pale rim of a stroke
_MIN_PEN_MM2 = 0.01
_FOLD_ABOVE_MEDIAN, _MIN_FOLD = 0.4, 0.1  # saturation minus intensity, both in 0 … 1
_MIN_FOLD_MM2 = 0.01
_BLUR_MPP, _BLUR_WINDOW_UM, _MIN_BLUR_MM2 = 2.0, 100.0, 0.02
_FINE_SIGMA, _COARSE_SIGMA = 1.0, 4.0  # in pixels of _BLUR_MPP
_NOISE, _MIN_DETAIL = 0.5, 0.1  # squared grey levels: added by rounding and JPEG; too little to judge
_BLOCK, _THREADS = 128, 4  # side in mask pixels of the blocks read to judge sharpness, and blocks read at a time


@dataclasses.dataclass(frozen=True)
class TissueSpec:
    """What counts as tissue.

    Attributes:
      mpp: µm per mask pixel; a coarser slide keeps its own.
      min_object_mm2: pieces smaller than this are debris.
      max_hole_mm2: holes smaller than this belong to the tissue.
      sharpness: smallest energy of detail finer than 2 pixels of 2 µm, relative to detail of 2 to 8 pixels. Sharp
        tissue has 0.5 to 4. A Gaussian blur of sigma 2 µm gives 0.1 to 0.4, one of 4 µm gives 0.02 to 0.07.
    """

    mpp: float = 8.0
    min_object_mm2: float = 0.02
    max_hole_mm2: float = 0.005
    sharpness: float = 0.1


class Tissue:
    """A mask with the kind of every pixel.

    Attributes:
      kinds: `uint8 [h, w]`, indices into `KINDS`.
      scale_x: width of a mask pixel in level-0 pixels.
      scale_y: height of a mask pixel in level-0 pixels.
    """

    def __init__(self, kinds: np.ndarray, scale_x: float, scale_y: float) -> None:
        self.kinds, self.scale_x, self.scale_y = kinds, scale_x, scale_y
        self._integral = cv2.integral(self.mask.astype(np.uint8), sdepth=cv2.CV_64F)

    @property
    def mask(self) -> np.ndarray:
        """`bool [h, w]`: tissue without artefacts."""
        return self.kinds == _TISSUE

    def fractions(self, boxes: np.ndarray) -> np.ndarray:
        """The fraction of tissue in boxes, `f64 [n]`.

        A mask pixel counts by its part within the box. The area outside the slide has no tissue.

        Args:
          boxes: `[n, 4]`, minx, miny, width and height in level-0 pixels.
        """
        x, y, width, height = np.asarray(boxes, np.float64).reshape(-1, 4).T
        left, right = x / self.scale_x, (x + width) / self.scale_x
        top, bottom = y / self.scale_y, (y + height) / self.scale_y
        inside = (
            self._sum_at(right, bottom)
            - self._sum_at(left, bottom)
            - self._sum_at(right, top)
            + self._sum_at(left, top)
        )
        return np.clip(inside / ((right - left) * (bottom - top)), 0, 1)

    def mm2(self, pixel_mm2: float) -> dict[str, float]:
        """The area of each kind in mm²; `pixel_mm2` is that of a level-0 pixel."""
        counts = np.bincount(self.kinds.ravel(), minlength=len(KINDS))
        area = self.scale_x * self.scale_y * pixel_mm2
        return {kind: float(count * area) for kind, count in zip(KINDS, counts, strict=True)}

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the kinds as a PNG file with the kind as palette index."""
        picture = Image.fromarray(self.kinds, mode="P")
        picture.putpalette(_PALETTE)
        with atomic_write(path) as temporary:
            picture.save(temporary, format="PNG")

    def _sum_at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Number of tissue pixels left of x and above y; exact, since the integral is bilinear within a pixel."""
        height, width = self.kinds.shape
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        column, row = np.minimum(x.astype(int), width - 1), np.minimum(y.astype(int), height - 1)
        right, down = x - column, y - row
        above = self._integral[row, column] * (1 - right) + self._integral[row, column + 1] * right
        below = self._integral[row + 1, column] * (1 - right) + self._integral[row + 1, column + 1] * right
        return above * (1 - down) + below * down


def find_tissue(slide: Slide, spec: TissueSpec) -> Tissue:
    """Classify a slide; without tissue the mask is empty. Slides coarser than 2 µm/px are not checked for blur.

    Raises:
      SlideError: the slide cannot be read.
    """
    coarsest = max(slide.mpp, slide.mpp_y)
    mask_mpp = max(spec.mpp, coarsest)
    width = max(1, round(slide.width * slide.mpp / mask_mpp))
    height = max(1, round(slide.height * slide.mpp_y / mask_mpp))
    rgb = slide.read(0, 0, slide.width, slide.height, width, height)
    pixel_mm2 = slide.width * slide.height * slide.pixel_mm2 / (width * height)

    def area(mm2: float) -> int:
        # A small region cut out of a slide has only fragments of the usual pieces.
        return max(_MIN_PIXELS, round(min(mm2 / pixel_mm2, _MAX_FRACTION * width * height)))

    pen = _find_pen(rgb, area(_MIN_PEN_MM2), round(_PEN_REACH_UM / mask_mpp))
    saturation = cv2.medianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1], 3)
    tissue = (saturation > _threshold(saturation[~pen])) & ~pen
    tissue = _remove_small(tissue, area(spec.min_object_mm2))
    tissue = _fill_holes(tissue, area(spec.max_hole_mm2))
    kinds = np.where(tissue, np.uint8(_TISSUE), np.uint8(_BACKGROUND))
    kinds[_find_folds(rgb, tissue & ~pen, area(_MIN_FOLD_MM2))] = _FOLD
    if coarsest <= _BLUR_MPP:
        blurred = _find_blur(slide, kinds == _TISSUE, mask_mpp, spec.sharpness)
        kinds[_remove_small(blurred, area(_MIN_BLUR_MM2))] = _BLUR
    kinds[pen] = _PEN
    return Tissue(kinds, slide.width / width, slide.height / height)


def _threshold(saturation: np.ndarray) -> float:
    """Otsu's threshold, within bounds; the upper bound if there are no pixels."""
    if saturation.size == 0:
        return _MAX_SATURATION
    otsu, _ = cv2.threshold(saturation.reshape(1, -1), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return float(np.clip(otsu, _MIN_SATURATION, _MAX_SATURATION))


def _remove_small(mask: np.ndarray, min_pixels: int) -> np.ndarray:
    """Remove connected pieces of fewer than `min_pixels` pixels from a mask `bool [h, w]`."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_pixels
    keep[0] = False
    return keep[labels]


def _fill_holes(mask: np.ndarray, min_pixels: int) -> np.ndarray:
    """Fill holes of fewer than `min_pixels` pixels in a mask `bool [h, w]`; a gap open to the border is not a hole."""
    around = np.pad(~mask, 1, constant_values=True)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(around.astype(np.uint8), connectivity=4)
    fill = stats[:, cv2.CC_STAT_AREA] < min_pixels
    fill[[0, labels[0, 0]]] = False
    return mask | fill[labels][1:-1, 1:-1]


def _find_pen(rgb: np.ndarray, min_pixels: int, reach: int) -> np.ndarray:
    """Ink strokes and black borders, `bool [h, w]`; `reach` in pixels includes the pale rim."""
    # Opening removes what is thinner than a stroke: pigment, margin dye, colour fringes that scanners add to edges.
    strokes = cv2.morphologyEx(pixel_colours.ink(rgb).astype(np.uint8), cv2.MORPH_OPEN, _disc(2))
    return cv2.dilate(_remove_small(strokes > 0, min_pixels).astype(np.uint8), _disc(reach)) > 0


def _find_folds(rgb: np.ndarray, tissue: np.ndarray, min_pixels: int) -> np.ndarray:
    """Folds within the tissue, `bool [h, w]`."""
    if not tissue.any():
        return tissue
    _, saturation, value = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV).astype(np.float32) / 255)
    excess = cv2.GaussianBlur(saturation - value, (0, 0), 1)
    dark = tissue & (excess > max(float(np.median(excess[tissue])) + _FOLD_ABOVE_MEDIAN, _MIN_FOLD))
    opened = cv2.morphologyEx(dark.astype(np.uint8), cv2.MORPH_OPEN, _disc(1))
    closed = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, _disc(2)) > 0
    return _remove_small(closed & tissue, min_pixels)


def _find_blur(slide: Slide, tissue: np.ndarray, mask_mpp: float, sharpness: float) -> np.ndarray:
    """Tissue that lacks fine detail, `bool [h, w]`; reads blocks with tissue at about 2 µm/px."""
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
        half = cv2.resize(smooth, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        smoother = cv2.GaussianBlur(half, (0, 0), _COARSE_SIGMA / 2)
        for energy, detail in ((fine, grey - smooth), (coarse, half - smoother)):
            energy[part] = cv2.resize(cv2.multiply(detail, detail), (w, h), interpolation=cv2.INTER_AREA)

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(measure, itertools.product(range(0, height, _BLOCK), range(0, width, _BLOCK))))
    window = (max(1, round(_BLUR_WINDOW_UM / mask_mpp)),) * 2
    weight = np.maximum(cv2.blur(tissue.astype(np.float32), window), 1e-6)
    fine, coarse = (cv2.blur(energy * tissue, window) / weight for energy in (fine, coarse))
    blurred = tissue & (coarse > _MIN_DETAIL) & (np.maximum(fine - _NOISE, 0) < sharpness * coarse)
    # A window that reaches into sharp tissue counts as sharp, so grow the blurred area back by that margin.
    return tissue & (cv2.dilate(blurred.astype(np.uint8), _disc(round(0.4 * window[0]))) > 0)


def _disc(radius: int) -> np.ndarray:
    """A disc-shaped structuring element."""
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
