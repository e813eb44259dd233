"""Every use of grain and absl that is not part of their documented interface; an upgrade breaks here or nowhere."""

from collections.abc import Sequence
from typing import Any

import grain
from absl import flags


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


def ensure_flags_parsed() -> None:
    """Mark absl's flags as parsed: grain's workers read one, and notebooks and tests parse none."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
