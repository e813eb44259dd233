"""Decoded pixels on disk, so that images are decoded once and not in every epoch.

The cache is one file of raw pixels, beside the prepared dataset or in a folder of its own, such as a local disk of each
host. It is mapped into memory, so all runs and processes of a host share it. Its name contains a hash of the pixels in
their order, so that a cache of other images is never read. Batches are the same with and without it, bit for bit.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import logging
import pathlib
import shutil
import time

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.pixels import resize
from histojax.core.directories import expand_user
from histojax.core.files import atomic_write
from histojax.core.locks import exclusive_lock
from histojax.core.text_table import byte_size
from histojax.data.image_source import ImageSource, shapes_path
from histojax.data.pipeline import pixels_of
from histojax.data.sources import Dataset

# `resized`: at the size of the model's input; `decoded`: at the original size, so that random crops can be cut.
CACHES = ("none", "resized", "decoded")
_FORMAT = b"1"  # of the file; a new one gives caches new names
_BLOCK = 256  # images decoded before they are written
_ABANDONED = 600.0  # seconds; a file that is being written changes more often
_log = logging.getLogger(__name__)


def with_cache(dataset: Dataset, kind: str, size: int, threads: int, directory: str = "") -> Dataset:
    """Return the dataset with its pixels on disk; write them first if they are not there yet.

    The processes of a host wait for the one that writes.

    Args:
      dataset: the prepared dataset.
      kind: one of `CACHES`.
      size: height and width of `resized` images in pixels.
      threads: number of decoding threads.
      directory: folder of the cache; empty: that of the prepared dataset.

    Raises:
      DataError: an image cannot be read, or the file cannot be written.
    """
    if kind == "none":
        return dataset
    if "://" in directory:
        raise DataError(f"data.cache_dir={directory}: the cache is mapped into memory; name a folder of a local disk")
    path = cache_path(dataset, kind, size, directory)
    if not path.is_file():
        with exclusive_lock(path.parent):  # one of several processes writes it
            if not path.is_file():
                _write(path, dataset, size if kind == "resized" else None, threads)
    return dataclasses.replace(dataset, cached=path)


def cache_path(dataset: Dataset, kind: str, size: int, directory: str = "") -> pathlib.Path:
    """Return the path of a dataset's pixels; the arguments are those of `with_cache`."""
    folder = expand_user(directory).absolute() if directory else dataset.prepared.directory
    pixels = hashlib.sha256(_FORMAT)
    for record in dataset.records:
        pixels.update(f"\n{record.pixel_hash}".encode())
    name = f"resized-{size}" if kind == "resized" else "decoded"
    return folder / f"{name}-{pixels.hexdigest()[:16]}.pixels"


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
        path.parent.mkdir(parents=True, exist_ok=True)
        _delete_abandoned(path)
        if size is not None:
            _check_space(path, n * size**2 * 3)
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
        raise _cannot_write(path, error.strerror or str(error)) from error


def _check_space(path: pathlib.Path, needed: int) -> None:
    """Refuse a cache that the disk cannot hold before hours of decoding.

    Raises:
      DataError: too little space is free.
    """
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise _cannot_write(path, f"it needs {byte_size(needed)}, and the disk has {byte_size(free)} free")


def _delete_abandoned(path: pathlib.Path) -> None:
    """Delete what killed processes have left of this cache: it may fill a local disk."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):  # it is gone, or belongs to another user
            if time.time() - temporary.stat().st_mtime > _ABANDONED:
                temporary.unlink()


def _cannot_write(path: pathlib.Path, reason: str) -> DataError:
    return DataError(
        f"{path}: the cache of pixels cannot be written ({reason}): free disk space, choose another folder with "
        "data.cache_dir, or use data.cache=none"
    )
