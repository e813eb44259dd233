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
from data_pipelines.prepare import alone
from histojax.data.sources import Dataset, ImageSource
from histojax.data.transforms import DecodeError, decode, resize
from histojax.files import replacing

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
      DataError: an image that cannot be read; `decoded` images of different sizes; no room for the file.
    """
    if kind == "none":
        return dataset
    path = cache_path(dataset.prepared.directory, kind, size)
    if not path.is_file():
        with alone(dataset.prepared.directory):  # of several processes one writes it
            if not path.is_file():
                _write(path, dataset, size if kind == "resized" else None, threads)
    return dataclasses.replace(dataset, cached=path)


def cache_path(directory: pathlib.Path, kind: str, size: int) -> pathlib.Path:
    """Where a prepared dataset keeps its pixels."""
    return directory / (f"resized-{size}.npy" if kind == "resized" else "decoded.npy")


def _write(path: pathlib.Path, dataset: Dataset, size: int | None, threads: int) -> None:
    n = len(dataset.records)
    names = [record.image_id for record in dataset.records]
    source = ImageSource(dataset.prepared.directory, np.arange(n), dataset.labels, names)

    def pixels(position: int) -> np.ndarray:
        try:
            image = decode(source[position]["image"])
        except DecodeError as error:
            raise DataError(f"image {names[position]} of the prepared dataset: {error}; prepare it anew") from error
        return image if size is None else resize(image, size)

    shape = pixels(0).shape
    _log.info("decoding %d images once: %.1f GB in %s", n, n * np.prod(shape) / 1e9, path)

    def raw(position: int) -> bytes:
        image = pixels(position)
        if image.shape != shape:
            found, first = (f"{w}×{h} pixels" for h, w, _ in (image.shape, shape))
            raise DataError(
                f"data.cache=decoded needs images of one size: {names[position]} has {found}, {names[0]} {first}; use "
                "data.cache=none, or resized without random crops"
            )
        return image.tobytes()

    try:
        # Written, not mapped: in a mapping, a full disk would end the process without a word.
        with replacing(path) as temporary, open(temporary, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            with concurrent.futures.ThreadPoolExecutor(max(threads, 1)) as pool:
                for begin in range(0, n, _BLOCK):
                    file.writelines(pool.map(raw, range(begin, min(begin + _BLOCK, n))))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}): make room, choose another data.prepared_dir, or "
            "use data.cache=none"
        ) from error
