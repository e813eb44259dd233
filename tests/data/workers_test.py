"""Worker processes: when they end, that they leave nothing behind, and the check of shared memory."""

import multiprocessing
import pathlib
import pickle
import subprocess
import sys
import time
import types

import pytest

from data_pipelines.errors import DataError
from histojax.data.pipeline import LoaderSpec, train_batches
from tests.conftest import ROOT
from tests.helpers.stream import OFF, ON, spec


@pytest.fixture
def command(dataset, all_indices, tmp_path):
    """Return a function that writes a program with a stream `batches` of two workers and returns its command line."""

    def write(*lines: str) -> list[pathlib.Path | str]:
        (tmp_path / "stream.pickle").write_bytes(pickle.dumps((dataset, all_indices, spec(workers=2), ON)))
        header = [
            "import contextlib, multiprocessing, os, pickle, signal, sys, time",
            "from histojax.data.pipeline import train_batches",
            "if __name__ == '__main__':",
            "    batches = train_batches(*pickle.load(open(sys.argv[1], 'rb')))",
            "    next(batches), next(batches)",
        ]
        (tmp_path / "reads.py").write_text("\n".join([*header, *(f"    {line}" for line in lines)]) + "\n")
        return [sys.executable, tmp_path / "reads.py", tmp_path / "stream.pickle"]

    return write


def test_closing_the_stream_ends_workers_and_leaks_nothing(command):
    argv = command(
        "assert len(multiprocessing.active_children()) == 2",
        "batches.close()",
        "assert not multiprocessing.active_children()",
    )
    result = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "leaked" not in result.stderr


def test_workers_ignore_signals_and_end_with_their_parent(command):
    argv = command(
        "workers = [child.pid for child in multiprocessing.active_children()]",
        "for pid in workers:",
        "    os.kill(pid, signal.SIGTERM), os.kill(pid, signal.SIGINT)",
        "for _ in range(6):",
        "    next(batches)",
        "print(*workers, flush=True)",
        "time.sleep(60)",
    )
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        process.kill()
    deadline = time.monotonic() + 20
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_too_little_shared_memory_is_an_error_before_workers_start(dataset, all_indices, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: types.SimpleNamespace(free=64_000_000))
    loader = LoaderSpec(batch_size=256, image_size=224, seed=0, workers=14)
    with pytest.raises(
        DataError, match=r"data\.workers=14 .* of 38\.5 MB need 1156 MB .* has 64 MB free: .* --shm-size"
    ):
        train_batches(dataset, all_indices, loader, OFF)
    assert not multiprocessing.active_children()
