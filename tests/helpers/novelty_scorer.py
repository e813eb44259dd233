"""A scorer without a network: an image is unlike the training images if it is dark."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from histojax.evaluation.novelty import COLUMNS, UNLIKE_TRAINING


class DarknessScorer:
    """Has the interface of a `NoveltyScorer`; like it, takes up to two batches ahead."""

    columns = COLUMNS

    def __init__(self, digest: str = "dark"):
        self.digest = digest

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[list[list[Any]]]:
        """Yield the rows of each batch."""
        pending: list[list[list[Any]]] = []
        for images in batches:
            darkness = (1 - images.mean((1, 2, 3), dtype=np.float64) / 255).tolist()
            pending.append([[d, float(d > 0.5), d, float(d > 0.5), UNLIKE_TRAINING * (d > 0.5)] for d in darkness])
            if len(pending) > 2:
                yield pending.pop(0)
        yield from pending
