"""The stain normalisation of a run: fitted once on its training images, or on one reference image, and then kept."""

import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from data_pipelines import stain
from data_pipelines.errors import BadImageError, DataError
from data_pipelines.pixels import decode, resize
from data_pipelines.splits import Split
from data_pipelines.stain import StainNormalizer
from histojax.core.errors import RunError
from histojax.data.image_source import ImageSource
from histojax.data.pipeline import pixels_of
from histojax.data.sources import Dataset
from histojax.distributed import processes

NONE = "none"  # data.stain.method without normalisation
COLUMN = "stain_normalised"  # of predictions of runs with normalisation: 1, or 0 where an image has too little tissue
_IMAGES = 256  # training images that the colours are measured on
_log = logging.getLogger(__name__)


def fit(config: ConfigDict, dataset: Dataset, split: Split) -> dict[str, Any] | None:
    """Fit the normaliser of `config.data.stain`.

    The typical colours are those of at most `_IMAGES` training images, evenly spaced in the order of the dataset, at
    the size that the model sees; no image of another side is looked at. All processes get the numbers of the first.

    Args:
      config: `data` is read.
      dataset: the images.
      split: their sides.

    Returns:
      `method` and `target`, which `StainNormalizer.from_json` reads; `reference`: what it was fitted on; `images`: how
      many of them it rests on; `without_tissue`: how many were left out. None: without normalisation.

    Raises:
      RunError: the reference cannot be read, or too little tissue is in it or in the training images.
      DataError: a training image cannot be read.
    """
    method, path = config.data.stain.method, config.data.stain.reference
    if method == NONE:
        return None
    if path:
        made = of_reference(method, pathlib.Path(path), config.data.image_size)
        found, used, left_out, reference = made, 1, 0, path
    else:
        reference = "training images"
        try:
            found, used, left_out = stain.fit(method, _training_images(config, dataset, split.indices("train")))
        except ValueError as error:
            raise RunError(
                f"data.stain.method={method}: of the training images, {error}. Name an image with tissue as "
                "data.stain.reference, or use data.stain.method=none"
            ) from error
    target = processes.of_first(np.array(found.target)).tolist()
    _log.info("stain normalisation: %s, fitted on %d of %d %s", method, used, used + left_out, reference)
    return {
        "method": method, "target": target, "reference": reference, "images": used, "without_tissue": left_out,
    }  # fmt: skip


def of_reference(method: str, path: pathlib.Path, image_size: int) -> StainNormalizer:
    """Fit a normaliser to one image, resized to the model's input.

    Raises:
      RunError: the image cannot be read, or has too little tissue.
    """
    try:
        image = resize(decode(path.read_bytes()), image_size)
        return stain.fit(method, [image])[0]
    except (OSError, BadImageError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{path}: no reference for stain normalisation ({reason}): name an image with tissue") from error


def add_to_results(summary: dict[str, Any], table: pd.DataFrame, fitted: Mapping[str, Any]) -> None:
    """Add to results.json how stains were normalised, and how many images of each side had too little tissue.

    Args:
      summary: the content of results.json so far, with `splits`.
      table: the predictions, with `COLUMN`.
      fitted: as `fit` returned it.
    """
    facts = {key: fitted[key] for key in ("method", "reference", "images", "without_tissue")}
    of = "" if facts["images"] == 1 else f"{facts['images']} "
    summary["stain"] = {"description": f"{facts['method']}, fitted on {of}{facts['reference']}"} | facts
    for side, block in summary["splits"].items():
        rows = table[table["split"] == side]
        block["not_normalised"] = count = int((rows[COLUMN] == 0).sum())
        if count:
            block["warnings"].append(
                f"{side}: {count} of {len(rows)} images have too little tissue for stain normalisation: the model saw "
                "them as they are"
            )


def _training_images(config: ConfigDict, dataset: Dataset, indices: np.ndarray) -> Iterator[np.ndarray]:
    chosen = indices[np.unique(np.linspace(0, len(indices) - 1, min(len(indices), _IMAGES)).round().astype(int))]
    mask_bad = config.data.on_bad_record == "mask"
    names = [record.image_id for record in dataset.records]
    source = ImageSource(dataset.prepared.directory, chosen, dataset.labels, names, mask_bad, dataset.cached)
    for position in range(len(source)):
        try:
            yield resize(pixels_of(source[position]), config.data.image_size)
        except DataError:
            if not mask_bad:
                raise
