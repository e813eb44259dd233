"""Convolution kernels stored as cuDNN reads them, as on GPUs: steps, evaluation and checkpoints do not change."""

import functools
import pathlib

import jax
import pytest

from histojax.distributed.sharding import Layout
from histojax.training import checkpoint
from histojax.training.optimizer import OptimizerSpec
from histojax.training.program import Program
from histojax.training.state import ModelState, all_trees, model_trees, restore
from tests.helpers.step_models import SIZE, B, Normed, assert_close, assert_equal, build_program, make_batch, train

OUTPUTS_FIRST = (3, 0, 1, 2)
ADAMW = OptimizerSpec("adamw", 0.01, 100, schedule="constant")


@functools.cache
def layout_of(outputs_first: bool, count: int = 1, fsdp: int = 1) -> Layout:
    """A layout on CPU devices, with the memory layouts of GPUs if `outputs_first`."""
    layout = Layout(fsdp, jax.devices()[:count])
    layout.outputs_first = outputs_first
    return layout


def new_program(layout: Layout) -> Program:
    return build_program(Normed, layout=layout, optimizer=ADAMW, ema_decay=0.9)


cached_program = functools.cache(new_program)


def orders(tree) -> dict[str, tuple[int, ...]]:
    """The memory layouts that are not row-major, by path."""
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    formats = {path: leaf.format for path, leaf in leaves.items() if hasattr(leaf, "format")}  # random keys have none
    axes = {path: form.layout.major_to_minor for path, form in formats.items() if form.layout is not None}
    return {path: order for path, order in axes.items() if order != tuple(range(len(order)))}


def test_on_cpus_all_arrays_are_row_major():
    assert not Layout(1, jax.devices()[:1]).outputs_first
    assert not orders(cached_program(layout_of(False)).init())


def test_values_do_not_depend_on_the_layout_and_nothing_is_compiled_twice(compilations):
    plain, layout = layout_of(False), layout_of(True)
    batches = [make_batch(0), make_batch(1), make_batch(2)]
    expected, expected_metrics = train(cached_program(plain), plain, batches)
    program = new_program(layout)
    program.compile_ahead(B, SIZE)
    state = program.init()
    initial = orders(state)
    # The kernel, its moving average and its two moments of Adam; no matrix, no vector.
    assert len(initial) == 4
    assert set(initial.values()) == {OUTPUTS_FIRST}
    assert orders(program.abstract) == initial
    state, metrics = program.train(state, layout.to_device(batches[0]))
    compilations.clear()
    history = [metrics]
    for batch in batches[1:]:
        state, metrics = program.train(state, layout.to_device(batch))
        history.append(metrics)
    assert not compilations
    assert orders(state) == initial
    for actual, desired in zip(history, expected_metrics, strict=True):
        assert {key: float(value) for key, value in actual.items()} == pytest.approx(desired, rel=1e-5, abs=1e-6)
    assert_close(state, expected, rtol=1e-4, atol=1e-5)
    assert_close(
        program.evaluate(state.model, layout.to_device(make_batch(3))),
        cached_program(plain).evaluate(expected.model, plain.to_device(make_batch(3))),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.devices
def test_it_works_with_sharded_parameters():
    batches = [make_batch(0), make_batch(1)]
    plain, layout = layout_of(False, 4, fsdp=2), layout_of(True, 4, fsdp=2)
    expected, _ = train(new_program(plain), plain, batches)
    state, _ = train(new_program(layout), layout, batches)
    assert set(orders(state).values()) == {OUTPUTS_FIRST}
    unchanged = jax.tree.map(lambda leaf, other: leaf.sharding == other.sharding, state, expected)
    assert all(jax.tree.leaves(unchanged))
    assert_close(state, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("written", [True, False], ids=["written outputs first", "written row-major"])
@pytest.mark.parametrize("read", [True, False], ids=["read outputs first", "read row-major"])
def test_checkpoints_do_not_depend_on_the_memory_layout(tmp_path: pathlib.Path, written: bool, read: bool):
    state, _ = train(cached_program(layout_of(written)), layout_of(written), [make_batch(0)])
    with checkpoint.Checkpoints(tmp_path, keep=1) as series:
        series.save(1, all_trees(state), {"format": checkpoint.FORMAT})
    program, layout = cached_program(layout_of(read)), layout_of(read)
    restored, _ = restore(tmp_path / "1", program.abstract)
    assert_equal(restored, state)
    assert bool(orders(restored)) == read
    ema = checkpoint.restore(tmp_path / "1", {"ema": model_trees(program.abstract)["ema"]})["ema"]
    program.evaluate(ModelState(**ema), layout.to_device(make_batch(1)))
    after, _ = program.train(restored, layout.to_device(make_batch(1)))
    assert orders(after) == orders(program.abstract)
