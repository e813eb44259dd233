"""Decoding of image files to RGB pixels, and resizing."""

import cv2
import imagecodecs
import numpy as np

from data_pipelines.errors import BadImageError

_PNG = b"\x89PNG\r\n\x1a\n"


def decode(data: bytes) -> np.ndarray:
    """Decode the bytes of a PNG, JPEG or other image file that OpenCV reads.

    Returns:
      Pixels, `uint8 [h, w, 3]`, RGB.

    Raises:
      BadImageError: the bytes cannot be decoded.
    """
    # imagecodecs takes two thirds of OpenCV's time, but only OpenCV rotates images as their EXIF data say.
    if data.startswith(_PNG) and b"eXIf" not in data:
        try:
            pixels = imagecodecs.png_decode(data)
        except (RuntimeError, ValueError) as error:
            raise BadImageError(f"cannot decode {len(data)} bytes: {error}") from error
        if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3:
            return pixels
    # OpenCV fails with an assertion on empty input.
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise BadImageError(f"cannot decode {len(data)} bytes")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize to `[size, size, 3]`; the aspect ratio is not kept, as in the paper's 224×224 input."""
    return resize_to(image, size, size)


def resize_to(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize to `[height, width, 3]`: average areas if neither side grows, else interpolate linearly.

    Returns:
      The image itself if it has that size, without a copy.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
