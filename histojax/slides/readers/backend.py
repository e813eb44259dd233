"""What the readers of a slide's file have in common: levels, the errors, transparency."""

import dataclasses
import importlib
from typing import Any, Protocol

import numpy as np

from histojax.core.errors import RunError

CACHE_BYTES = 128 << 20  # a row of tiles of the widest slides, so that a row of reads decodes each tile once


class SlideError(RunError):
    """A slide that cannot be read; the message names the file, the reason and the remedy."""


@dataclasses.dataclass(frozen=True)
class Level:
    """An image of a slide's pyramid, in its own pixels; `downsample`: level-0 pixels in one of them."""

    width: int
    height: int
    downsample: float


class Backend(Protocol):
    """Reads rectangles of the levels of one file; may be used by several threads.

    Attributes:
      reader: what reads the file, in words.
      levels: the finest first, whose downsample is 1.
      stated_mpp: µm per level-0 pixel in x and y as the file says, unchecked; None: it says nothing.
      mpp_source: where it says so, in words.
    """

    reader: str
    levels: tuple[Level, ...]
    stated_mpp: tuple[float, float] | None
    mpp_source: str

    def region(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """A rectangle `uint8 [height, width, 3]` inside a level, in its pixels; raises SlideError."""

    def close(self) -> None:
        """Frees the file."""


def package(name: str) -> Any:
    """An optional package by name; raises SlideError that says how to install it."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: openslide-python without OpenSlide's library
        message = f"slides need the package {name}, which does not load ({error}): pip install 'histojax[slides]'"
        raise SlideError(message) from error


def on_white(pixels: np.ndarray, *, premultiplied: bool = False) -> np.ndarray:
    """`uint8 [h, w, 3 or 4]` -> `uint8 [h, w, 3]`; what is transparent becomes white."""
    if pixels.shape[2] == 3:
        return pixels
    rgb, alpha = np.ascontiguousarray(pixels[..., :3]), pixels[..., 3]
    if alpha.min() == 255:
        return rgb
    clear = alpha < 255
    opacity = alpha[clear].astype(np.uint16)[:, None]
    colour = rgb[clear].astype(np.uint16) * (255 if premultiplied else opacity)
    rgb[clear] = np.minimum((colour + 255 * (255 - opacity) + 127) // 255, 255)
    return rgb
