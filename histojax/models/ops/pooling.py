"""Pooling layers: windows of 2×2 and 3×3, and averages over a grid of any size. Maps are (b, h, w, c).

Max-pooling takes maxima of slices along one axis after the other: on CPUs, including the gradient, in a quarter of the
window reduction's time. The gradient is split among equal maxima, whereas the reduction gives it to the first. After a
ReLU ties are at zero and pass no gradient on.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from histojax.models.ops.layers import at_least_float32


def _whole_windows(x: jax.Array) -> jax.Array:
    """Drop an odd last row and column of (b, h, w, c), as torch's pooling without padding does."""
    height, width = (size // 2 * 2 for size in x.shape[1:3])
    return x[:, :height, :width]


def max_pool_2x2(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Max-pool (b, h, w, c) with a 2×2 window and stride 2 to (b, ⌊h/2⌋, ⌊w/2⌋, c)."""
    x = _whole_windows(x)
    x = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


def avg_pool_2x2(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Average (b, h, w, c) over a 2×2 window with stride 2 to (b, ⌊h/2⌋, ⌊w/2⌋, c)."""
    x = _whole_windows(x)
    x = x[:, ::2] + x[:, 1::2]
    return (x[:, :, ::2] + x[:, :, 1::2]) * 0.25


def max_pool_3x3_s1(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Max-pool (b, h, w, c) with a 3×3 window, stride 1 and padding 1 to (b, h, w, c)."""
    for axis in (1, 2):
        pads = [(0, 0, 0)] * x.ndim
        pads[axis] = (1, 1, 0)
        padded = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), pads)
        taps = (jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(3))
        x = functools.reduce(jnp.maximum, taps)
    return x


def adaptive_avg_pool(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b {size} {size} c"]:
    """Average (b, h, w, c) over a grid of cells to (b, size, size, c), as torch's AdaptiveAvgPool2d.

    Cell i of an axis of n covers the positions from ⌊i · n / size⌋ to before ⌈(i + 1) · n / size⌉. Cells overlap if
    `size` does not divide n, and repeat positions if it is larger. Sums are at least float32.
    """
    dtype = x.dtype
    for axis in (1, 2):
        n = x.shape[axis]
        if n == size:
            continue
        x = x.astype(at_least_float32(dtype))
        cells = [jax.lax.slice_in_dim(x, i * n // size, -(-(i + 1) * n // size), axis=axis) for i in range(size)]
        x = jnp.concatenate([cell.mean(axis, keepdims=True) for cell in cells], axis=axis)
    return x.astype(dtype)
