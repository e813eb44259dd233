"""The parts of grain and absl that are used beyond their documented interface."""

import grain
import numpy as np
import pytest
from absl import flags

from histojax.data import compat


def test_rows_are_selected_from_every_global_batch() -> None:
    stream = grain.MapDataset.source(np.arange(12))
    rows = compat.SelectRows(stream, batch_size=4, rows=(1, 3))
    assert [int(rows[i]) for i in range(len(rows))] == [1, 3, 5, 7, 9, 11]
    batches = iter(rows.to_iter_dataset().batch(2))
    assert next(batches).tolist() == [1, 3]


def test_flags_are_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed_once = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", parsed_once)
    compat.ensure_flags_parsed()
    assert parsed_once.is_parsed()
