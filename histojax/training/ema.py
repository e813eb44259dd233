"""Exponential moving average (EMA) of a model's parameters and batch statistics."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from histojax.training.state import ModelState


def decay_at(step: Int[Array, ""], max_decay: float) -> Float[Array, ""]:
    """Return the decay of one update: min(max_decay, (1 + t)/(10 + t)) with t = step + 1.

    The decay starts small, so that the average soon forgets the initial values (TensorFlow's
    `ExponentialMovingAverage` with `num_updates`).

    Args:
      step: number of updates done before this one.
      max_decay: upper limit of the decay, reached after the warm-up.
    """
    updates = step.astype(jnp.float32) + 1
    return jnp.minimum(max_decay, (1 + updates) / (10 + updates))


def update_average(average: ModelState, model: ModelState, step: Int[Array, ""], max_decay: float) -> ModelState:
    """Move the average towards the model: decay · average + (1 - decay) · model.

    Args:
      average: moving average before this update.
      model: the model after this update.
      step: number of updates done before this one.
      max_decay: see `decay_at`.

    Returns:
      The new average. Random streams are not averaged: they are those of the model.
    """
    decay = decay_at(step, max_decay)

    def mean(old: jax.Array, new: jax.Array) -> jax.Array:
        return old * decay + new * (1 - decay)

    return ModelState(
        jax.tree.map(mean, average.params, model.params), jax.tree.map(mean, average.stats, model.stats), model.rng
    )
