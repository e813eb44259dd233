"""How large a model is: parameters and floating-point operations."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from histojax import models
from histojax.models.ops import kernels
from histojax.models.rngs import seeded


def cost(name: str, num_classes: int, size: int, options: Mapping[str, Any]) -> tuple[int, float]:
    """Parameters, and floating-point operations of one image of size × size, as XLA counts the forward pass."""
    abstract = nnx.eval_shape(lambda: models.create(name, num_classes=num_classes, rngs=seeded(default=0), **options))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract, nnx.Param)))
    graph, state = nnx.split(nnx.view(abstract, use_running_average=True, deterministic=True, raise_if_not_found=False))

    def forward(state: Any, images: jax.Array) -> jax.Array:
        with kernels.disable_custom_kernels():
            logits: jax.Array = nnx.merge(graph, state)(images)
        return logits

    images = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    with jax.default_device(_counting_device()):
        counted = jax.jit(forward).lower(state, images).cost_analysis() or {}
    return parameters, float(counted.get("flops", float("nan")))


def _counting_device() -> jax.Device | None:
    """The CPU, because GPUs do not count what is not compiled; the default where there is none for jax."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
