"""Compute what a run remembers of its training images, with the run's own images, split and preprocessing."""

import logging
import pathlib
from collections.abc import Iterator

import numpy as np

from data_pipelines.splits import Split
from histojax.core import plugins
from histojax.core.errors import RunError
from histojax.data.pipeline import eval_batches
from histojax.data.sources import Dataset, open_dataset
from histojax.evaluation import bootstrap
from histojax.inference.embed.embedder import POOLED, Embedder
from histojax.inference.novelty import memory, pixel_rules
from histojax.storage import places
from histojax.training import build, checkpoint, loading

_log = logging.getLogger(__name__)
_MAX_IMAGES = 10_000  # per side; more would change the distances little


def fit(run: pathlib.Path, *, layer: str = POOLED, data_root: str = "") -> tuple[pathlib.Path, memory.Memory]:
    """Compute the distances of a run's validation images from its training images, and write `memory.FILE`.

    Args:
      run: a work directory, a series of checkpoints, or one checkpoint in a work directory.
      layer: the features, as for `Embedder`.
      data_root: where the run's images are now; empty: where they were.

    Returns:
      The file, and its content.

    Raises:
      RunError: the checkpoint is missing, damaged or not in a work directory; the images are not the run's; there are
        too few; or the model has no such layer.
      DataError: the images are missing or damaged.
    """
    trained = loading.load(run)
    folder = checkpoint.run_of(trained.path)
    if folder is None:
        raise RunError(f"{trained.path} is not in a work directory: name the work directory of the run")
    plugins.load(trained.config.plugins)
    dataset, split = _open(trained, data_root)
    spec = build.loader_spec(trained.config, trained.layout, training=False, stain=trained.stain)
    embedder = Embedder.of_model(trained, str(run), layer=layer, batch_size=spec.batch_size)
    sides = {side: _chosen(split, side) for side in ("train", "val")}
    measured: list[dict[str, float]] = []

    def features(side: str) -> np.ndarray:
        _log.info("features of %d %s images", len(sides[side]), side)
        rows = list(embedder.stream(pixels(side)))
        return np.concatenate(rows)[: len(sides[side])] if rows else np.zeros((0, embedder.width), np.float32)

    def pixels(side: str) -> Iterator[np.ndarray]:
        for batch in eval_batches(dataset, sides[side], spec):
            if side == "val":
                measured.extend(pixel_rules.measure(image) for image in batch["image"][batch["mask"]])
            yield batch["image"]

    val_rows = dataset.records.take(sides["val"])
    made = memory.build(
        features("train"),
        [str(label) for label in dataset.labels[sides["train"]].tolist()],
        features("val"),
        bootstrap.units(*(val_rows.column(name) for name in ("patient_id", "slide_id", "source_id"))),
        measured,
        {"checkpoint": embedder.digest, "layer": layer, "image_size": embedder.image_size},
    )
    path = folder / memory.FILE
    made.write(path)
    return path, made


def _open(trained: loading.LoadedModel, data_root: str) -> tuple[Dataset, Split]:
    """Open the run's images and place its split on them."""
    config, saved = trained.config, Split.from_json(trained.meta["split"])
    if data_root:
        config.data.root = places.absolute(data_root)
    elif config.data.root and not places.exists(config.data.root):
        raise RunError(f"{config.data.root}: the run's images are not there; name their folder with --data_root=PATH")
    dataset = open_dataset(config.data, trained.meta["classes"])
    split = dataset.place(saved)
    if split.hash != saved.hash:
        raise RunError(
            f"{config.data.root}: these are not the images of the run, or some are missing; name the folder of the "
            "same images with --data_root=PATH"
        )
    return dataset, split


def _chosen(split: Split, side: str) -> np.ndarray:
    """Return positions of at most `_MAX_IMAGES` images of a side, chosen at random, in order."""
    indices = split.indices(side)
    if len(indices) <= _MAX_IMAGES:
        return indices
    return np.sort(np.random.default_rng(0).choice(indices, _MAX_IMAGES, replace=False))
