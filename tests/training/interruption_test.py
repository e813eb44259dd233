"""Signals: the run ends as one that can be resumed, wherever they come, and Ctrl-C ends no command in a traceback."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from histojax.core.errors import EXIT_RESUMABLE, RunError
from histojax.training import checkpoint, loop, trainer
from tests.helpers.command import histojax
from tests.helpers.quick_run import get_config


def interrupting(function: Callable) -> Callable:
    def interrupted(*args: object, **kwargs: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **kwargs)

    return interrupted


@pytest.fixture(autouse=True)
def _survive_sigterm():
    """Fail the test, not the test run, if nothing guards against the signal."""

    def unguarded(number: int, frame: object) -> None:
        raise RunError("nothing handled SIGTERM")

    before = signal.signal(signal.SIGTERM, unguarded)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_signal_outside_the_loop_leaves_a_run_that_can_be_resumed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workdir = get_config(train__epochs=1), tmp_path / "run"

    # While the data are opened, while the state is made, before the final evaluation.
    for module, name in ((trainer, "open_dataset"), (loop, "BestTracker")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupting(getattr(module, name)))
            assert not loop.train_and_evaluate(config, workdir), name
        assert not (workdir / "checkpoints" / "last").is_dir() or not any((workdir / "checkpoints" / "last").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(loop.checkpoint, "find", interrupting(loop.checkpoint.find))
        assert not loop.train_and_evaluate(config, workdir)
    assert any((workdir / "checkpoints" / "last").iterdir())
    assert not (workdir / "results.json").exists()

    assert loop.train_and_evaluate(config, workdir)
    assert (workdir / "results.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_sigterm_while_the_program_starts_ends_it_as_one_that_can_be_resumed(tmp_path: pathlib.Path) -> None:
    words = [sys.executable, "-m", "histojax.main", "--config=dala_resnet50_breakhis:smoke"]
    with subprocess.Popen([*words, f"--workdir={tmp_path / 'run'}"], stderr=subprocess.PIPE, text=True) as process:
        while "libjax_common" not in pathlib.Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert process.stderr.read().splitlines()[-1:] == ["SIGTERM: stopped at once; rerun the same command"]
    assert process.returncode == EXIT_RESUMABLE
    assert not (tmp_path / "run").exists()


def test_a_second_ctrl_c_ends_the_command_at_once_without_a_traceback(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = loop.train_batches

    def interrupted(*args: object, **kwargs: object) -> Iterator[object]:
        for number, batch in enumerate(batches(*args, **kwargs)):
            if number == 4:  # in the second epoch
                # In this thread, so that Python handles the first before the second arrives: else they count as one.
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            yield batch

    monkeypatch.setattr(loop, "train_batches", interrupted)
    workdir = tmp_path / "run"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with SIGINT ignored
    done = histojax("train", "--config", "tests/helpers/quick_run.py", "--workdir", workdir)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("\ninterrupted: rerun the same command to resume from the last checkpoint\n")
    (session,) = json.loads((workdir / "run.json").read_text())["sessions"]
    assert session["status"] == "interrupted"
    assert checkpoint.complete_steps(checkpoint.series(workdir, "last")) == [3]
    assert not (workdir / ".owner").exists()
