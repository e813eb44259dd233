"""Shifts of an image with a physical meaning, as pure functions of pixels, and the strengths that are measured.

All take and return `u8 [h, w, 3]`, RGB, at the resolution of the file; the model's own resizing follows. Every shift at
strength 0 returns the image as it is. Pixel values count as light, as in `data_pipelines.stain`.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from data_pipelines import stain
from data_pipelines.stain import Stains
from histojax.core.errors import RunError
from histojax.core.suggestions import did_you_mean

Image = stain.Image
_QUALITIES = ("none", "95", "75", "50", "30")  # of JPEG, at equal distances on the axis
SOURCES_FILE = pathlib.Path(__file__).parent / "stain_sources.json"


def towards_stains(image: Image, own: Stains | None, source: Stains, strength: float) -> Image:
    """Move the stains of an image towards those of a source.

    Vectors and strengths are interpolated; what the two stains do not explain stays as it is.

    Args:
      image: `u8 [h, w, 3]`.
      own: stains of the image; None: it shows too little tissue, and is returned as it is.
      source: stains of the source.
      strength: 0: the image's own stains; 1: the source's.
    """
    if strength == 0 or own is None:
        return image
    vectors = (1 - strength) * own.vectors + strength * source.vectors
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    wanted = Stains(vectors, (1 - strength) * own.strength + strength * source.strength)
    return stain.restain(image, own, wanted, keep_rest=True)


def brighten(image: Image, fraction: float) -> Image:
    """Multiply all light by 1 + `fraction`; what exceeds white is cut off, as in a camera."""
    return _scaled(image, (1 + fraction,) * 3)


def warm(image: Image, fraction: float) -> Image:
    """Move the white point: red light times 1 + `fraction`, blue light times 1 − `fraction`."""
    return _scaled(image, (1 + fraction, 1.0, 1 - fraction))


def blur(image: Image, sigma_x: float, sigma_y: float) -> Image:
    """Blur by a Gaussian whose standard deviations are given in pixels."""
    if sigma_x == 0 and sigma_y == 0:
        return image
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_x, sigmaY=sigma_y, borderType=cv2.BORDER_REFLECT_101))


def defocus(image: Image, um: float, mpp: float | None) -> Image:
    """Blur by a Gaussian whose standard deviation is `um` micrometres of tissue.

    Args:
      image: `u8 [h, w, 3]`.
      um: standard deviation in µm. It is not the distance of the objective from focus.
      mpp: µm per pixel.

    Raises:
      ValueError: µm per pixel is unknown.
    """
    if not mpp or not (mpp > 0 and math.isfinite(mpp)):
        raise ValueError(f"a blur in µm needs the µm per pixel of the image, not {mpp}")
    return blur(image, um / mpp, um / mpp)


def defocus_input(image: Image, pixels: float, size: int) -> Image:
    """Blur by a Gaussian whose standard deviation is `pixels` of the model's input of `size` × `size` pixels."""
    return blur(image, pixels * image.shape[1] / size, pixels * image.shape[0] / size)


def compress(image: Image, quality: int) -> Image:
    """Store the image as JPEG of a quality up to 100 and read it, by OpenCV: colour at half the resolution."""
    stored = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.cvtColor(cv2.imdecode(stored, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))


def rescale(image: Image, factor: float) -> Image:
    """Show the image as a scanner with `factor` times the µm per pixel would, about its centre.

    Above 1, tissue shrinks and the border is filled by reflection; below 1, the centre fills the image.
    """
    return image if factor == 1 else _warp(image, cv2.getRotationMatrix2D(_centre(image), 0, 1 / factor))


def rotate(image: Image, degrees: float) -> Image:
    """Rotate counterclockwise about the centre; borders are filled by reflection."""
    return image if degrees == 0 else _warp(image, cv2.getRotationMatrix2D(_centre(image), degrees, 1))


def translate(image: Image, fraction: float) -> Image:
    """Move the image right and down by a fraction of its sides, in whole pixels; borders are filled by reflection."""
    height, width = image.shape[:2]
    down, right = round(fraction * height), round(fraction * width)
    padded = cv2.copyMakeBorder(image, down, 0, right, 0, cv2.BORDER_REFLECT_101)
    return np.asarray(padded[:height, :width])


def add_noise(image: Image, sd: float, key: int) -> Image:
    """Add Gaussian noise to every pixel and channel.

    Args:
      image: `u8 [h, w, 3]`.
      sd: standard deviation in grey levels.
      key: of the random numbers; the same at every strength, so that only the strength differs.
    """
    if sd == 0:
        return image
    noise = np.random.default_rng(key).standard_normal(image.shape, np.float32)
    return np.clip(np.rint(image + sd * noise), 0, 255).astype(np.uint8)


def _scaled(image: Image, gains: Sequence[float]) -> Image:
    levels = np.arange(256)[:, None] * np.asarray(gains)
    return np.asarray(cv2.LUT(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8)[None]))


def _centre(image: Image) -> tuple[float, float]:
    return ((image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2)


def _warp(image: Image, matrix: np.ndarray) -> Image:
    size = (image.shape[1], image.shape[0])
    return np.asarray(cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101))


# --- What is measured ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ImageFacts:
    """What a shift must know of an image besides its pixels.

    Attributes:
      key: of its random numbers: the same for equal pixels.
      stains: its own; None: too little tissue, or not needed.
      mpp: µm per pixel; None: unknown.
    """

    key: int
    stains: Stains | None = None
    mpp: float | None = None


