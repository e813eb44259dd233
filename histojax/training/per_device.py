"""Training steps whose batch normalisation sees the images of one device only."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, Shaped

from histojax.training.accumulate import MicroStep, StepSums
from histojax.training.state import ModelState

MapOverDevices = Callable[[Callable[..., tuple[Any, Any, Any]]], Callable[..., tuple[Any, Any, Any]]]


def per_device_step(
    loss_and_grads: MicroStep,
    map_over_devices: MapOverDevices,
    model: ModelState,
    weight: Float[Array, ""],
    *arrays: Shaped[Array, "b ..."],
) -> tuple[ModelState, StepSums]:
    """Run `loss_and_grads` on each device's images separately, and combine the results.

    Args:
      loss_and_grads: `loss_and_grads(model, weight, *arrays)` of one device's images.
      map_over_devices: `Layout.map_over_devices`.
      model: the model, the same on all devices.
      weight: loss weight of the whole batch.
      *arrays: arrays of the whole batch.

    Returns:
      The model, with the mean over devices of the running statistics, and the sums over all devices.
    """

    def on_one_device(device: jax.Array, same_on_all: Any, arrays: Any) -> tuple[Any, StepSums, Any]:
        model, weight = same_on_all
        # Each device draws its own random numbers, but the streams advance alike and so stay the same on all devices.
        own = jax.tree.map(lambda leaf: jax.random.fold_in(leaf, device) if _is_key(leaf) else leaf, model.rng)
        after, sums = loss_and_grads(dataclasses.replace(model, rng=own), weight, *arrays)
        rng = jax.tree.map(lambda old, new: old if _is_key(old) else new, model.rng, after.rng)
        return after.stats, sums, rng

    stats, sums, rng = map_over_devices(on_one_device)((model, weight), arrays)
    return ModelState(model.params, stats, rng), sums


def _is_key(leaf: jax.Array) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
