"""Batches from threads: in order, whole, with the stream's error, and without threads after the end."""

import threading
import time
from typing import Any

import numpy as np
import pytest

from histojax.data.batches import ORIENTATION, ThreadedBatches
from histojax.data.transforms import UPRIGHT

SIZE = 3


class Stream:
    """Elements whose pixels and label are their position; `broken` cannot be read."""

    def __init__(self, count: int, broken: int = -1):
        self.count, self.broken = count, broken
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> dict[str, Any]:
        if position == self.broken:
            raise OSError(f"{position} cannot be read")
        time.sleep(0.001 * (position % 3))  # so that threads overtake each other
        self.read.append(position)
        image = np.full((SIZE, SIZE, 3), position, np.uint8)
        return {"image": image, ORIENTATION: UPRIGHT, "label": np.int32(position)}


def running() -> int:
    return sum(thread.name.startswith("make-batches") for thread in threading.enumerate())


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_batches_are_in_order_and_the_remainder_is_dropped(threads: int) -> None:
    made = ThreadedBatches(Stream(23), 5, SIZE, threads)
    batches = list(made)
    assert len(batches) == 4
    for number, batch in enumerate(batches):
        positions = np.arange(5 * number, 5 * number + 5)
        np.testing.assert_array_equal(batch["label"], positions)
        assert batch["label"].dtype == np.int32
        np.testing.assert_array_equal(
            batch["image"], np.broadcast_to(positions[:, None, None, None], (5, SIZE, SIZE, 3))
        )
    made.close()
    assert not running()


def test_an_error_of_the_stream_comes_with_its_batch() -> None:
    made = ThreadedBatches(Stream(20, broken=7), 5, SIZE, 2)
    assert next(made)["label"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(OSError, match="7 cannot be read"):
        next(made)
    made.close()
    assert not running()


def test_few_batches_are_read_ahead() -> None:
    stream = Stream(1000)
    made = ThreadedBatches(stream, 5, SIZE, 4)
    next(made)
    time.sleep(0.3)
    assert max(stream.read) < 20, "the batch, and two ahead"
    made.close()
    assert not running()