@dataclasses.dataclass(frozen=True)
class Shift:
    """A shift at increasing strengths.

    Attributes:
      name: of its files, such as `stain_breakhis`.
      kind: shifts of one kind count once in the mean over all: `stain` for every source.
      title: for readers.
      unit: of the strengths, for readers.
      strengths: in order; one of them is 0.
      labels: of the strengths, for readers.
      parameters: what else the pixels depend on; equal parameters and strengths mean equal pixels.
      apply: (image, strength, facts) -> image.
    """

    name: str
    kind: str
    title: str
    unit: str
    strengths: tuple[float, ...]
    labels: tuple[str, ...]
    parameters: dict[str, Any]
    apply: Callable[[Image, float, ImageFacts], Image]

    @property
    def definition(self) -> dict[str, Any]:
        """What identifies the shift, as JSON values."""
        return {"name": self.name, "strengths": list(self.strengths), **self.parameters}


def stain_sources() -> dict[str, dict[str, Any]]:
    """Read the sources: name -> `vectors`, `strength`, and where they come from."""
    sources: dict[str, dict[str, Any]] = json.loads(SOURCES_FILE.read_text(encoding="utf-8"))["sources"]
    return sources


def catalogue(*, microns: bool, image_size: int) -> dict[str, Shift]:
    """List all shifts by name.

    Args:
      microns: whether µm per pixel is known of every image; else defocus is in pixels of the model's input.
      image_size: side of the model's input in pixels.
    """
    found = [_stain_shift(name, source) for name, source in stain_sources().items()]
    found += [
        _shift("brightness", "brightness", "change of light", (-0.2, -0.1, 0, 0.1, 0.2), _percent, brighten),
        _shift("white_point", "white point", "red + x, blue − x", (-0.1, -0.05, 0, 0.05, 0.1), _percent, warm),
        _defocus_in_um() if microns else _defocus_in_pixels(image_size),
        dataclasses.replace(
            _shift("jpeg", "JPEG", "quality", tuple(range(len(_QUALITIES))), _plain,
                   lambda image, x: compress(image, int(_QUALITIES[int(x)]))),
            labels=_QUALITIES, parameters={"qualities": list(_QUALITIES)},
        ),
        _shift("scale", "scale", "change of µm/px", (-0.2, -0.1, 0, 0.125, 0.25), _percent,
               lambda image, x: rescale(image, 1 + x)),
        Shift("noise", "noise", "noise", "grey levels, standard deviation", *_labelled((0, 4, 8, 16, 32)), {},
              lambda image, x, facts: add_noise(image, x, facts.key)),
        _shift("shift", "shift", "fraction of the sides", (0, 0.05, 0.1, 0.2, 0.3), _percent, translate),
        _shift("rotation", "rotation", "degrees", (0, 5, 15, 30, 45), _plain, rotate),
    ]  # fmt: skip
    return {shift.name: shift for shift in found}


def choose(shifts: dict[str, Shift], names: Sequence[str]) -> list[Shift]:
    """Take shifts by name or kind, in the order of the catalogue; no name: all of them.

    Raises:
      RunError: an unknown name.
    """
    known = [*dict.fromkeys([*(shift.kind for shift in shifts.values()), *shifts])]
    for name in names:
        if name not in known:
            raise RunError(f"--shifts: {name} is not one of {', '.join(known)}{did_you_mean(name, known)}")
    return [shift for shift in shifts.values() if not names or {shift.name, shift.kind} & set(names)]


def _stain_shift(name: str, source: dict[str, Any]) -> Shift:
    wanted = Stains(np.array(source["vectors"]), np.array(source["strength"]))
    return Shift(
        f"stain_{name}", "stain", f"stains of {source['title']}", "0: own, 1: the source's",
        *_labelled((0, 0.25, 0.5, 0.75, 1)), {"vectors": source["vectors"], "strength": source["strength"]},
        lambda image, x, facts: towards_stains(image, facts.stains, wanted, x),
    )  # fmt: skip


def _shift(
    name: str, title: str, unit: str, strengths: tuple[float, ...], label: Callable[[float], str],
    function: Callable[[Image, float], Image],
) -> Shift:  # fmt: skip
    """Make a shift that needs only pixels; its kind is its name."""
    labels = tuple(map(label, strengths))
    return Shift(
        name, name, title, unit, strengths, labels, {}, lambda image, x, facts: function(image, x) if x else image
    )


def _defocus_in_um() -> Shift:
    return Shift(
        "defocus", "defocus", "defocus", "µm of tissue, standard deviation", *_labelled((0, 0.25, 0.5, 1, 2)),
        {"in": "µm"}, lambda image, x, facts: defocus(image, x, facts.mpp) if x else image,
    )  # fmt: skip


def _defocus_in_pixels(size: int) -> Shift:
    return Shift(
        "defocus", "defocus", "defocus", "pixels of the input, standard deviation", *_labelled((0, 0.5, 1, 2, 3)),
        {"in": f"pixels of an input of {size}"}, lambda image, x, facts: defocus_input(image, x, size),
    )  # fmt: skip


def _labelled(strengths: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[str, ...]]:
    return strengths, tuple(map(_plain, strengths))


def _plain(strength: float) -> str:
    return f"{strength:g}"


def _percent(strength: float) -> str:
    return f"{100 * strength:+g} %" if strength else "0"
