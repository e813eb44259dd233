"""Gradient accumulation: one update from the gradients of several micro-batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from histojax.training.state import ModelState


class StepSums(NamedTuple):
    """Sums over the images of a batch; the sums of its parts add up to them.

    Attributes:
      grads: gradients of `loss`, a tree like the parameters.
      loss: the weighted sum of losses, divided by the loss weight of the whole batch.
      num_correct: number of correct images.
    """

    grads: Any
    loss: Float[Array, ""]
    num_correct: Float[Array, ""]


MicroStep = Callable[..., tuple[ModelState, StepSums]]


def accumulate(
    micro_step: MicroStep, model: ModelState, arrays: tuple[Shaped[Array, "b ..."], ...], count: int
) -> tuple[ModelState, StepSums]:
    """Run a function on one micro-batch after another, and add up its sums.

    Micro-batch i has the images i, i + count, i + 2·count, …: a device that holds a contiguous block of the batch
    finds an equal part of every micro-batch in it, so no image moves between devices.

    Args:
      micro_step: `micro_step(model, *arrays)` of one micro-batch; returns the model with its new batch statistics
        and random streams, and the sums.
      model: the model before the batch.
      arrays: arrays of the batch; `count` divides b.
      count: number of micro-batches; with 1, `micro_step` gets the batch itself.

    Returns:
      The model after the last micro-batch, and the sums over all of them.
    """
    if count == 1:
        return micro_step(model, *arrays)
    micro_batches = tuple(jnp.moveaxis(a.reshape(a.shape[0] // count, count, *a.shape[1:]), 1, 0) for a in arrays)

    def body(
        carry: tuple[ModelState, StepSums], micro_batch: tuple[jax.Array, ...]
    ) -> tuple[tuple[ModelState, StepSums], None]:
        model, sums = carry
        model, more = micro_step(model, *micro_batch)
        return (model, jax.tree.map(jnp.add, sums, more)), None

    zero = StepSums(jax.tree.map(jnp.zeros_like, model.params), jnp.zeros([]), jnp.zeros([]))
    return jax.lax.scan(body, (model, zero), micro_batches)[0]
