"""Kernels that lie in memory as cuDNN reads them, as on GPUs: the same values, in steps, checkpoints and evaluation."""

import pathlib

import jax
import numpy as np
import pytest

from histojax.distributed.sharding import Layout
from histojax.training import checkpoint
from histojax.training.state import ModelState, all_trees, model_trees, restore
from tests.training import step_test
from tests.training.checkpoint_test import META
from tests.training.step_test import Normed, assert_close, batch, host, train

OUTPUTS_FIRST = (3, 0, 1, 2)
compilations = step_test.compilations


def laid_out(fsdp: int = 1, devices: int = 1) -> Layout:
    """As where there is a GPU."""
    layout = Layout(fsdp, jax.devices()[:devices])
    layout.outputs_first = True
    return layout


def orders(tree) -> dict[str, tuple[int, ...]]:
    """The memory layouts that are not row by row, by path."""
    found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    forms = {path: leaf.format for path, leaf in found.items() if hasattr(leaf, "format")}  # random keys have none
    order = {path: form.layout.major_to_minor for path, form in forms.items() if form.layout is not None}
    return {path: axes for path, axes in order.items() if axes != tuple(range(len(axes)))}


def program(layout: Layout):
    adamw = step_test.OptimizerSpec("adamw", 0.01, 100, schedule="constant")
    return step_test.program.__wrapped__(Normed, layout=layout, optimizer=adamw, ema_decay=0.9)


def test_on_processors_nothing_is_laid_out():
    assert not Layout(1, jax.devices()[:1]).outputs_first
    assert not orders(program(Layout(1, jax.devices()[:1])).init())


def test_values_do_not_depend_on_it_and_nothing_is_compiled_twice(compilations):
    plain, layout = Layout(1, jax.devices()[:1]), laid_out()
    batches = [batch(0), batch(1), batch(2)]
    expected, expected_metrics = train(program(plain), plain, batches)
    made = program(layout)
    made.compile_ahead(step_test.B, step_test.SIZE)
    state = made.init()
    born = orders(state)
    # The kernel, its moving average and Adam's two moments of it; no matrix, no vector.
    assert len(born) == 4
    assert set(born.values()) == {OUTPUTS_FIRST}
    assert orders(made.abstract) == born
    state, metrics = made.train(state, layout.to_device(batches[0]))
    compilations.clear()
    seen = [metrics]
    for one in batches[1:]:
        state, metrics = made.train(state, layout.to_device(one))
        seen.append(metrics)
    assert not compilations
    assert orders(state) == born
    for got, wanted in zip(seen, expected_metrics, strict=True):
        assert {key: float(value) for key, value in got.items()} == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert_close(host(state), host(expected), rtol=1e-4, atol=1e-5)
    assert_close(
        host(made.evaluate(state.model, layout.to_device(batch(3)))),
        host(program(plain).evaluate(expected.model, plain.to_device(batch(3)))),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.devices
def test_it_goes_with_sharded_parameters():
    batches = [batch(0), batch(1)]
    plain, layout = Layout(2, jax.devices()[:4]), laid_out(2, 4)
    expected, _ = train(program(plain), plain, batches)
    state, _ = train(program(layout), layout, batches)
    assert set(orders(state).values()) == {OUTPUTS_FIRST}
    places = jax.tree.map(lambda leaf, wanted: leaf.sharding == wanted.sharding, state, expected)
    assert all(jax.tree.leaves(places))
    assert_close(host(state), host(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("written", [True, False], ids=["written laid out", "written on a processor"])
@pytest.mark.parametrize("read", [True, False], ids=["read laid out", "read on a processor"])
def test_checkpoints_are_the_same_from_and_to_any(tmp_path: pathlib.Path, written: bool, read: bool):
    layouts = {True: laid_out(), False: Layout(1, jax.devices()[:1])}
    state, _ = train(program(layouts[written]), layouts[written], [batch(0)])
    before = host(state)
    with checkpoint.Checkpoints(tmp_path, keep=1) as series:
        series.save(1, all_trees(state), META)
    made = program(layouts[read])
    back, _ = restore(tmp_path / "1", made.abstract)
    jax.tree.map(np.testing.assert_array_equal, host(back), before)
    assert bool(orders(back)) == read
    alone = checkpoint.restore(tmp_path / "1", {"ema": model_trees(made.abstract)["ema"]})["ema"]
    made.evaluate(ModelState(**alone), layouts[read].to_device(batch(1)))
    after, _ = made.train(back, layouts[read].to_device(batch(1)))
    assert orders(after) == orders(made.abstract)
