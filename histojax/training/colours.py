"""The row "colour and texture alone" beside the results of a run."""

import importlib.util
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from data_pipelines.pixels import decode, resize
from data_pipelines.prepare import open_images
from data_pipelines.splits import Split
from histojax.core import extras
from histojax.data.sources import Dataset

_log = logging.getLogger(__name__)


def colour_baseline(
    dataset: Dataset, split: Split, table: pd.DataFrame, image_size: int, *, positive: str | None, **options: int
) -> dict[str, Any] | None:
    """Evaluate what colour and texture alone predict of the test images, at the size that the model sees.

    Images are measured once; later runs find their features below the user's folder of prepared data.

    Args:
      dataset: the images.
      split: their split.
      table: the model's predictions.
      image_size: height and width to which images are resized.
      positive: the positive class of two.
      **options: `n_resamples` and `seed` of the bootstrap.

    Returns:
      As `histojax.evaluation.colour.baseline.beside`. None: synthetic images, several labels per image, no training
      images of the run among these, or the packages of the extra `probe` are not installed.
    """
    train, test = split.indices("train"), split.indices("test")
    if dataset.multilabel or dataset.prepared.synthetic or len(np.unique(dataset.labels[train])) < 2:
        return None
    if any(importlib.util.find_spec(name) is None for name in extras.MODULES["probe"]):
        _log.info("no row of colour and texture alone; it needs: pip install 'histojax[probe]'")
        return None
    from histojax.evaluation.colour import baseline

    rows = table[table["split"] == "test"].set_index("image_id").loc[dataset.records.take(test).column("image_id")]
    features = _features(dataset, [*train, *test], image_size)
    return baseline.beside(
        rows.reset_index(),
        features[: len(train)],
        dataset.labels[train],
        features[len(train) :],
        positive=positive,
        **options,
    )


def _features(dataset: Dataset, positions: Sequence[int], image_size: int) -> np.ndarray:
    """Return the features of images, f32 [n, 96]."""
    from histojax.evaluation.colour import cache

    images = open_images(dataset.prepared.directory)

    def read(i: int) -> np.ndarray:
        return resize(decode(images[int(positions[i])]["image"]), image_size)

    keys = [f"{dataset.records[int(i)].pixel_hash} at {image_size}" for i in positions]
    return cache.of_images(keys, read)
