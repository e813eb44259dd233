"""What an unusual image may be, by its pixels alone: blank, ink, or another stain than H&E.

Each rule needs a share of pixels that was rare on H&E images, and more than nearly all validation images of the run
have. A run that was trained on blank tiles or on brown stains does not report them.
"""

from collections.abc import Mapping

import cv2
import numpy as np

from histojax.slides import pixel_colours

# Measure -> the least share that is reported, and the words for it. Ink and blue stains have the same colours.
RULES = {
    "blank": (0.95, "almost no tissue"),
    "ink": (0.2, "pen, black, or a blue or green stain"),
    "brown": (0.3, "a brown stain, not H&E"),
}
_MIN_SATURATION = 18  # of 255, as for the tissue of slides: less is glass, unless it is dark
_DARK = 128  # of 255


def measure(rgb: np.ndarray) -> dict[str, float]:
    """Measure an image `u8 [h, w, 3]`.

    Returns:
      `blank`: share of pixels that are pale and without colour. `ink`: share of pixels with colours of ink. `brown`:
      share of brown among the pixels that are not blank; 0 if there are hardly any.
    """
    saturation = cv2.medianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1], 3)
    tissue = (saturation > _MIN_SATURATION) | (rgb.max(axis=2) < _DARK)
    blank = 1 - float(tissue.mean())
    brown = 0.0 if blank > RULES["blank"][0] else float(pixel_colours.brown(rgb)[tissue].mean())
    return {"blank": blank, "ink": float(pixel_colours.ink(rgb).mean()), "brown": brown}


def flags(measured: Mapping[str, float], usual: Mapping[str, float]) -> list[str]:
    """Say what an image may be.

    Args:
      measured: as `measure` returns it.
      usual: of each measure, what validation images seldom exceed.
    """
    return [words for name, (least, words) in RULES.items() if measured[name] > max(least, usual[name])]
