"""DALAResNet50 against its PyTorch twin: logits, gradients and twenty steps of training."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from histojax import models
from histojax.models.rngs import seeded
from tests.helpers import parity
from tests.helpers.dala_resnet_torch import DALAResNet50
from tests.helpers.modules import call

pytestmark = pytest.mark.parity
CLASSES = 5
# At 1e-3, float32 rounding grows to 1.2e-3 of the loss by step 19; in float64 the two then agree to 2e-15.
LEARNING_RATE = 3e-4


def values(branch: float) -> parity.Draw:
    """As `parity.normed_values`; the statistics have a generator of their own."""
    draw, statistics = parity.normed_values(branch), np.random.default_rng(1)
    return lambda path, shape, rng: draw(path, shape, statistics if path.endswith(("mean", "var")) else rng)


def make_pair(
    attention: str, head: str, branch: float = 0.5, *, training: bool = False, dtype: Any = np.float32
) -> parity.Pair:
    def make() -> nnx.Module:
        return models.create(
            "dala_resnet50",
            num_classes=CLASSES,
            attention=attention,
            head=head,
            dropout=0.0,
            dtype=dtype,
            rngs=seeded(default=0),
        )

    twin = DALAResNet50(CLASSES, attention, head)
    return parity.make_pair(make, twin, values(branch), training=training, dtype=dtype)


def batch(b: int, size: int, dtype: Any = np.float32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random images (b, size, size, 3) and labels (b,)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(b, size, size, 3)).astype(dtype)
    return x, rng.integers(0, CLASSES, b)


@pytest.mark.parametrize("attention", ["none", "layer4", "layer4_blocks"])
@pytest.mark.parametrize("head", ["linear", "dual"])
def test_logits_equal_the_twins(attention: str, head: str) -> None:
    pair = make_pair(attention, head)
    x, _ = batch(2, 96)
    theirs = {"logits": parity.torch_logits(pair.twin, x)}
    parity.assert_outputs_equal({"logits": call(pair.model, x)}, theirs, f"{attention} {head}")


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["layer4", "layer4_blocks"])
def test_gradients_in_train_mode_equal_the_twins(attention: str) -> None:
    # In float64: batch norm over the few values of layer4 amplifies float32 rounding beyond any honest tolerance.
    with jax.enable_x64(True):
        pair = make_pair(attention, "dual", training=True, dtype=np.float64)
        parity.assert_steps_equal(pair, *batch(4, 64, np.float64))


@pytest.mark.slow
def test_losses_of_twenty_steps_equal_the_twins() -> None:
    pair = make_pair("layer4", "dual", branch=0.2, training=True)
    graphdef, params, stats, rest = parity.split(pair.model)
    loss_and_grads = jax.value_and_grad(parity.loss_function(graphdef), has_aux=True)
    tx = optax.sgd(LEARNING_RATE, momentum=0.9)

    @jax.jit
    def step(params: Any, stats: Any, opt: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any, Any, jax.Array]:
        (loss, stats), grads = loss_and_grads(params, x, y, stats, rest)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), stats, opt, loss

    opt = tx.init(params)
    sgd = torch.optim.SGD(pair.twin.parameters(), lr=LEARNING_RATE, momentum=0.9)
    ours, theirs = [], []
    for i in range(20):
        x, y = batch(8, 64, seed=i % 4)
        params, stats, opt, loss = step(params, stats, opt, x, y)
        ours.append(float(loss))
        sgd.zero_grad()
        loss_torch = torch.nn.functional.cross_entropy(pair.twin(parity.to_torch(x)), torch.from_numpy(y))
        loss_torch.backward()
        sgd.step()
        theirs.append(loss_torch.item())
    errors = np.abs(np.array(ours) / theirs - 1)
    print(f"losses {ours[0]:.3f} .. {ours[-1]:.3f}, worst error {errors.max():.1e} at step {errors.argmax()}")
    assert ours[-1] < 0.9 * ours[0]
    assert errors.max() < 1e-3, errors
