"""Workers as processes: who ends them, what they leave, and that they are refused where there is no room for them."""

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
from tests.data import pipeline_test
from tests.data.pipeline_test import OFF, ON, spec

folder, dataset, everything = pipeline_test.folder, pipeline_test.dataset, pipeline_test.everything


@pytest.fixture
def command(dataset, everything, tmp_path):
    """The words that start a program with a stream `batches` of two workers; given the program's lines."""

    def write(*lines: str) -> list[pathlib.Path | str]:
        (tmp_path / "stream.pickle").write_bytes(pickle.dumps((dataset, everything, spec(workers=2), ON)))
        head = [
            "import contextlib, multiprocessing, os, pickle, signal, sys, time",
            "from histojax.data.pipeline import train_batches",
            "if __name__ == '__main__':",
            "    batches = train_batches(*pickle.load(open(sys.argv[1], 'rb')))",
            "    next(batches), next(batches)",
        ]
        (tmp_path / "reads.py").write_text("\n".join([*head, *(f"    {line}" for line in lines)]) + "\n")
        return [sys.executable, tmp_path / "reads.py", tmp_path / "stream.pickle"]

    return write


def test_workers_are_gone_and_leave_nothing_when_the_stream_is_closed(command):
    words = command(
        "assert len(multiprocessing.active_children()) == 2",
        "batches.close()",
        "assert not multiprocessing.active_children()",
    )
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "leaked" not in done.stderr


def test_workers_end_with_whoever_started_them_and_by_nothing_else(command):
    words = command(
        "workers = [child.pid for child in multiprocessing.active_children()]",
        "for pid in workers:",
        "    os.kill(pid, signal.SIGTERM), os.kill(pid, signal.SIGINT)",
        "for _ in range(6):",
        "    next(batches)",
        "print(*workers, flush=True)",
        "time.sleep(60)",
    )
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        process.kill()
    deadline = time.monotonic() + 20
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_too_little_shared_memory_is_told_before_a_worker_starts(dataset, everything, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: types.SimpleNamespace(free=64_000_000))
    made = LoaderSpec(batch_size=256, image_size=224, seed=0, workers=14)
    with pytest.raises(
        DataError, match=r"data\.workers=14 .* of 38\.5 MB need 1156 MB .* has 64 MB free: .* --shm-size"
    ):
        train_batches(dataset, everything, made, OFF)
    assert not multiprocessing.active_children()
