"""Run a compiled function over batches of images: padding, and a few batches under way on the devices."""

import math
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from histojax.core.errors import RunError
from histojax.distributed.sharding import Layout

# A CPU predicts as fast with few images at a time, or faster, in less memory (docs/results/speed.md).
_ON_CPUS, _ON_ACCELERATORS = 8, 32
_AHEAD = 2  # batches under way on the device while the host prepares the next


def choose_batch_size(layout: Layout, batch_size: int | None) -> int:
    """Return the images per batch: the number given, or one that suits the devices.

    Raises:
      RunError: the devices do not divide the number given; the message names --batch_size and valid sizes.
    """
    if batch_size is None:
        devices = layout.mesh.devices
        least = _ON_CPUS if devices.flat[0].platform == "cpu" else _ON_ACCELERATORS
        return math.ceil(least / devices.size) * devices.size
    try:
        layout.check_batch("batch size", batch_size)
    except RunError as error:
        raise RunError(f"--batch_size: {error}") from error
    return batch_size


def run_batches(
    function: Callable[[jax.Array], jax.Array],
    layout: Layout,
    batches: Iterable[np.ndarray],
    batch_size: int,
    image_size: int,
) -> Iterator[np.ndarray]:
    """Yield the rows `[b, d]` that a function gives for each batch `u8 [b, s, s, 3]`, in order.

    The device computes while the next batch is fetched. An incomplete batch is padded, so one program serves all.

    Args:
      function: maps images on the devices to rows.
      layout: the devices.
      batches: b is at most `batch_size`.
      batch_size: images per batch.
      image_size: s.
    """

    def start(images: np.ndarray) -> jax.Array:
        n = len(images)
        if not 0 < n <= batch_size or images.shape[1:] != (image_size, image_size, 3):
            expected = f"1 to {batch_size} images of shape ({image_size}, {image_size}, 3)"
            raise ValueError(f"a batch of shape {images.shape}: expected {expected}")
        if n < batch_size:
            images = np.concatenate([images, np.zeros((batch_size - n, image_size, image_size, 3), np.uint8)])
        return function(layout.to_device({"image": images})["image"])

    under_way: list[tuple[jax.Array, int]] = []
    for images in batches:
        under_way.append((start(images), len(images)))
        if len(under_way) > _AHEAD:
            yield _fetch(under_way.pop(0))
    for one in under_way:
        yield _fetch(one)


def _fetch(one: tuple[jax.Array, int]) -> np.ndarray:
    rows, n = one
    return np.asarray(rows)[:n]
