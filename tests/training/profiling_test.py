"""Profiles: operations read from real traces, and a training run that writes one."""

import gzip
import json
import logging
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from histojax.core.errors import RunError
from histojax.training import profiling
from tests.helpers import quick_run
from tests.helpers.warm_start import run


@jax.jit
def _heavy(x: jax.Array) -> jax.Array:
    def body(_: int, y: jax.Array) -> jax.Array:
        return jnp.tanh(y @ x) / 100

    return jax.lax.fori_loop(0, 3, body, x)


def test_the_most_expensive_operations_of_a_trace(tmp_path: pathlib.Path) -> None:
    x = jnp.ones((1200, 1200))  # large, because elementwise operations of tests are not optimized
    jax.block_until_ready(_heavy(x))
    for repeats in (5, 2):  # the second trace replaces the first one
        time.sleep(1.1)  # traces are named by the second
        profiling.start(tmp_path)
        for _ in range(repeats):
            jax.block_until_ready(_heavy(x))
        jax.profiler.stop_trace()
    found = profiling.operations(tmp_path, _heavy.lower(x).compile().as_text() or "")
    assert found[0].kind.endswith("dot_general")
    assert found[0].shape == "f32[1200,1200]"
    assert found[0].runs == 2 * 3
    assert found[0].share > 0.5
    assert sum(one.share for one in found) == pytest.approx(1)
    assert not any(one.name.startswith("while") for one in found), "a loop's time is that of the operations in it"
    assert [one.seconds for one in found] == sorted((one.seconds for one in found), reverse=True)
    first_row = profiling.table(found, 2).splitlines()[1]
    assert first_row.split()[0] == f"{found[0].seconds / 2 * 1e3:.2f}"
    assert first_row.endswith("f32[1200,1200]")


def test_a_missing_trace_and_an_empty_one_are_reported(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RunError, match="no trace"):
        profiling.operations(tmp_path)
    profiling.start(tmp_path)
    jax.profiler.stop_trace()
    with pytest.raises(RunError, match="has no operation of a compiled program"):
        profiling.operations(tmp_path)


def test_a_run_too_short_for_a_profile_says_so(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "histojax.training.profiling"), profiling.Profile(tmp_path) as profiler:
        for _ in range(4):  # the trace has begun
            profiler.after_step(_heavy(jnp.ones((8, 8))), lambda: pytest.fail("the trace did not end"))
    assert "it needs 8 steps, but the run had 4" in caplog.text


@pytest.mark.slow
def test_training_with_a_profile(tmp_path: pathlib.Path) -> None:
    root = quick_run.images(tmp_path / "images", 8)
    arguments = ["--config=tests/helpers/tiny_config.py", f"--workdir={tmp_path / 'run'}", "--profile"]
    arguments += [f"--config.data.root={root}", "--config.train.epochs=2"]
    done = run([sys.executable, "-m", "histojax.main", *arguments])
    assert done.returncode == 0, done.stderr
    lines = done.stderr.partition(f"5 steps, traced in {tmp_path / 'run' / 'profile'}:\n")[2].splitlines()
    assert lines[0].split() == ["ms", "per", "step", "fraction", "operation", "kind", "result"]
    assert lines[11] == "", "ten operations"
    assert any("dot_general" in line for line in lines[12:25])
    (trace,) = (tmp_path / "run" / "profile").glob("plugins/profile/*/*.trace.json.gz")
    with gzip.open(trace) as file:
        assert json.load(file)["traceEvents"]
