"""Batch norm and layer norm, with gradients that store and compute less than autodiff's.

Shapes: the last axis holds the channels. Parameters and batch statistics are float32; `dtype` is the type that a layer
computes in. The custom gradients support reverse mode only: `jax.jvp`, `jax.jacfwd` and `jax.hessian` raise TypeError.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from histojax.models.ops import kernels
from histojax.models.ops.layers import Conv, Initializer, at_least_float32, over_channels


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm_train(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise by the batch's own statistics (Ioffe and Szegedy 2015, arXiv 1502.03167, algorithm 1).

    The variance is E[x²] - E[x]², so that one pass over `x` yields both statistics. The gradient ignores the cotangents
    of the returned mean and variance, which feed the running statistics only.

    Args:
      x: (..., c).
      scale: (c,).
      bias: (c,).
      epsilon: added to the variance.

    Returns:
      Normalised values (..., c) in the type of `x`, mean (c,) and biased variance (c,).
    """
    return _batch_norm_fwd(x, scale, bias, epsilon)[0]


def _batch_norm_fwd(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[Any, Any]:
    axes = tuple(range(x.ndim - 1))
    x_wide = x.astype(at_least_float32(x.dtype))
    mean = x_wide.mean(axes)
    # Rounding can push the difference below zero where a channel is constant.
    var = jnp.maximum(jnp.square(x_wide).mean(axes) - jnp.square(mean), 0.0)
    inv = jax.lax.rsqrt(var + epsilon)
    y = _normalise(x, mean, inv, scale, bias)
    return (y, mean, var), (x, scale, mean, inv)


def _batch_norm_bwd(epsilon: float, res: Any, cotangents: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, mean, inv = res
    axes = tuple(range(x.ndim - 1))
    wide = partial(over_channels, ndim=x.ndim)
    n = x.size // x.shape[-1]
    d = cotangents[0].astype(mean.dtype)
    x_hat = (x.astype(mean.dtype) - wide(mean)) * wide(inv)
    dbias = d.sum(axes)
    dscale = (d * x_hat).sum(axes)
    dx = wide(scale * inv) * (d - wide(dbias / n) - x_hat * wide(dscale / n))
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


batch_norm_train.defvjp(_batch_norm_fwd, _batch_norm_bwd)


def _normalise(x: jax.Array, mean: jax.Array, inv: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Return (x - mean) · inv · scale + bias, as one multiplication and one addition, in the type of `x`."""
    factor, offset = _factor_and_offset(mean, inv, scale, bias)
    return (x * over_channels(factor, x.ndim) + over_channels(offset, x.ndim)).astype(x.dtype)


def _factor_and_offset(
    mean: jax.Array, inv: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    factor = inv * scale
    return factor, bias - mean * factor


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last: (..., c) -> (..., c) in `dtype`.

    Parameters `scale` and `bias`, batch statistics `mean` and `var`, all (c,) float32. `momentum` is the weight of the
    old running value (0.9 here is torch's 0.1). The running variance is biased, as in Flax; torch stores the unbiased
    one, n / (n - 1) times as large. With `scale_init` of zeros a residual branch starts as the identity. Under
    `jax.jit` with the batch sharded over a mesh the statistics are those of the whole batch.
    """

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        use_running_average: bool = False,
        dtype: Any = jnp.float32,
        scale_init: Initializer = jax.nn.initializers.ones,
        rngs: nnx.Rngs,
    ) -> None:
        self.scale = nnx.Param(scale_init(rngs.params(), (num_features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((num_features,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((num_features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((num_features,), jnp.float32))
        self.momentum = momentum
        self.epsilon = epsilon
        self.use_running_average = use_running_average
        self.dtype = dtype

    # `deterministic` has no effect. It is accepted because nnx.view raises for a keyword that no module takes, and the
    # same call also serves models without dropout.
    def set_view(self, use_running_average: bool | None = None, deterministic: bool | None = None) -> None:
        """Switch between batch and running statistics; called by `nnx.view`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise (..., c); in training, also update the running statistics."""
        x, scale, bias = x.astype(self.dtype), self.scale[...], self.bias[...]
        if self.use_running_average:
            inv = jax.lax.rsqrt(self.var[...] + self.epsilon)
            return _normalise(x, self.mean[...], inv, scale, bias)
        y, mean, var = batch_norm_train(x, scale, bias, self.epsilon)
        for running, batch in ((self.mean, mean), (self.var, var)):
            new = self.momentum * running[...] + (1 - self.momentum) * batch
            # Not `running[...] = `, for which flax searches the whole traced program for the origin of the value.
            running.set_value(jax.lax.stop_gradient(new))
        return y


def conv_norm(conv: Conv, norm: BatchNorm, x: jax.Array) -> jax.Array:
    """Return norm(conv(x)) for a convolution without bias, fused if `norm` uses its running statistics.

    Compilers for GPUs then also fuse bias and activation. On CPUs nothing is gained, so nothing is fused.
    """
    if not norm.use_running_average or jax.default_backend() == "cpu":
        return norm(conv(x))
    inv = jax.lax.rsqrt(norm.var[...] + norm.epsilon)
    factor, offset = _factor_and_offset(norm.mean[...], inv, norm.scale[...], norm.bias[...])
    y = conv.convolve(x, conv.kernel[...] * over_channels(factor, 4))
    return y + over_channels(offset.astype(y.dtype), y.ndim)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Normalise each (c,) of x (..., c) by its own mean and variance, in the type of `x`.

    The gradient stores `x` and two numbers per row; autodiff also stores the normalised rows in float32.

    Args:
      x: (..., c).
      scale: (c,).
      bias: (c,).
      epsilon: added to the variance.

    Returns:
      (..., c) in the type of `x`.
    """
    return _layer_norm_fwd(x, scale, bias, epsilon)[0]


def _layer_norm_fwd(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[jax.Array, Any]:
    if kernels.row_kernel_supports(x.dtype, x.shape[-1]):
        # Imported here, because not every jax has Triton.
        from histojax.models.ops import row_norm

        return row_norm.forward(x, scale, bias, epsilon), (x, scale)
    wide = x.astype(at_least_float32(x.dtype))
    mean = wide.mean(-1, keepdims=True)
    inv = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + epsilon)
    y = (wide - mean) * inv * over_channels(scale, x.ndim) + over_channels(bias, x.ndim)
    return y.astype(x.dtype), (x, scale, mean, inv)


def _layer_norm_bwd(epsilon: float, res: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    if len(res) == 2:
        from histojax.models.ops import row_norm

        x, scale = res
        return row_norm.backward(x, scale, cotangent, epsilon)
    x, scale, mean, inv = res
    d, rows = cotangent.astype(mean.dtype), tuple(range(x.ndim - 1))
    x_hat = (x.astype(mean.dtype) - mean) * inv
    scaled = d * over_channels(scale, x.ndim)
    dx = inv * (scaled - scaled.mean(-1, keepdims=True) - x_hat * (scaled * x_hat).mean(-1, keepdims=True))
    return dx.astype(x.dtype), (d * x_hat).sum(rows).astype(scale.dtype), d.sum(rows).astype(scale.dtype)


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis (Ba et al. 2016, arXiv 1607.06450): (..., c) -> (..., c) in `dtype`.

    Parameters `scale` and `bias`, both (c,) float32. Statistics are at least float32 for every `dtype`. The variance is
    the mean of squared deviations, not E[x²] - E[x]², because tokens may lie far from zero.
    """

    def __init__(self, num_features: int, *, epsilon: float = 1e-5, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        del rngs  # both parameters start constant
        self.scale = nnx.Param(jnp.ones((num_features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((num_features,), jnp.float32))
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise each (c,) of (..., c)."""
        return layer_norm(x.astype(self.dtype), self.scale[...], self.bias[...], self.epsilon)
