"""A training step of every model: on four devices, data- and parameter-sharded, it is the step on one."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from histojax import models
from histojax.distributed.sharding import Layout
from histojax.training.optimizer import OptimizerSpec, make_optimizer
from histojax.training.step import Program, StepSpec
from histojax.training.tasks import Multiclass

TASK = Multiclass(("a", "b", "c"), (1.0, 0.5, 1.5))
SGD = OptimizerSpec("sgd", 0.01, 100, schedule="constant")
B, K, SIZE = 8, 3, 32


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    """Most of the time here would go into optimizing programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def step(name: str, layout: Layout, batch: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """Train for one step from the same initial values, with drops, which must be drawn for the global batch."""
    spec = models.spec(name)
    options = {**spec.small, **dict.fromkeys(spec.drop_options, 0.3)}

    def make_model(rngs: nnx.Rngs) -> nnx.Module:
        return models.create(name, num_classes=K, rngs=rngs, **options)

    program = Program(make_model, TASK, make_optimizer(SGD), StepSpec((0.5,) * 3, (0.2,) * 3), layout)
    state, metrics = program.train(program.init(), layout.to_device(batch))
    return state.model, metrics


@functools.cache
def layout(fsdp: int, devices: int) -> Layout:
    return Layout(fsdp, jax.devices()[:devices])


@pytest.mark.devices
# ldcsf has this test, over three steps with several labels, in ldcsf_step_test.py.
@pytest.mark.parametrize("name", sorted(set(models.names()) - {"ldcsf"}))
def test_four_devices_take_the_step_of_one(name: str) -> None:
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (B, SIZE, SIZE, 3), dtype=np.uint8),
        "label": rng.integers(0, K, B).astype(np.int32),
        "mask": np.array([True] * (B - 1) + [False]),
    }
    wanted, one = step(name, layout(1, 1), batch)
    found, four = step(name, layout(2, 4), batch)
    specs = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(found.params)}
    assert any("fsdp" in spec for spec in specs), specs
    assert float(four["loss"]) == pytest.approx(float(one["loss"]), rel=1e-4)
    assert float(four["grad_norm"]) == pytest.approx(float(one["grad_norm"]), rel=1e-3)
    for ours, theirs in ((found.params, wanted.params), (found.stats, wanted.stats)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)
