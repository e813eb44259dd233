"""The parts of grain and absl that are used beyond their documented interface."""

import grain
import numpy as np
import pytest
from absl import flags
from grain._src.python.ipc import shared_memory_array

from histojax.data import compat


def test_rows_are_selected_from_every_global_batch() -> None:
    stream = grain.MapDataset.source(np.arange(12))
    rows = compat.SelectRows(stream, batch_size=4, rows=(1, 3))
    assert [int(rows[i]) for i in range(len(rows))] == [1, 3, 5, 7, 9, 11]
    batches = iter(rows.to_iter_dataset().batch(2))
    assert next(batches).tolist() == [1, 3]


def test_a_source_without_counters_gives_the_stream_of_grains_own() -> None:
    ours, theirs = compat.Source(range(5)), grain.MapDataset.source(range(5))
    streams = [list(stream.seed(3).shuffle().repeat(2)[2:]) for stream in (ours, theirs)]
    assert streams[0] == streams[1]
    assert len(ours) == 5


def test_grain_passes_a_shared_array_on_without_a_copy() -> None:
    array = compat.shared_array((2, 3))
    array[:] = 7
    passed = shared_memory_array.copy_to_shm({"image": array})["image"]
    assert passed == array.metadata
    received = shared_memory_array.open_from_shm(passed)  # which deletes it at the end
    assert (received == 7).all()
    array[0, 0] = 1
    assert received[0, 0] == 1, "it is the same memory"


def test_flags_are_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed_once = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", parsed_once)
    compat.ensure_flags_parsed()
    assert parsed_once.is_parsed()
