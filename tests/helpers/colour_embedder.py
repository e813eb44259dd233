"""An embedder without a network: the features are an image's mean colours."""

from collections.abc import Iterable, Iterator

import numpy as np

from histojax.inference.model_input import ModelInput


class ColourEmbedder:
    """Has the interface of an `Embedder`; `num_embedded` counts images. It breaks off after `killed_after` batches."""

    layer, width, digest = "pooled", 3, "colours"

    def __init__(self, *, batch_size: int = 4, image_size: int = 8, killed_after: int = 10**9):
        self.batch_size, self.image_size = batch_size, image_size
        self.input = ModelInput(image_size)
        self.metadata = {"model": "colours", "layer": "pooled", "image_size": image_size}
        self.num_embedded, self.killed_after = 0, killed_after

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the features of each batch; like an `Embedder`, take up to two batches ahead."""
        pending: list[np.ndarray] = []
        for images in batches:
            self.num_embedded += len(images)
            pending.append(images.mean((1, 2), dtype=np.float32))
            if len(pending) > 2:
                if self.killed_after == 0:
                    raise KeyboardInterrupt
                self.killed_after -= 1
                yield pending.pop(0)
        yield from pending
