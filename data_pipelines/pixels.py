"""Bytes of an image file to RGB pixels, and pixels to another size."""

import cv2
import imagecodecs
import numpy as np

_PNG = b"\x89PNG\r\n\x1a\n"


class DecodeError(ValueError):
    """Stored bytes that are no image."""


def decode(data: bytes) -> np.ndarray:
    """PNG, JPEG, … bytes -> `uint8 [h, w, 3]`, RGB.

    Raises:
      DecodeError: the bytes cannot be decoded.
    """
    if data.startswith(_PNG) and b"eXIf" not in data:  # two thirds of OpenCV's time; only that turns photographs
        try:
            pixels = imagecodecs.png_decode(data)
        except (RuntimeError, ValueError) as error:
            raise DecodeError(f"cannot decode {len(data)} bytes: {error}") from error
        if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3:
            return pixels
    # OpenCV asserts that there is anything at all.
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise DecodeError(f"cannot decode {len(data)} bytes")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes to `[size, size, 3]`, aspect ratio ignored as the paper's 224×224 input does."""
    return resize_to(image, size, size)


def resize_to(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resizes to `[height, width, 3]`: averaged over areas where both sides shrink, interpolated where one grows."""
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
