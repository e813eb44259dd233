"""Batches from a stream of single images; each image is written once, to its row of the batch."""

import collections
import concurrent.futures
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from histojax.data.compat import shared_array
from histojax.data.transforms import orient

Batch = dict[str, np.ndarray]
# The values of an image by name. `image` is `u8 [s, s, 3]`, and still needs the `Orientation` under `ORIENTATION`.
Element = Mapping[str, Any]
ORIENTATION = "orientation"
_PIECE = 16  # images that a thread makes at a time
_AHEAD = 2  # batches that are made while the caller uses one


def join(elements: Sequence[Element], image_size: int) -> Batch:
    """Return the batch of some elements, for a worker process: its images are in shared memory."""
    images = shared_array((len(elements), image_size, image_size, 3))
    return _with_images(images, _write(np.asarray(images), elements))


class ThreadedBatches(Iterator[Batch]):
    """The batches of a stream in order, each made by all threads of a pool. Close it to end the threads.

    Args:
      stream: random access to elements, from any thread.
      batch_size: images per batch.
      image_size: height and width of an image in pixels.
      threads: number of threads.
    """

    def __init__(self, stream: grain.MapDataset[Element], batch_size: int, image_size: int, threads: int):
        self._stream, self._batch_size, self._image_size = stream, batch_size, image_size
        self._piece = max(1, min(_PIECE, batch_size // (2 * threads)))  # so that no thread is idle for long
        self._count, self._started = len(stream) // batch_size, 0
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="make-batches")
        self._pending: collections.deque[tuple[np.ndarray, list[concurrent.futures.Future[list[Element]]]]]
        self._pending = collections.deque()

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises:
          DataError: as the stream does.
        """
        while self._started < self._count and len(self._pending) <= _AHEAD:
            self._start()
        if not self._pending:
            raise StopIteration
        images, pieces = self._pending.popleft()
        return _with_images(images, [element for piece in pieces for element in piece.result()])

    def close(self) -> None:
        """End the threads; batches that are not finished are dropped."""
        self._pool.shutdown(cancel_futures=True)

    def _start(self) -> None:
        images = np.empty((self._batch_size, self._image_size, self._image_size, 3), np.uint8)
        rows = range(self._batch_size)
        pieces = [rows[i : i + self._piece] for i in range(0, self._batch_size, self._piece)]
        make = functools.partial(self._make, images, self._started * self._batch_size)
        self._pending.append((images, [self._pool.submit(make, piece) for piece in pieces]))
        self._started += 1

    def _make(self, images: np.ndarray, first: int, rows: range) -> list[Element]:
        return _write(images[rows.start : rows.stop], (self._stream[first + row] for row in rows))


def _write(images: np.ndarray, elements: Iterable[Element]) -> list[Element]:
    """Write the images of elements to the rows of `images`; return the elements without images."""
    others: list[Element] = []
    for row, element in zip(images, elements, strict=True):
        orient(element["image"], element[ORIENTATION], row)
        others.append({key: value for key, value in element.items() if key not in ("image", ORIENTATION)})
    return others


def _with_images(images: np.ndarray, others: Sequence[Element]) -> Batch:
    return {"image": images} | {key: np.stack([element[key] for element in others]) for key in others[0]}
