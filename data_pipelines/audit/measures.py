"""Measurements of an image for an audit: size, colour, blank, pen, blur; and tests for outliers."""

import dataclasses
import pathlib

import cv2
import numpy as np

from data_pipelines.audit import hashes
from data_pipelines.errors import BadImageError
from data_pipelines.images import read_file, read_image

_COLOUR_SIDE = 256  # pixels of the longer side at which colours are measured
_BLANK_LEVELS, _BLANK_SHARE = 10, 0.05
_PEN_SHARE = 0.02
_FINE, _COARSE, _NOISE = 3, 9, 0.05  # pixels, pixels, squared grey levels
# The least sharp of 260 images of BreakHis and WSSS4LUAD has -2.3, and its JPEG at quality 50 -2.5; after a Gaussian
# blur of 1.5 pixels or more, all of them are below -2.7.
_MIN_SHARPNESS = -2.6
_APART = 3.5
_MIN_VALUES = 10  # fewer values do not give a spread

RULES = {
    "blank": f"less than {_BLANK_SHARE:.0%} of the picture, averaged to 64 × 64, differs from its median grey by more "
    f"than {_BLANK_LEVELS} of 255 levels",
    "pen": f"at least {_PEN_SHARE:.0%} of the picture absorbs light as ink does and H&E does not (blue, green, black "
    "or red ink by ratios of optical densities), in strokes rather than specks",
    "blurred": f"the energy of detail below {_FINE} pixels, divided by that of detail of {_FINE} to {_COARSE} pixels, "
    f"is less than exp({_MIN_SHARPNESS})",
    "colour": "the mean of L*, a* or b* (CIELAB) is more than "
    f"{_APART} robust standard deviations (1.4826 × median absolute deviation) from the median",
}


@dataclasses.dataclass(frozen=True)
class Measures:
    """The measurements of one readable image.

    Attributes:
      height: pixels.
      width: pixels.
      mode: file format and colour type, such as `PNG RGB`.
      pixel_hash: as in `data_pipelines.images`.
      grey: `uint8 [64, 64]`, for `hashes`.
      lightness: mean L* (CIELAB, D65) of the reduced image.
      red_green: mean a* of the reduced image.
      yellow_blue: mean b* of the reduced image.
      lightness_sd: standard deviation of L*.
      pen_share: fraction of pixels that look like ink.
      sharpness: logarithm of the energy of the finest detail over that of coarser detail.
      blank: whether the image is blank by `RULES`.
    """

    height: int
    width: int
    mode: str
    pixel_hash: str
    grey: np.ndarray
    lightness: float
    red_green: float
    yellow_blue: float
    lightness_sd: float
    pen_share: float
    sharpness: float
    blank: bool

    @property
    def pen(self) -> bool:
        """Whether the image is marked by pen, by `RULES`."""
        return self.pen_share >= _PEN_SHARE

    @property
    def blurred(self) -> bool:
        """Whether the image lacks fine detail, by `RULES`."""
        return self.sharpness < _MIN_SHARPNESS


def measure(path: pathlib.Path) -> Measures | str:
    """Measure an image; return the reason if it cannot be used."""
    try:
        data = read_file(path)
        checked, pixels = read_image(data)
        rgb = np.ascontiguousarray(pixels)
    except BadImageError as error:
        return str(error)
    kind = "PNG" if data.startswith(b"\x89PNG") else "JPEG" if data.startswith(b"\xff\xd8") else "TIFF"
    grey = hashes.grey_of(rgb)
    small = _reduced(rgb)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3)
    lightness, red_green, yellow_blue = lab.mean(axis=0).tolist()
    return Measures(
        height=checked.height,
        width=checked.width,
        mode=f"{kind} {'RGBA, opaque' if checked.note else 'RGB'}",
        pixel_hash=checked.pixel_hash,
        grey=grey,
        lightness=lightness,
        red_green=red_green,
        yellow_blue=yellow_blue,
        lightness_sd=float(lab[:, 0].std()),
        pen_share=_pen_share(small),
        sharpness=_sharpness(rgb),
        blank=is_blank(grey),
    )


def is_blank(grey: np.ndarray) -> bool:
    """Return whether a picture, `uint8 [64, 64]`, is blank by `RULES`."""
    apart = np.abs(grey.astype(np.float32) - np.median(grey)) > _BLANK_LEVELS
    return bool(apart.mean() < _BLANK_SHARE)


def robust_z(values: np.ndarray) -> np.ndarray:
    """Return the values' distances from the median in robust standard deviations (Iglewicz & Hoaglin 1993).

    All are zero for fewer than ten values, or if more than half are equal: the spread is then unknown.
    """
    centre = np.median(values) if len(values) else 0.0
    spread = 1.4826 * np.median(np.abs(values - centre)) if len(values) >= _MIN_VALUES else 0.0
    return (values - centre) / spread if spread > 0 else np.zeros(len(values))


def stands_apart(z: np.ndarray) -> np.ndarray:
    """Return whether distances of `robust_z` mean an outlier, `bool`."""
    return np.abs(z) > _APART


def thumbnail(rgb: np.ndarray, side: int) -> bytes:
    """Encode a picture, `uint8 [h, w, 3]`, as a JPEG whose longer side has at most `side` pixels."""
    success, data = cv2.imencode(".jpg", _reduced(rgb, side)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    if not success:
        raise OSError(f"could not encode a thumbnail of {rgb.shape[1]}×{rgb.shape[0]} pixels")
    return bytes(data)


def _reduced(rgb: np.ndarray, side: int = _COLOUR_SIDE) -> np.ndarray:
    """Average the picture over squares of pixels so that its longer side is about `side`."""
    height, width = rgb.shape[:2]
    step = max(1, -(-max(height, width) // side))
    size = (max(1, width // step), max(1, height // step))
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)


def _pen_share(small: np.ndarray) -> float:
    """Return the fraction of pixels that are ink by their optical densities.

    The rules are those of `histojax.slides.tissue`, but on decadic densities: an image is small, usually all tissue,
    and flagged as a whole, so only strong ink counts.
    """
    red, green, blue = cv2.split(-np.log10((small.astype(np.float32) + 1) / 256))
    lowest, highest = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
    blue_or_green = (red > 1.25 * green) & (red > 0.25) | (red > green) & (red > 1.2)
    black = (lowest > 0.9) & (lowest > 0.75 * highest)
    red_ink = (green > 1.0) & (blue > 0.7 * green) & (red < 0.25 * green)
    stroke = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    return float(cv2.morphologyEx((blue_or_green | black | red_ink).astype(np.uint8), cv2.MORPH_OPEN, stroke).mean())


def _sharpness(rgb: np.ndarray) -> float:
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine = cv2.blur(grey, (_FINE, _FINE))
    coarse = cv2.blur(fine, (_COARSE, _COARSE))
    fine_energy, coarse_energy = (cv2.norm(*pair) ** 2 / grey.size + _NOISE for pair in ((grey, fine), (fine, coarse)))
    return float(np.log(fine_energy / coarse_energy))
