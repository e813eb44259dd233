"""LDCSF in a training step with several labels: on any devices, in bfloat16, rematerialised."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from histojax import models
from histojax.distributed.sharding import Layout
from histojax.models.ops import kernels
from histojax.training.optimizer import OptimizerSpec
from histojax.training.program import Program, StepSpec
from histojax.training.state import TrainState
from histojax.training.tasks import Multilabel
from tests.helpers.step_models import devices, random_state

# Windows of 2 on maps of 8 and 4: shifted and masked in the first stage, not shifted in the second.
SMALL = {"embed_dim": 16, "depths": (2, 1), "heads": (2, 2), "window": 2, "resnet_blocks": 1}
SIZE, B = 32, 8
TASK = Multilabel(("interstitial", "necrosis", "non_tumor", "tumor"), (1.0, 3.0, 1.0, 0.5))
SGD = OptimizerSpec("sgd", 0.05, 100, schedule="constant", clip_norm=1.0)


def build_program(
    layout: Layout,
    *,
    dtype: jnp.dtype = jnp.float32,
    remat: bool = False,
    stochastic_depth: float = 0.3,
) -> Program:
    def make_model(rngs: nnx.Rngs) -> nnx.Module:
        options = SMALL | {"stochastic_depth": stochastic_depth}
        return models.create("ldcsf", num_classes=4, rngs=rngs, dtype=dtype, remat=remat, **options)

    spec = StepSpec((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), ema_decay=0.9)
    return Program(make_model, TASK, SGD, spec, layout)


cached_program = functools.cache(build_program)


def make_batch(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (B, SIZE, SIZE, 3), dtype=np.uint8),
        "labels": rng.integers(0, 2, (B, 4)).astype(np.float32),
        "mask": np.array([True] * (B - 1) + [False]),
    }


def train(program: Program, layout: Layout) -> tuple[TrainState, list[float]]:
    """The state after three steps, and the loss of each."""
    state, losses = random_state(program), []
    for seed in range(3):
        state, metrics = program.train(state, layout.to_device(make_batch(seed)))
        losses.append(float(metrics["loss"]))
    return state, losses


def evaluate(program: Program, state: TrainState, layout: Layout) -> jax.Array:
    return program.evaluate(state.model, layout.to_device(make_batch(9)))["probabilities"]


@functools.cache
def trained_on_one() -> tuple[TrainState, list[float], jax.Array]:
    """State, losses and probabilities on a single device, which the other programs must reproduce."""
    program, layout = cached_program(devices(1)), devices(1)
    state, losses = train(program, layout)
    return state, losses, evaluate(program, state, layout)


@pytest.mark.slow
@pytest.mark.devices
def test_training_depends_neither_on_the_devices_nor_on_rematerialisation():
    expected, expected_losses, expected_probabilities = trained_on_one()
    layout = devices(4, fsdp=2)  # two pairs of devices; each pair holds all parameters between them
    program = build_program(layout, remat=True)
    state, losses = train(program, layout)  # with stochastic depth, whose drops are drawn for the global batch
    assert losses == pytest.approx(expected_losses, rel=2e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-5), expected.model.params, state.model.params
    )
    specs = {leaf.sharding.spec for leaf in jax.tree.leaves(state.model.params)}
    assert any("fsdp" in str(spec) for spec in specs)
    np.testing.assert_allclose(expected_probabilities, evaluate(program, state, layout), atol=1e-4)


@pytest.mark.devices
def test_gpu_kernels_give_the_same_training_and_each_device_runs_them_on_its_own_images(monkeypatch):
    _, expected_losses, expected_probabilities = trained_on_one()
    shapes = set()

    def call(kernel, **arguments):
        out = arguments["out_shape"]
        shapes.add((out if isinstance(out, tuple) else (out,))[0].shape)
        return original(kernel, **arguments)

    original = kernels.call
    monkeypatch.setattr(kernels, "call", call)
    monkeypatch.setattr(kernels, "window_kernel_supports", lambda *_: True)
    monkeypatch.setattr(kernels, "row_kernel_supports", lambda *_: True)
    layout = devices(4, fsdp=2)
    program = build_program(layout)
    state, losses = train(program, layout)
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    np.testing.assert_allclose(expected_probabilities, evaluate(program, state, layout), atol=2e-4)
    positions = 8 * 8
    assert {(B // 4, positions, 16), (B // 4 * positions, 16)} <= shapes
    assert not {(B, positions, 16), (B * positions, 16)} & shapes


def test_bfloat16_trains_nearly_the_same_and_keeps_float32_parameters():
    state, losses = train(build_program(devices(1), dtype=jnp.bfloat16), devices(1))
    assert losses == pytest.approx(trained_on_one()[1], rel=0.03)
    assert losses != trained_on_one()[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(state.model.params)} == {jnp.dtype("float32")}


def test_stochastic_depth_is_off_in_evaluation():
    program = cached_program(devices(1))
    state = random_state(program)
    first, second = (evaluate(program, state, devices(1)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    plain = build_program(devices(1), stochastic_depth=0.0)
    np.testing.assert_allclose(first, evaluate(plain, random_state(plain), devices(1)), rtol=1e-5)
