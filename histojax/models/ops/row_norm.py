"""Layer norm as GPU kernels that read and write each array once. Each program handles a few rows.

XLA needs three passes in the forward direction, and its gradient, which fuses reductions along and across rows, reaches
a tenth of the memory bandwidth.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from histojax.models.ops import kernels
from histojax.models.ops.compat import pl, triton
from histojax.models.ops.sharded_call import sharded_call

_ELEMENTS = 4096  # per block of a program
_PROGRAMS = 1056  # for the gradient: eight per multiprocessor of an H100


def forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Return `norms.layer_norm` of x (..., c), with scale and bias (c,) and statistics in float32."""
    return sharded_call(functools.partial(_forward, epsilon=epsilon), True, False, False)(x, scale, bias)


def backward(x: jax.Array, scale: jax.Array, d: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the gradients of x, scale and bias, given the result's gradient `d` (..., c)."""
    partial_backward = sharded_call(functools.partial(_backward, epsilon=epsilon), True, False, True)
    dx, dscale, dbias = partial_backward(x, scale, d)
    return dx, dscale.sum(0).astype(scale.dtype), dbias.sum(0).astype(scale.dtype)


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    rows = x.reshape(-1, x.shape[-1])
    block = _block(rows)
    y = kernels.call(
        functools.partial(_forward_kernel, block=block, epsilon=epsilon),
        warps=4,
        stages=1,
        grid=(-(-rows.shape[0] // block[0]),),
        out_shape=jax.ShapeDtypeStruct(rows.shape, x.dtype),
    )(rows, scale, bias)
    return y.reshape(x.shape)


def _backward(x: jax.Array, scale: jax.Array, d: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the gradient of x, and those of scale and bias as partial sums (programs, c)."""
    rows = x.reshape(-1, x.shape[-1])
    block = _block(rows)
    blocks = -(-rows.shape[0] // block[0])
    programs = min(blocks, _PROGRAMS)
    sums = jax.ShapeDtypeStruct((programs, x.shape[-1]), jnp.float32)
    dx, *parts = kernels.call(
        functools.partial(_backward_kernel, block=block, blocks=-(-blocks // programs), epsilon=epsilon),
        warps=4,
        stages=1,
        grid=(programs,),
        out_shape=(jax.ShapeDtypeStruct(rows.shape, x.dtype), sums, sums),
    )(rows, scale, d.reshape(rows.shape))
    return dx.reshape(x.shape), *parts


def _block(rows: jax.Array) -> tuple[int, int]:
    """Return rows and columns of a program's block. Both are powers of two, as Triton requires."""
    columns = pl.next_power_of_2(rows.shape[1])
    return max(1, _ELEMENTS // columns), columns


def _normalised(
    x_ref: Any, first: jax.Array, block: tuple[int, int], epsilon: float
) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    """Return indices of the block of rows from `first` on, the mask of existing values, (x - mean) / σ, and 1 / σ."""
    count, channels = x_ref.shape
    row, column = (first + jnp.arange(block[0]))[:, None], jnp.arange(block[1])[None, :]
    exists = (row < count) & (column < channels)
    x = triton.load(x_ref.at[row, column], mask=exists, other=0.0).astype(jnp.float32)
    mean = x.sum(1, keepdims=True) / channels
    centred = jnp.where(exists, x - mean, 0.0)
    inv = jax.lax.rsqrt(jnp.square(centred).sum(1, keepdims=True) / channels + epsilon)
    return (row, column), exists, centred * inv, inv


def _load_channels(ref: Any, block: tuple[int, int]) -> jax.Array:
    """Load (c,) as (1, padded)."""
    column = jnp.arange(block[1])[None, :]
    return triton.load(ref.at[column], mask=column < ref.shape[0], other=0.0).astype(jnp.float32)


def _forward_kernel(
    x_ref: Any, scale_ref: Any, bias_ref: Any, y_ref: Any, *, block: tuple[int, int], epsilon: float
) -> None:
    at, exists, x_hat, _ = _normalised(x_ref, pl.program_id(0) * block[0], block, epsilon)
    y = x_hat * _load_channels(scale_ref, block) + _load_channels(bias_ref, block)
    triton.store(y_ref.at[at], y.astype(y_ref.dtype), mask=exists)


def _backward_kernel(
    x_ref: Any,
    scale_ref: Any,
    d_ref: Any,
    dx_ref: Any,
    dscale_ref: Any,
    dbias_ref: Any,
    *,
    block: tuple[int, int],
    blocks: int,
    epsilon: float,
) -> None:
    program, channels = pl.program_id(0), x_ref.shape[1]
    scale = _load_channels(scale_ref, block)

    def body(i: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        dscale, dbias = sums
        first = (i * pl.num_programs(0) + program) * block[0]
        at, exists, x_hat, inv = _normalised(x_ref, first, block, epsilon)
        d = triton.load(d_ref.at[at], mask=exists, other=0.0).astype(jnp.float32)
        scaled = d * scale
        along = (scaled * x_hat).sum(1, keepdims=True) / channels
        dx = inv * (scaled - scaled.sum(1, keepdims=True) / channels - x_hat * along)
        triton.store(dx_ref.at[at], dx.astype(dx_ref.dtype), mask=exists)
        return dscale + (d * x_hat).sum(0), dbias + d.sum(0)

    zero = jnp.zeros(block[1], jnp.float32)
    column = jnp.arange(block[1])
    for ref, total in zip((dscale_ref, dbias_ref), jax.lax.fori_loop(0, blocks, body, (zero, zero)), strict=True):
        triton.store(ref.at[program, column], total, mask=column < channels)
