"""Checkpoints of untrained models, with every parameter and statistic drawn at random."""

import pathlib

import jax
import numpy as np

from configs import baselines_breakhis
from histojax.distributed.sharding import Layout
from histojax.training import build
from histojax.training.checkpoint import BEST, Checkpoints, series


def random_checkpoint(
    folder: pathlib.Path,
    model: str,
    size: int,
    *,
    data: dict[str, object] | None = None,
    dtype: str = "float32",
    **options: object,
) -> pathlib.Path:
    """Write a checkpoint of a model with two classes.

    Args:
      folder: the work directory is created below it.
      model: name of the model.
      size: side of the images in pixels.
      data: facts about the dataset; `mpp` and `root` become fields of the config.
      dtype: type of the computation.
      **options: options of the model.

    Returns:
      The work directory.
    """
    config = baselines_breakhis.get_config("smoke")
    config.model.name, config.model.dtype, config.data.image_size = model, dtype, size
    with config.unlocked():
        config.model.options.update(options)
    facts = {"description": "no images: 0 images", "synthetic": True} | (data or {})
    config.data.mpp, config.data.root = float(facts.pop("mpp", 0.0)), str(facts.pop("root", ""))
    classes = ("benign", "malignant")
    task = build.task(config, classes, [1, 1], 2)
    abstract = build.program(config, task, Layout(1)).abstract.model
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        name, shape = jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            value = jax.random.key(0)
        elif leaf.dtype != np.float32:
            value = np.zeros(shape, leaf.dtype)
        elif name.endswith("kernel"):
            value = rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        elif name.endswith(("scale", "var")):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = 0.2 * rng.normal(size=shape)
        return jax.device_put(value if isinstance(value, jax.Array) else value.astype(leaf.dtype), leaf.sharding)

    state = jax.tree_util.tree_map_with_path(draw, abstract)
    meta = {
        "format": 2, "config": config.to_dict(), "classes": list(classes), "class_counts": [1, 1], "train_images": 2,
        "pretrained": "", "split": {"protocol": "none", "hash": "0" * 16}, "data": facts, "step": 1, "thresholds": None,
    }  # fmt: skip
    with Checkpoints(series(folder / model, BEST), keep=1) as checkpoints:
        checkpoints.save(1, {"model": state.as_dict()}, meta)
    return folder / model
