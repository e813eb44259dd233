"""Which pixels of an H&E image are ink or another stain, by the colours that they absorb; needs no slide reader."""

import cv2
import numpy as np

OPTICAL_DENSITY = np.log(np.float32(255) / np.maximum(np.arange(256, dtype=np.float32), 1))  # by grey level
_BROWN_RATIO, _MIN_BROWN = 1.25, 0.25  # absorption of blue: relative to that of green, and at least


def ink(rgb: np.ndarray) -> np.ndarray:
    """Find pixels with the colours of ink, `bool [h, w]`, in an image `u8 [h, w, 3]`.

    Hematoxylin and eosin absorb green most (Ruifrok & Johnston 2001). Pixels that absorb red more are blue or green
    ink. Pixels that absorb all colours equally and strongly are black. Pixels that absorb green and blue equally but no
    red are red ink.
    """
    red, green, blue = cv2.split(OPTICAL_DENSITY[rgb])
    lowest, highest = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
    blue_or_green = (red > 1.25 * green) & (red > 0.25) | (red > green) & (red > 1.2)  # on glass, on tissue
    black = (lowest > 0.9) & (lowest > 0.75 * highest)
    red_ink = (green > 1.0) & (blue > 0.7 * green) & (red < 0.25 * green)
    found: np.ndarray = blue_or_green | black | red_ink
    return found


def brown(rgb: np.ndarray) -> np.ndarray:
    """Find pixels that absorb blue most, `bool [h, w]`, in an image `u8 [h, w, 3]`: those of diaminobenzidine (DAB)."""
    red, green, blue = cv2.split(OPTICAL_DENSITY[rgb])
    found: np.ndarray = (blue > _BROWN_RATIO * green) & (blue > red) & (blue > _MIN_BROWN)
    return found
