"""Attention over queries, keys and values, with a gradient that stores less than autodiff's.

The custom gradient supports reverse mode only: `jax.jvp`, `jax.jacfwd` and `jax.hessian` raise TypeError.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from histojax.models.ops.layers import at_least_float32

MASKED = -100.0  # added to the logits of pairs that must not attend to each other, as in the Swin Transformer's code


@jax.custom_vjp
def attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Return softmax(q kᵀ / √d + bias) v (Vaswani et al. 2017, arXiv 1706.03762, equation 1).

    Logits and softmax are at least float32. The gradient stores the weights, in the type of `v`; autodiff stores two
    more arrays of their size, in float32.

    Args:
      q: queries (..., heads, n, d).
      k: keys (..., heads, n, d).
      v: values (..., heads, n, d).
      bias: added to the logits (..., heads, n, n); leading axes may be missing or have size one.

    Returns:
      (..., heads, n, d), in the type of `v`.
    """
    return _attend_fwd(q, k, v, bias)[0]


def _attend_fwd(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, Any]:
    wide = at_least_float32(q.dtype)
    logits = jnp.einsum("...qd,...kd->...qk", q * q.shape[-1] ** -0.5, k, preferred_element_type=wide)
    if bias is not None:
        logits = logits + bias.astype(wide).reshape((1,) * (logits.ndim - bias.ndim) + bias.shape)
    weights = jax.nn.softmax(logits).astype(v.dtype)
    return jnp.einsum("...qk,...kd->...qd", weights, v), (q, k, v, bias, weights)


def _attend_bwd(res: Any, d: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    q, k, v, bias, weights = res
    dweights = jnp.einsum("...qd,...kd->...qk", d, v).astype(at_least_float32(v.dtype))
    wide = weights.astype(dweights.dtype)
    dlogits = wide * (dweights - (wide * dweights).sum(-1, keepdims=True))
    dbias = None if bias is None else _sum_broadcast_axes(dlogits, bias.shape).astype(bias.dtype)
    dlogits = (dlogits * q.shape[-1] ** -0.5).astype(q.dtype)
    dq = jnp.einsum("...qk,...kd->...qd", dlogits, k)
    dk = jnp.einsum("...qk,...qd->...kd", dlogits, q)
    return dq, dk, jnp.einsum("...qk,...qd->...kd", weights, d), dbias


def _sum_broadcast_axes(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Sum `x` over the axes along which an array of this shape was broadcast."""
    missing = x.ndim - len(shape)
    ones = (missing + i for i, size in enumerate(shape) if size < x.shape[missing + i])
    return x.sum((*range(missing), *ones)).reshape(shape)


attend.defvjp(_attend_fwd, _attend_bwd)
