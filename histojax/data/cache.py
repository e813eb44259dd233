"""Decoded pixels on disk, so that images are decoded once and not in every epoch.

The cache is one file of raw pixels beside the prepared dataset. It is mapped into memory, so all runs and processes of
a machine share it. Batches are the same with and without it, bit for bit.
"""

import concurrent.futures
import dataclasses
import logging
import pathlib

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.pixels import resize
from histojax.core.files import atomic_write
from histojax.core.locks import exclusive_lock
from histojax.data.image_source import ImageSource, shapes_path
from histojax.data.pipeline import pixels_of
from histojax.data.sources import Dataset

# `resized`: at the size of the model's input; `decoded`: at the original size, so that random crops can be cut.
CACHES = ("none", "resized", "decoded")
_BLOCK = 256  # images decoded before they are written
_log = logging.getLogger(__name__)


def with_cache(dataset: Dataset, kind: str, size: int, threads: int) -> Dataset:
    """Return the dataset with its pixels on disk; write them first if they are not there yet.

    Args:
      dataset: the prepared dataset.
      kind: one of `CACHES`.
      size: height and width of `resized` images in pixels.
      threads: number of decoding threads.

    Raises:
      DataError: an image cannot be read, or the file cannot be written.
    """
    if kind == "none":
        return dataset
    path = cache_path(dataset.prepared.directory, kind, size)
    if not path.is_file():
        with exclusive_lock(dataset.prepared.directory):  # one of several processes writes it
            if not path.is_file():
                _write(path, dataset, size if kind == "resized" else None, threads)
    return dataclasses.replace(dataset, cached=path)


def cache_path(directory: pathlib.Path, kind: str, size: int) -> pathlib.Path:
    """Return the path of a prepared dataset's pixels."""
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
        # Written rather than mapped: with a mapping, a full disk would end the process without a message.
        with atomic_write(path) as temporary:
            with open(temporary, "wb") as file, concurrent.futures.ThreadPoolExecutor(max(threads, 1)) as pool:
                for begin in range(0, n, _BLOCK):
                    for image in pool.map(pixels, range(begin, min(begin + _BLOCK, n))):
                        file.write(image.tobytes())
                        shapes.append(image.shape[:2])
            # The shapes must exist before the pixels do.
            with atomic_write(shapes_path(path)) as temporary_shapes, open(temporary_shapes, "wb") as file:
                np.save(file, np.array(shapes))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}): free disk space, choose another "
            "data.prepared_dir, or use data.cache=none"
        ) from error
