"""Linear heads as published benchmarks train them, by gradient descent on the raw features: THUNDER's and eva's.

Read from https://github.com/MICS-Lab/thunder (`tasks/train_eval_probe.py`) and https://github.com/kaiko-ai/eva
(`configs/vision/pathology/offline/classification/breakhis.yaml`). Random numbers differ from theirs.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.metrics import f1_score

from histojax.evaluation.metrics import Array
from histojax.studies.probe.heads import Problem

THUNDER_RATES, THUNDER_DECAYS = (1e-3, 1e-4, 1e-5), (0.0, 1e-3, 1e-4)
THUNDER_EPOCHS, THUNDER_BATCH = 200, 64
EVA_RATE, EVA_DECAY, EVA_BATCH, EVA_STEPS, EVA_RUNS = 3e-4, 1e-2, 256, 12_500, 5
Weights = dict[str, Any]  # "kernel" [d, k] and "bias" [k], with a leading axis for several heads


@dataclasses.dataclass(frozen=True)
class Trained:
    """Heads after each epoch.

    Attributes:
      kernels: f32 [epochs, heads, d, k].
      biases: f32 [epochs, heads, k].
    """

    kernels: Array
    biases: Array


def thunder_linear(problem: Problem, seed: int = 0) -> tuple[Array, dict[str, float]]:
    """Train nine heads with Adam for 200 epochs; use the first checkpoint with the best macro F1 in validation.

    The order is that of epochs, then of learning rates and weight decays. Weight decay is added to the gradient.

    Returns:
      Probabilities of the test images, f64 [m, k], and the chosen setting.

    Raises:
      ValueError: the problem has no validation images.
    """
    ((train, val),) = problem.choosing
    grid = [(rate, decay) for rate in THUNDER_RATES for decay in THUNDER_DECAYS]

    def optimizer(rate: Any, decay: Any) -> optax.GradientTransformation:
        return optax.chain(optax.add_decayed_weights(decay), optax.adam(rate))

    x, labels = problem.features[train], problem.labels[train]
    steps = -(-len(train) // THUNDER_BATCH)
    orders = np.stack([batches(len(train), THUNDER_BATCH, THUNDER_EPOCHS * steps, seed)] * len(grid))
    starts = _initial(x.shape[1], problem.n_classes, len(grid), seed)
    trained = descend(x, labels, orders, np.array(grid, np.float32), starts, optimizer, keep_every=steps)
    outputs = np.einsum("nd,ehdk->ehnk", problem.features[val], trained.kernels, optimize=True)
    answers = (outputs + trained.biases[:, :, None]).argmax(3).reshape(-1, len(val))
    scores = [f1_score(problem.labels[val], answer, average="macro") for answer in answers]
    epoch, head = np.unravel_index(int(np.argmax(scores)), trained.biases.shape[:2])
    logits = problem.features[problem.test] @ trained.kernels[epoch, head] + trained.biases[epoch, head]
    return _softmax(logits), {"rate": grid[head][0], "decay": grid[head][1], "epoch": int(epoch) + 1}


def eva_linear(problem: Problem, steps: int = EVA_STEPS, seed: int = 0) -> list[tuple[Array, dict[str, float]]]:
    """Train five heads with AdamW in batches of 256.

    eva stops early, and takes the best checkpoint, on the images that it reports. Here every run ends after `steps`, so
    that the tested images choose nothing.

    Returns:
      For each run the probabilities of the test images, f64 [m, k], and its seed.
    """
    x, labels = problem.features[problem.train], problem.labels[problem.train]

    def optimizer(rate: Any, decay: Any) -> optax.GradientTransformation:
        return optax.adamw(rate, weight_decay=decay)

    seeds = range(seed, seed + EVA_RUNS)
    orders = np.stack([batches(len(x), EVA_BATCH, steps, one) for one in seeds])
    settings = np.array([(EVA_RATE, EVA_DECAY)] * EVA_RUNS, np.float32)
    starts = _initial(x.shape[1], problem.n_classes, EVA_RUNS, seed)
    trained = descend(x, labels, orders, settings, starts, optimizer, keep_every=steps)
    test = problem.features[problem.test]
    return [
        (_softmax(test @ trained.kernels[-1, run] + trained.biases[-1, run]), {"seed": one})
        for run, one in enumerate(seeds)
    ]


def batches(count: int, size: int, steps: int, seed: int) -> Array:
    """Draw batches, every image once per epoch; the last batch of an epoch may be shorter, which -1 fills up.

    Returns:
      Positions, i32 [steps, size].
    """
    rng = np.random.default_rng(seed)
    per_epoch = -(-count // size)
    out = np.full((-(-steps // per_epoch), per_epoch * size), -1, np.int32)
    for epoch in out:
        epoch[:count] = rng.permutation(count)
    return out.reshape(-1, size)[:steps]


def descend(
    x: Array,
    labels: Array,
    orders: Array,
    settings: Array,
    starts: Weights,
    optimizer: Callable[[Any, Any], optax.GradientTransformation],
    keep_every: int,
) -> Trained:
    """Train independent linear heads with cross-entropy.

    Args:
      x: features f32 [n, d].
      labels: class indices, [n].
      orders: the batches of each head: positions i32 [heads, steps, batch], -1 for none.
      settings: learning rate and weight decay of each head, f32 [heads, 2].
      starts: initial weights, with a leading axis of heads.
      optimizer: learning rate, weight decay -> the optimizer.
      keep_every: steps between the weights that are returned; divides the number of steps.
    """
    features, classes = jnp.asarray(x, jnp.float32), jnp.asarray(labels)
    epochs = jnp.asarray(orders).reshape(len(orders), -1, keep_every, orders.shape[2])

    def loss(weights: Weights, batch: jax.Array) -> jax.Array:
        mask = batch >= 0
        logits = features[batch] @ weights["kernel"] + weights["bias"][None]
        terms = optax.softmax_cross_entropy_with_integer_labels(logits, classes[batch])
        return jnp.sum(jnp.where(mask, terms, 0.0)) / jnp.sum(mask)

    def one_head(setting: jax.Array, start: Weights, head_epochs: jax.Array) -> Weights:
        rule = optimizer(setting[0], setting[1])

        def step(carry: Any, batch: jax.Array) -> tuple[Any, None]:
            weights, state = carry
            updates, state = rule.update(jax.grad(loss)(weights, batch), state, weights)
            return (optax.apply_updates(weights, updates), state), None

        def epoch(carry: Any, epoch_batches: jax.Array) -> tuple[Any, Weights]:
            carry, _ = jax.lax.scan(step, carry, epoch_batches)
            return carry, carry[0]

        return jax.lax.scan(epoch, (start, rule.init(start)), head_epochs)[1]

    kept = jax.jit(jax.vmap(one_head, out_axes=1))(jnp.asarray(settings), starts, epochs)
    return Trained(np.asarray(kept["kernel"]), np.asarray(kept["bias"]))


def _initial(width: int, n_classes: int, heads: int, seed: int) -> Weights:
    """Draw weights as PyTorch's `Linear` does: uniform in ±1/√d."""
    rng, bound = np.random.default_rng([seed, 1]), width**-0.5
    draw = functools.partial(rng.uniform, -bound, bound)
    return {
        "kernel": jnp.asarray(draw((heads, width, n_classes)), jnp.float32),
        "bias": jnp.asarray(draw((heads, n_classes)), jnp.float32),
    }


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))
