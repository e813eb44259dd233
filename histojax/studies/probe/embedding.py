"""Features that a probe computes itself: those of a run, and those of the same network with random weights."""

import hashlib
import json
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import histojax
from data_pipelines.stain import StainNormalizer
from histojax import models
from histojax.core.directories import default_directory
from histojax.core.locks import exclusive_lock
from histojax.inference.embed import image_facts, image_features
from histojax.inference.embed.embedder import Embedder
from histojax.inference.predict import images
from histojax.training import checkpoint, default_config

_log = logging.getLogger(__name__)
_FIELDS = ("model", "options", "layer", "image_size", "preprocessing")  # of the metadata: what makes a network


def of_run(run: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
    """Return the file of the pooled features of a run's model for the images below a root.

    Raises:
      RunError: the checkpoint is missing or damaged, or no image can be read.
    """
    found = checkpoint.find(run)
    return _cached(checkpoint.digest(found), lambda: Embedder.of_run(run), root, image_facts.read_split(found))


def of_random_weights(metadata: Mapping[str, Any], root: pathlib.Path, seed: int) -> pathlib.Path | None:
    """Return the file of the features that a network gives with random weights.

    Args:
      metadata: of the features whose network is taken, with the same layer, image size and normalisation.
      root: of the images.
      seed: of the weights.

    Returns:
      None: the network is none of this program's.
    """
    if metadata.get("model") not in models.names() or not all(field in metadata for field in _FIELDS):
        return None
    config = default_config.base()
    config.model.name, config.seed = metadata["model"], seed
    config.model.options.update(metadata["options"])
    config.data.image_size = metadata["image_size"]
    for field in ("mean", "std"):
        config.data[field] = tuple(metadata["preprocessing"][field])
    stain = StainNormalizer.from_json(metadata["preprocessing"].get("stain"))
    key = json.dumps([metadata[field] for field in _FIELDS], sort_keys=True) + f" random-{seed}"
    return _cached(key, lambda: Embedder.of_weights(config, layer=metadata["layer"], stain=stain), root, {})


def _cached(
    key: str, build: Callable[[], Embedder], root: pathlib.Path, split: Mapping[str, Mapping[str, str]]
) -> pathlib.Path:
    """Embed the images below a root, unless the same network has embedded the same files before.

    Args:
      key: changes with anything that the features of an image depend on.
      build: builds the network.
      root: of the images.
      split: of a run; see `image_facts.read_split`.
    """
    refs = images.find([str(root)])
    folder = default_directory() / "features"
    network = hashlib.sha256(f"{histojax.__version__} {key}".encode()).hexdigest()[:16]
    path = folder / f"{network}-{images.fingerprint(refs)}.parquet"
    with exclusive_lock(folder):
        if not path.is_file():
            embedder = build()
            _log.info(f"embedding {len(refs)} images with {embedder.metadata['model']} ({embedder.metadata['source']})")
            facts = [image_facts.image_facts(ref, split) for ref in refs]
            image_features.run(refs, image_facts.relative_ids(refs, [str(root)]), facts, embedder, path)
    return path
