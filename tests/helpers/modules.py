"""Calling models in tests: fixed images, evaluation mode, flat parameters, shapes of feature maps."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# Models whose layers another one has as well -> that one. What takes a program of its own is tested with the latter.
ALSO_IN = {"resnet50": "dala_resnet50", "vgg16": "vgg16_bn"}
ALSO_IN |= dict.fromkeys(("vit_base_patch16_224", "vit_small_patch14_dinov2"), "dinov2_vitb14")


def filled(make: Callable[[], nnx.Module], seed: int = 0) -> nnx.Module:
    """The module with random values in every parameter and statistic, also in those that start at zero or one.

    NumPy draws them, because each shape of an initialiser's values would be compiled. `seed` is that of dropout.
    """
    graphdef, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(lambda *x: drawn(*x, seed), nnx.as_pure(state)))


def drawn(path: Any, leaf: Any, seed: int = 0) -> Any:
    """Random values that depend only on path and shape, by NumPy; or a random key, which also depends on the seed."""
    name, shape = jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(np.uint32([seed, rng.integers(1 << 32)]))
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return np.zeros(shape, leaf.dtype)
    if name.endswith("kernel"):
        value = rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
    elif name.endswith(("scale", "var")):
        value = rng.uniform(0.75, 1.25, shape)
    else:
        value = 0.1 * rng.normal(size=shape)
    return np.asarray(value, leaf.dtype)


def images(b: int = 4, h: int = 32, w: int = 32, dtype: Any = np.float32) -> np.ndarray:
    """The same random images in every test, (b, h, w, 3)."""
    return np.random.default_rng(0).normal(size=(b, h, w, 3)).astype(dtype)


def evaluation(model: nnx.Module) -> nnx.Module:
    return nnx.view(model, use_running_average=True, deterministic=True, raise_if_not_found=False)


def call(model: nnx.Module, x: Any, method: Callable[..., Any] = lambda model, x: model(x)) -> Any:
    """Call a model under jit, which compiles faster than one operation at a time."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, x: method(nnx.merge(graphdef, state), x))(nnx.as_pure(state), x)


def flat(state: Any) -> dict[str, jax.Array]:
    """Arrays by path, such as "layer1/0/conv1/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.as_pure(state))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def map_shapes(model: nnx.Module, height: int, width: int) -> dict[str, tuple[int, ...]]:
    """Shape (h, w, c) of each feature map of images of this size."""
    x = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    return {name: leaf.shape[1:] for name, leaf in nnx.eval_shape(lambda m, x: m.feature_maps(x), model, x).items()}


def checkpoints(model: nnx.Module, x: np.ndarray) -> int:
    """Number of rematerialised parts in the forward pass."""
    graphdef, state = nnx.split(model)
    jaxpr = jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state)(x))(nnx.as_pure(state), x)
    return sum(eqn.primitive.name.startswith(("remat", "checkpoint")) for eqn in jaxpr.eqns)
