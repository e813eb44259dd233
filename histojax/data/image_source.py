"""Random access to the images of a prepared dataset, for grain."""

import functools
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.prepare import open_images
from histojax.core.retries import with_backoff

_log = logging.getLogger(__name__)


def label_key(labels: np.ndarray) -> str:
    """Return the key of the labels in a batch: `label` for one class per image, `labels` for any number of labels."""
    return "labels" if labels.ndim == 2 else "label"


def shapes_path(pixels: pathlib.Path) -> pathlib.Path:
    """Return the path of the heights and widths of the images in a file of pixels."""
    return pixels.with_suffix(".shapes.npy")


class ImageSource:
    """Random access by position: bytes or pixels, label(s), index, mask and name of an image.

    A source can be pickled; files are opened by the process that reads them.

    Args:
      directory: folder of the prepared dataset.
      indices: positions in the prepared dataset; -1 is padding, which is masked out.
      labels: labels of the whole dataset, `int32 [n]` or `float32 [n, k]`.
      names: image_ids of the whole dataset, for error messages.
      mask_bad: return an unreadable image as empty and masked out, with a warning.
      cached: the file of `histojax.data.cache` to read pixels from; None: read the stored bytes.

    Raises:
      DataError: on access, an image cannot be read.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        indices: np.ndarray,
        labels: np.ndarray,
        names: Sequence[str],
        mask_bad: bool = False,
        cached: pathlib.Path | None = None,
    ):
        self._directory = directory
        self._indices = indices
        self._labels = labels
        self._names = names
        self._mask_bad = mask_bad
        self._cached = cached

    @functools.cached_property
    def _images(self) -> Any:
        return open_images(self._directory)

    @functools.cached_property
    def _pixels(self) -> "_Pixels":
        assert self._cached is not None
        return _Pixels(self._cached)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_images", "_pixels")}

    def __len__(self) -> int:
        return len(self._indices)

    def _read(self, stored: int) -> bytes | np.ndarray | None:
        return self._images[stored]["image"] if self._cached is None else self._pixels[stored]

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = int(self._indices[position])
        stored, source = max(index, 0), self._cached or self._directory
        try:
            image = with_backoff(str(source), lambda: self._read(stored))
            if image is None:  # beyond the end of a truncated file
                raise OSError("no such record")
        except (RuntimeError, OSError, ValueError) as error:  # ArrayRecord verifies checksums
            message = (
                f"image {self._names[stored]} of the prepared dataset: {error}; delete {source} to prepare it again"
            )
            if not self._mask_bad:
                raise DataError(message) from error
            _log.warning("skipping unreadable image: %s", message)
            image, index = b"", -1
        return {
            "image": image,
            label_key(self._labels): self._labels[stored],
            "index": np.int64(index),
            "mask": np.bool_(index >= 0),
            "name": self._names[stored],
        }


class _Pixels:
    """The images in a file of `histojax.data.cache`: consecutive RGB pixels, mapped into memory."""

    def __init__(self, path: pathlib.Path):
        self._shapes = np.load(shapes_path(path))
        self._ends = np.cumsum(self._shapes.prod(axis=1) * 3)
        self._bytes = np.asarray(np.memmap(path, np.uint8, "r"))  # slices of a memmap itself cost more
        if len(self._bytes) != self._ends[-1]:
            raise ValueError(f"{path} has {len(self._bytes)} bytes instead of {self._ends[-1]}")

    def __getitem__(self, position: int) -> np.ndarray:
        height, width = self._shapes[position]
        end = self._ends[position]
        return self._bytes[end - height * width * 3 : end].reshape(height, width, 3)
