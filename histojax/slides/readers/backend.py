"""The interface of slide readers, with the error, pyramid levels and transparency that they share."""

import dataclasses
import importlib
from typing import Any, Protocol

import numpy as np

from histojax.core.errors import RunError

CACHE_BYTES = 128 << 20  # one row of tiles of the widest slides: reading along a row decodes each tile once


class SlideError(RunError):
    """An unreadable slide; the message names the file, the reason and the remedy."""


@dataclasses.dataclass(frozen=True)
class Level:
    """An image of a slide's pyramid.

    Attributes:
      width: in pixels of this level.
      height: in pixels of this level.
      downsample: level-0 pixels per pixel of this level, along one side.
    """

    width: int
    height: int
    downsample: float


class Backend(Protocol):
    """Reads rectangles from the levels of one file; safe to use from several threads.

    Attributes:
      reader: description of the library and format.
      levels: finest first, with a downsample of 1.
      stated_mpp: µm per level-0 pixel in x and y as stored in the file, unchecked; None if it stores none.
      mpp_source: description of where the file stores it.
      bounds: x, y, width and height in level-0 pixels of the part that was scanned, which QuPath shows as the whole
        slide; None if the file states none.
    """

    reader: str
    levels: tuple[Level, ...]
    stated_mpp: tuple[float, float] | None
    mpp_source: str
    bounds: tuple[int, int, int, int] | None

    def region(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Read a rectangle `uint8 [height, width, 3]` that lies within a level, in pixels of that level.

        Raises:
          SlideError: the file is damaged there.
        """

    def close(self) -> None:
        """Close the file."""


def package(name: str) -> Any:
    """Import an optional package.

    Raises:
      SlideError: it cannot be imported; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: openslide-python without the OpenSlide library
        raise SlideError(
            f"slides need {name}, which cannot be imported ({error}); install with: pip install 'histojax[slides]'"
        ) from error


def on_white(pixels: np.ndarray, *, premultiplied: bool = False) -> np.ndarray:
    """Blend pixels `uint8 [h, w, 3 or 4]` onto white, `uint8 [h, w, 3]`; `premultiplied`: colour is scaled by alpha."""
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
