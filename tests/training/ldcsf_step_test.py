"""LDCSF in a training step with several labels: on any devices, in bfloat16, rematerialised and accumulated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from histojax import models
from histojax.distributed.sharding import Layout
from histojax.models.ops import kernels
from histojax.training.optimizer import OptimizerSpec, make_optimizer
from histojax.training.program import Program, StepSpec
from histojax.training.tasks import Multilabel

# Windows of 2 on maps of 8, 4 and 2: shifted and masked in the first two stages.
SMALL = {"embed_dim": 16, "depths": (2, 2, 1), "heads": (2, 2, 4), "window": 2, "resnet_blocks": 1}
SIZE, B = 32, 8
TASK = Multilabel(("interstitial", "necrosis", "non_tumor", "tumor"), (1.0, 3.0, 1.0, 0.5))
SGD = OptimizerSpec("sgd", 0.05, 100, schedule="constant", clip_norm=1.0)


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    """Half of the time here would go into optimizing programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def program(layout, *, dtype=jnp.float32, remat=False, stochastic_depth=0.0, accumulate=1):
    def make_model(rngs: nnx.Rngs) -> nnx.Module:
        options = SMALL | {"stochastic_depth": stochastic_depth}
        return models.create("ldcsf", num_classes=4, rngs=rngs, dtype=dtype, remat=remat, **options)

    spec = StepSpec((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), accumulate=accumulate, ema_decay=0.9)
    return Program(make_model, TASK, make_optimizer(SGD), spec, layout)


@functools.cache
def layout(fsdp=1, devices=1):
    return Layout(fsdp, jax.devices()[:devices])


def batch(seed):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (B, SIZE, SIZE, 3), dtype=np.uint8),
        "labels": rng.integers(0, 2, (B, 4)).astype(np.float32),
        "mask": np.array([True] * (B - 1) + [False]),
    }


def train(made, on, steps=3):
    state, losses = made.init(), []
    for seed in range(steps):
        state, metrics = made.train(state, on.to_device(batch(seed)))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.devices
def test_training_does_not_depend_on_the_devices():
    fsdp, devices = 2, 4  # two that have all parameters between them, twice
    # Random drops and all: they are drawn for the global batch.
    state, wanted = train(program(layout(), stochastic_depth=0.3), layout())
    made = program(layout(fsdp, devices), stochastic_depth=0.3)
    sharded, got = train(made, layout(fsdp, devices))
    assert got == pytest.approx(wanted, rel=2e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-5), state.model.params, sharded.model.params
    )
    specs = {leaf.sharding.spec for leaf in jax.tree.leaves(sharded.model.params)}
    assert any("fsdp" in str(spec) for spec in specs)
    on = layout(fsdp, devices)
    here = program(layout(), stochastic_depth=0.3).evaluate(state.model, layout().to_device(batch(9)))["probabilities"]
    there = made.evaluate(sharded.model, on.to_device(batch(9)))["probabilities"]
    np.testing.assert_allclose(here, there, atol=1e-4)


@pytest.mark.devices
def test_with_kernels_for_gpus_it_learns_the_same_and_each_device_has_its_share(monkeypatch):
    state, wanted = train(program(layout()), layout())
    here = program(layout()).evaluate(state.model, layout().to_device(batch(9)))["probabilities"]
    shares = set()

    def call(kernel, **given):
        shape = given["out_shape"] if isinstance(given["out_shape"], tuple) else (given["out_shape"],)
        shares.add(shape[0].shape)
        return original(kernel, **given)

    original = kernels.call
    monkeypatch.setattr(kernels, "call", call)
    monkeypatch.setattr(kernels, "window_kernel_supports", lambda *_: True)
    monkeypatch.setattr(kernels, "takes_rows", lambda *_: True)
    on = layout(2, 4)
    made = program.__wrapped__(on)
    sharded, got = train(made, on)
    assert got == pytest.approx(wanted, rel=1e-4)
    probabilities = made.evaluate(sharded.model, on.to_device(batch(9)))["probabilities"]
    np.testing.assert_allclose(here, probabilities, atol=2e-4)
    positions = 8 * 8
    assert {(B // 4, positions, 16), (B // 4 * positions, 16)} <= shares
    assert not {(B, positions, 16), (B * positions, 16)} & shares


def test_rematerialised_it_learns_the_same():
    _, wanted = train(program(layout(), stochastic_depth=0.3), layout())
    _, got = train(program(layout(), stochastic_depth=0.3, remat=True), layout())
    assert got == pytest.approx(wanted, rel=1e-5)


def test_in_bfloat16_it_learns_nearly_the_same_and_keeps_float32_parameters():
    _, wanted = train(program(layout()), layout())
    state, got = train(program(layout(), dtype=jnp.bfloat16), layout())
    assert got == pytest.approx(wanted, rel=0.03)
    assert got != wanted
    assert {leaf.dtype for leaf in jax.tree.leaves(state.model.params)} == {jnp.dtype("float32")}


def test_micro_batches_make_a_step():
    _, got = train(program(layout(), accumulate=2), layout())
    assert all(np.isfinite(got))


def test_stochastic_depth_is_off_in_evaluation():
    made = program(layout(), stochastic_depth=0.3)
    state = made.init()
    one, other = (made.evaluate(state.model, layout().to_device(batch(0)))["probabilities"] for _ in range(2))
    np.testing.assert_array_equal(one, other)
    plain = program(layout())
    np.testing.assert_allclose(
        one, plain.evaluate(plain.init().model, layout().to_device(batch(0)))["probabilities"], rtol=1e-5
    )
