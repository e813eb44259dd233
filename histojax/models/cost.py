"""Size of a model, without allocating it: parameters, feature maps, floating-point operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from histojax.models.ops import kernels
from histojax.models.ops.intermediates import listening
from histojax.models.registry import create
from histojax.models.rngs import seeded

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Size:
    """Size of a model at one image size.

    Attributes:
      parameters: number of trainable values.
      flops: floating-point operations of the forward pass of one image, as XLA counts them.
      feature_maps: shape (h, w, c) of each named feature map, in the order of the forward pass.
    """

    parameters: int
    flops: float
    feature_maps: dict[str, Shape]


def abstract_model(name: str, num_classes: int, options: Mapping[str, Any]) -> Any:
    """Build a model with shapes and types in place of arrays."""
    return nnx.eval_shape(lambda: create(name, num_classes=num_classes, rngs=seeded(default=0), **options))


def parameter_shapes(name: str, num_classes: int, options: Mapping[str, Any]) -> dict[str, tuple[Shape, Any]]:
    """Return shape and type of every parameter and batch statistic, by path ("layer1/0/conv1/kernel")."""
    state = nnx.as_pure(nnx.state(abstract_model(name, num_classes, options), (nnx.Param, nnx.BatchStat)))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(key, simple=True, separator="/"): (leaf.shape, leaf.dtype) for key, leaf in leaves}


def measure(name: str, num_classes: int, image_size: int, options: Mapping[str, Any]) -> Size:
    """Measure a model for images of image_size × image_size; it is built and traced once."""
    abstract = abstract_model(name, num_classes, options)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract, nnx.Param)))
    graph, state = nnx.split(nnx.view(abstract, use_running_average=True, deterministic=True, raise_if_not_found=False))
    maps: dict[str, Shape] = {}

    def forward(state: Any, images: jax.Array) -> jax.Array:
        with kernels.disable_custom_kernels(), listening() as heard:
            logits: jax.Array = nnx.merge(graph, state)(images)
        maps.update({name: x.shape[1:] for name, x in heard.items()})
        return logits

    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), "float32")
    with jax.default_device(_counting_device()):
        counted = jax.jit(forward).lower(state, images).cost_analysis() or {}
    return Size(parameters, float(counted.get("flops", float("nan"))), maps)


def cost(name: str, num_classes: int, image_size: int, options: Mapping[str, Any]) -> tuple[int, float]:
    """Return the number of parameters and the floating-point operations of one image; see `Size`."""
    size = measure(name, num_classes, image_size, options)
    return size.parameters, size.flops


def _counting_device() -> jax.Device | None:
    """Return the CPU, because GPUs count only compiled programs; None, the default device, if jax has no CPU."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
