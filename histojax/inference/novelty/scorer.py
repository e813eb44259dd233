"""How unlike its training images a model finds other images, batch by batch."""

import collections
import logging
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from histojax.evaluation.novelty import COLUMNS
from histojax.inference.embed.embedder import Embedder
from histojax.inference.novelty import memory
from histojax.inference.predictor import Predictor
from histojax.training import checkpoint

_log = logging.getLogger(__name__)


class NoveltyScorer:
    """What a run remembers of its training images, with the model that computes features.

    Attributes:
      columns: names of the values of a row.
      digest: identifies the file of the run.
      description: one sentence on where the distances come from.
    """

    columns = COLUMNS

    def __init__(self, remembered: memory.Memory, embedder: Embedder, digest: str):
        self._memory, self._embedder, self.digest = remembered, embedder, digest
        facts = remembered.facts
        units = "" if facts["unit"] == "image" else f" of {facts['units']} {facts['unit']}s"
        self.description = (
            f"distances from {facts['train_images']} training images, layer {facts['layer']}; quantiles among "
            f"{facts['val_images']} validation images{units}"
        )

    @staticmethod
    def file_of(predictor: Predictor) -> pathlib.Path | None:
        """The file that `histojax novelty` wrote beside a model's checkpoint; None if there is none."""
        folder = checkpoint.run_of(predictor.path)
        path = folder / memory.FILE if folder else None
        return path if path and path.is_file() else None

    @classmethod
    def of_predictor(cls, predictor: Predictor) -> "NoveltyScorer | None":
        """Load the file that `histojax novelty` wrote beside a model's checkpoint; None if there is none.

        A file of another checkpoint is not used, with a warning.

        Raises:
          RunError: the file is damaged.
        """
        path = cls.file_of(predictor)
        if path is None:
            return None
        remembered = memory.read(path)
        if remembered.facts["checkpoint"] != predictor.digest:
            _log.warning(
                "warning: %s belongs to another checkpoint and is not used; write it again: histojax novelty %s",
                path, path.parent,
            )  # fmt: skip
            return None
        layer, batch_size = remembered.facts["layer"], predictor.batch_size
        embedder = Embedder.of_model(predictor.trained, str(predictor.path), layer=layer, batch_size=batch_size)
        scorer = cls(remembered, embedder, memory.digest(path))
        _log.info("novelty: %s", scorer.description)
        return scorer

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[list[memory.Row]]:
        """Yield the rows of each batch `u8 [b, s, s, 3]`, in order; b is at most the predictor's batch size."""
        taken: collections.deque[np.ndarray] = collections.deque()

        def kept() -> Iterator[np.ndarray]:
            for images in batches:
                taken.append(images)
                yield images

        for features in self._embedder.stream(kept()):
            yield [self._memory.row(*pair) for pair in zip(features, taken.popleft(), strict=True)]
