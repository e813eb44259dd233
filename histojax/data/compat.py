"""Every use of grain and absl that is not part of their documented interface; an upgrade breaks here or nowhere."""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from grain._src.python.ipc.shared_memory_array import SharedMemoryArray


class SelectRows(grain.MapDataset):
    """Some rows of every global batch of a stream of single images.

    Args:
      parent: the stream.
      batch_size: images per global batch.
      rows: positions in the global batch.
    """

    _MUTATES_ELEMENT_SPEC = False

    def __init__(self, parent: grain.MapDataset, batch_size: int, rows: Sequence[int]):
        super().__init__(parent)
        self._batch_size, self._rows = batch_size, rows

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int) -> Any:
        batch, row = divmod(index, len(self._rows))
        return self._parent[batch * self._batch_size + self._rows[row]]


class Source(grain.MapDataset):
    """`grain.MapDataset.source` without its counters, which take longer per image than copying cached pixels.

    Args:
      source: has a length and random access.
    """

    def __init__(self, source: Any):
        super().__init__()
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        return self._source[index % len(self._source)]


def shared_array(shape: Sequence[int]) -> np.ndarray:
    """Return a new array in shared memory, which a worker passes to its parent without a copy: `u8`, of `shape`."""
    array: np.ndarray = SharedMemoryArray(shape, np.uint8)
    return array


def ensure_flags_parsed() -> None:
    """Mark absl's flags as parsed: grain's workers read one, and notebooks and tests parse none."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
