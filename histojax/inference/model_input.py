"""What a model sees of an image: its pixels at the model's size, in the colours that the model was trained on."""

import dataclasses

import numpy as np

from data_pipelines.pixels import resize
from data_pipelines.stain import StainNormalizer


@dataclasses.dataclass(frozen=True)
class ModelInput:
    """How images become a model's input.

    Attributes:
      size: height and width in pixels.
      stain: brings images to the colours that the model was trained on; None: they stay as they are.
    """

    size: int
    stain: StainNormalizer | None = None

    def of(self, image: np.ndarray) -> tuple[np.ndarray, bool]:
        """Resize and normalise an image, as training does.

        Args:
          image: `u8 [h, w, 3]`, RGB.

        Returns:
          The input `u8 [s, s, 3]`, and whether it is as the model expects it; False: it has too little tissue for
          the model's stain normalisation, and keeps its colours.
        """
        pixels = resize(image, self.size)
        return (pixels, True) if self.stain is None else self.stain.apply(pixels)
