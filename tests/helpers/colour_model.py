"""A model without a network: its probabilities are fractions of an image's colours, weighted by corner."""

from collections.abc import Iterable, Iterator

import numpy as np

from data_pipelines.stain import StainNormalizer
from histojax.inference.model_input import ModelInput


class ColourModel:
    """Has the interface of a `Predictor`; `num_predicted` counts images.

    One corner weighs more than the others, so that flips and turns change the probabilities.
    """

    def __init__(
        self, *, batch_size: int = 4, image_size: int = 8, labels: bool = False, weight: float = 1.0,
        stain: StainNormalizer | None = None,
    ):  # fmt: skip
        self.classes: tuple[str, ...] = ("red", "green", "blue")
        self.decision: dict[str, float] | None = None
        self.temperatures: list[float] | None = None
        self.thresholds = {"red": 0.2, "green": 0.4, "blue": 0.6} if labels else None
        self.batch_size, self.image_size = batch_size, image_size
        self.input = ModelInput(image_size, stain)
        self.digest = f"colours-{weight}"
        self.magnification = ""
        self.num_predicted = 0
        self._weight = weight

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the probabilities of each batch; like a `Predictor`, take up to two batches ahead."""
        pending: list[np.ndarray] = []
        for images in batches:
            assert images.shape[1:] == (self.image_size, self.image_size, 3)
            assert 0 < len(images) <= self.batch_size
            assert images.dtype == np.uint8
            self.num_predicted += len(images)
            pending.append(self.probabilities(images))
            if len(pending) > 2:
                yield pending.pop(0)
        yield from pending

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return probabilities `f32 [b, 3]` of images `u8 [b, s, s, 3]`."""
        half = self.image_size // 2
        x = images.astype(np.float64)
        sums = 1 + x.sum((1, 2)) + self._weight * x[:, :half, : half // 2].sum((1, 2))
        return (sums / sums.sum(1, keepdims=True)).astype(np.float32)
