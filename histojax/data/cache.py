"""Pixels kept on disk, so that images are decoded once and not in every epoch.

One file of raw pixels beside the prepared dataset, mapped into memory, so that all runs and processes of a machine
share it. Batches are the same, bit for bit, as without it.
"""

import concurrent.futures
import dataclasses
import logging
import pathlib

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.pixels import resize
from data_pipelines.prepare import exclusive_lock
from histojax.core.files import atomic_write
from histojax.data.pipeline import pixels_of
from histojax.data.sources import Dataset, ImageSource, shapes_path

# `resized`: at the size of the model's input; `decoded`: as they are, so that random crops can be cut from them.
CACHES = ("none", "resized", "decoded")
_BLOCK = 256  # images under way
_log = logging.getLogger(__name__)


def with_cache(dataset: Dataset, kind: str, size: int, threads: int) -> Dataset:
    """The dataset with its pixels on disk, where they are written if they are not there yet.

    Args:
      dataset: prepared.
      kind: of `CACHES`.
      size: height and width of `resized` images.
      threads: that decode.

    Raises:
      DataError: an image that cannot be read; no room for the file.
    """
    if kind == "none":
        return dataset
    path = cache_path(dataset.prepared.directory, kind, size)
    if not path.is_file():
        with exclusive_lock(dataset.prepared.directory):  # of several processes one writes it
            if not path.is_file():
                _write(path, dataset, size if kind == "resized" else None, threads)
    return dataclasses.replace(dataset, cached=path)


def cache_path(directory: pathlib.Path, kind: str, size: int) -> pathlib.Path:
    """Where a prepared dataset keeps its pixels."""
    return directory / (f"resized-{size}.pixels" if kind == "resized" else "decoded.pixels")


def _write(path: pathlib.Path, dataset: Dataset, size: int | None, threads: int) -> None:
    n = len(dataset.records)
    _log.info("decoding %d images once, to %s", n, path)
    names = [record.image_id for record in dataset.records]
    source = ImageSource(dataset.prepared.directory, np.arange(n), dataset.labels, names)

    def pixels(position: int) -> np.ndarray:
        image = pixels_of(source[position])
        return image if size is None else resize(image, size)

    shapes = []
    try:
        # Written, not mapped: in a mapping, a full disk would end the process without a word.
        with atomic_write(path) as temporary:
            with open(temporary, "wb") as file, concurrent.futures.ThreadPoolExecutor(max(threads, 1)) as pool:
                for begin in range(0, n, _BLOCK):
                    for image in pool.map(pixels, range(begin, min(begin + _BLOCK, n))):
                        file.write(image.tobytes())
                        shapes.append(image.shape[:2])
            with atomic_write(shapes_path(path)) as beside, open(beside, "wb") as file:  # there before the pixels are
                np.save(file, np.array(shapes))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}): make room, choose another data.prepared_dir, or "
            "use data.cache=none"
        ) from error
