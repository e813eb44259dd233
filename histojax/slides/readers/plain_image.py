"""Plain images as slides with one level, held in memory."""

import io
import pathlib
import warnings

import numpy as np
import PIL
from PIL import Image, ImageOps

from data_pipelines.depth import describe_fault
from histojax.slides.readers.backend import Level, SlideError, on_white

_ORIENTATION = 0x0112
_COLOR_MODES = ("RGB", "RGBA", "P", "PA")


class PlainImage:
    """A PNG, JPEG, JPEG 2000 or similar file, held in memory.

    Raises:
      SlideError: the file is damaged, too large, or not 8-bit RGB.
    """

    stated_mpp: tuple[float, float] | None = None
    mpp_source = ""
    bounds: tuple[int, int, int, int] | None = None

    def __init__(self, path: pathlib.Path) -> None:
        data = path.read_bytes()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(data)) as image:
                    orientation = image.getexif().get(_ORIENTATION, 1)
                    fault = describe_fault(image, data)
                    if not fault and image.mode not in _COLOR_MODES:
                        fault = f"a {image.format} image of mode {image.mode}: greyscale or not RGB"
                    if fault:
                        raise SlideError(f"is {fault}; slides must be one picture of 8-bit RGB: convert it")
                    has_alpha = image.mode in ("RGBA", "PA") or "transparency" in image.info
                    upright = ImageOps.exif_transpose(image)
                    self._pixels = on_white(np.asarray(upright.convert("RGBA" if has_alpha else "RGB")))
                    file_format = image.format
        except SlideError:
            raise
        except Image.DecompressionBombError as error:
            raise SlideError("a plain image of more than 178 million pixels: convert it to a pyramidal TIFF") from error
        except Image.UnidentifiedImageError as error:
            raise SlideError("is not a slide or image that OpenSlide, tifffile or Pillow can read") from error
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise SlideError(f"damaged or truncated ({error}): copy it again") from error
        rotated = f", rotated upright by its EXIF orientation {orientation}" if orientation != 1 else ""
        self.reader = f"Pillow {PIL.__version__} ({file_format}{rotated})"
        self.levels: tuple[Level, ...] = (Level(self._pixels.shape[1], self._pixels.shape[0], 1.0),)

    def region(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """See `Backend`."""
        return self._pixels[y : y + height, x : x + width].copy()

    def close(self) -> None:
        """See `Backend`."""
