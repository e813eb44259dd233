"""The threads in which a process watches the others, with a store that never answers or always does."""

import os
import threading
import time
from typing import Any

import pytest

from histojax.core.errors import EXIT_RESUMABLE
from histojax.distributed import processes
from histojax.distributed.processes import Membership


class Store:
    """The key-value store of a run; a silent one is on a machine that left the network."""

    def __init__(self, silent: bool):
        self.silent = silent

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        if self.silent:
            threading.Event().wait(20)

    def key_value_dir_get(self, key: str) -> list[Any]:
        return []


@pytest.mark.parametrize("silent", [True, False])
def test_a_silent_coordinator_ends_the_process(
    silent: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()

    def end(code: int) -> None:
        assert code == EXIT_RESUMABLE
        peers._ended.set()
        ended.set()

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(processes, "_BEAT", 0.02)
    monkeypatch.setattr(processes, "_LOST", 0.2)
    monkeypatch.setattr(processes.compat, "key_value_store", lambda: Store(silent))
    began = time.monotonic()
    peers = processes._Peers(Membership("host1:8476", 2, 1))
    assert ended.wait(10 if silent else 1) == silent
    peers._ended.set()
    assert time.monotonic() - began < 10
    said = capsys.readouterr().err
    assert ("error: process 0 of 2 (host1:8476) has not answered for 0 s" in said) == silent
    assert ("rerun the same command to resume" in said) == silent


def test_a_process_ends_if_the_others_do_not_join(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with processes._time_to_join(0.1):
        time.sleep(0.5)
    with processes._time_to_join(60):
        pass
    assert codes == [1]
    assert "error: not all processes of this run joined it within 0 s" in capsys.readouterr().err
