"""A model without a network: what it says of an image are shares of its colours, by corner, so that turning matters."""

from collections.abc import Iterable, Iterator

import numpy as np


class ColourModel:
    """Asked as a `Predictor` is; `asked` counts images."""

    def __init__(self, *, batch_size: int = 4, image_size: int = 8, labels: bool = False, weight: float = 1.0):
        self.classes: tuple[str, ...] = ("red", "green", "blue")
        self.decision: dict[str, float] | None = None
        self.temperatures: list[float] | None = None
        self.thresholds = {"red": 0.2, "green": 0.4, "blue": 0.6} if labels else None
        self.batch_size, self.image_size = batch_size, image_size
        self.digest = f"colours-{weight}"
        self.asked = 0
        self._weight = weight

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        under_way: list[np.ndarray] = []
        for images in batches:
            assert images.shape[1:] == (self.image_size, self.image_size, 3)
            assert 0 < len(images) <= self.batch_size
            assert images.dtype == np.uint8
            self.asked += len(images)
            under_way.append(self.say(images))
            if len(under_way) > 2:
                yield under_way.pop(0)
        yield from under_way

    def say(self, images: np.ndarray) -> np.ndarray:
        half = self.image_size // 2
        x = images.astype(np.float64)
        sums = 1 + x.sum((1, 2)) + self._weight * x[:, :half, : half // 2].sum((1, 2))
        return (sums / sums.sum(1, keepdims=True)).astype(np.float32)
