"""Run a compiled function over batches of images: padding, and a few batches under way on the devices."""

from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from histojax.core.errors import RunError
from histojax.distributed.sharding import Layout

_AHEAD = 2  # batches under way on the device while the host prepares the next


def check_batch_size(layout: Layout, batch_size: int) -> None:
    """Check that the devices divide a batch.

    Raises:
      RunError: they do not; the message names --batch_size and valid sizes.
    """
    try:
        layout.check_batch("batch size", batch_size)
    except RunError as error:
        raise RunError(f"--batch_size: {error}") from error


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
