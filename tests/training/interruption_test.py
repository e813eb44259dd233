"""A signal outside the loop: the run ends as one that can be resumed."""

import os
import pathlib
import signal
from collections.abc import Callable

import pytest

from histojax.core.errors import RunError
from histojax.training import loop
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
    for name in ("open_dataset", "BestTracker"):
        with monkeypatch.context() as patch:
            patch.setattr(loop, name, interrupting(getattr(loop, name)))
            assert not loop.train_and_evaluate(config, workdir), name
        assert not (workdir / "checkpoints" / "last").is_dir() or not any((workdir / "checkpoints" / "last").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(loop.checkpoint, "find", interrupting(loop.checkpoint.find))
        assert not loop.train_and_evaluate(config, workdir)
    assert any((workdir / "checkpoints" / "last").iterdir())
    assert not (workdir / "results.json").exists()

    assert loop.train_and_evaluate(config, workdir)
    assert (workdir / "results.json").exists()
