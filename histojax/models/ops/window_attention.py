"""Attention within the shifted windows of a map as one GPU kernel that reads the map's rows in place.

XLA writes windows, heads, logits and weights to memory one after the other. Here a program handles one window and one
head of a few images: it reads their rows from the projected map and writes only the result. The gradient's kernel
recomputes the weights, so that only the projected map is stored for it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from histojax.models.ops import kernels
from histojax.models.ops.attention import MASKED
from histojax.models.ops.compat import pl, triton
from histojax.models.ops.sharded_call import sharded_call

_MAX_IMAGES = 16  # per program
_MIN_PROGRAMS = 2048  # to keep a GPU busy


@dataclasses.dataclass(frozen=True)
class Cut:
    """Windows and heads of an attention.

    Attributes:
      heads: number of attention heads.
      window: side of a window in positions.
      down: cyclic shift of the map along its height before it is cut into windows.
      right: cyclic shift along the width.
    """

    heads: int
    window: int
    down: int = 0
    right: int = 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def window_attention(qkv: jax.Array, qkv_bias: jax.Array, bias: jax.Array, cut: Cut) -> jax.Array:
    """Attend within the windows of a map.

    The result equals rolling the map, cutting it into windows, `attend` with pairs from different regions masked,
    putting the windows back and rolling back.

    Args:
      qkv: queries, keys and values of each position (b, h, w, 3c); h and w are multiples of the window.
      qkv_bias: added to `qkv` (3c,).
      bias: added to the logits (heads, n, n).
      cut: windows and heads.

    Returns:
      (b, h, w, c).
    """
    return _attention_fwd(qkv, qkv_bias, bias, cut)[0]


def _attention_fwd(qkv: jax.Array, qkv_bias: jax.Array, bias: jax.Array, cut: Cut) -> tuple[jax.Array, Any]:
    forward = sharded_call(functools.partial(_forward, cut=cut), True, False, False)
    return forward(qkv, qkv_bias, bias), (qkv, qkv_bias, bias)


def _attention_bwd(cut: Cut, res: Any, d: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    qkv, qkv_bias, bias = res
    backward = sharded_call(functools.partial(_backward, cut=cut), True, False, False, True)
    dqkv, dbias = backward(qkv, qkv_bias, bias, d)
    n = bias.shape[-1]
    # Summed here, because the kernel has no registers left for sums.
    dqkv_bias = dqkv.sum((0, 1, 2), dtype=jnp.float32)
    return dqkv, dqkv_bias.astype(qkv_bias.dtype), dbias.sum((0, 1))[:, :n, :n].astype(bias.dtype)


window_attention.defvjp(_attention_fwd, _attention_bwd)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Work of one program.

    Attributes:
      cut: windows and heads.
      images: number of images.
      height: height of the map in positions.
      width: width of the map in positions.
      size: channels of a head.
    """

    cut: Cut
    images: int
    height: int
    width: int
    size: int

    @classmethod
    def of(cls, shape: tuple[int, ...], cut: Cut) -> _Plan:
        """Return the plan for `qkv` of this shape.

        As many images per program as possible, which share bias and indices, with enough programs to keep the GPU busy.
        """
        b, height, width, channels = shape
        min_groups = -(-_MIN_PROGRAMS // (height * width // cut.window**2 * cut.heads))
        images = max(i for i in range(1, _MAX_IMAGES + 1) if b % i == 0 and (i == 1 or b // i >= min_groups))
        return cls(cut, images, height, width, channels // 3 // cut.heads)

    @property
    def padded(self) -> int:
        """Rows of the block that holds a window."""
        return max(16, pl.next_power_of_2(self.cut.window**2))

    @property
    def windows(self) -> int:
        """Number of windows per image."""
        return self.height * self.width // self.cut.window**2

    def rows(self, channels: int) -> pl.BlockSpec:
        """Return the block of a program's images in (b, h · w, channels)."""
        block = (self.images, self.height * self.width, channels)
        return pl.BlockSpec(block, lambda head, window, group: (group, 0, 0))

    def call(
        self, kernel: Any, qkv: jax.Array, qkv_bias: jax.Array, bias: jax.Array, *more: Any, **outputs: Any
    ) -> Any:
        b, n = qkv.shape[0], bias.shape[-1]
        # Keys in the padding get no weight; queries in the padding are not written.
        bias = jnp.pad(bias, ((0, 0), (0, self.padded - n), (0, 0)))
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, self.padded - n)), constant_values=-jnp.inf)
        arrays = [a.reshape(b, self.height * self.width, -1) for a in (qkv, *more)]
        shared = pl.BlockSpec((None, self.padded, self.padded), lambda head, window, group: (head, 0, 0))
        rows = [self.rows(a.shape[-1]) for a in arrays]
        return kernels.call(
            functools.partial(kernel, plan=self),
            warps=4,
            stages=3,
            grid=(self.cut.heads, self.windows, b // self.images),
            in_specs=[rows[0], pl.BlockSpec(), shared, *rows[1:]],
            **outputs,
        )(arrays[0], qkv_bias, bias, *arrays[1:])


def _forward(qkv: jax.Array, qkv_bias: jax.Array, bias: jax.Array, cut: Cut) -> jax.Array:
    plan = _Plan.of(qkv.shape, cut)
    b, h, w, channels = qkv.shape
    out = jax.ShapeDtypeStruct((b, h * w, channels // 3), qkv.dtype)
    y = plan.call(_forward_kernel, qkv, qkv_bias, bias, out_shape=out, out_specs=plan.rows(channels // 3))
    return y.reshape(b, h, w, channels // 3)


def _backward(qkv: jax.Array, qkv_bias: jax.Array, bias: jax.Array, d: jax.Array, cut: Cut) -> tuple[Any, ...]:
    """Return the gradient of `qkv`, and that of `bias` as partial sums (groups, windows, heads, padded, padded)."""
    plan = _Plan.of(qkv.shape, cut)
    b, h, w, channels = qkv.shape
    square = (plan.padded, plan.padded)
    programs = (b // plan.images, plan.windows, cut.heads)
    shapes = (
        jax.ShapeDtypeStruct((b, h * w, channels), qkv.dtype),
        jax.ShapeDtypeStruct((*programs, *square), jnp.float32),
    )
    parts = pl.BlockSpec((None, None, None, *square), lambda head, window, group: (group, window, head, 0, 0))
    specs = (plan.rows(channels), parts)
    dqkv, dbias = plan.call(_backward_kernel, qkv, qkv_bias, bias, d, out_shape=shapes, out_specs=specs)
    return dqkv.reshape(qkv.shape), dbias


class _Program:
    """The part of the map that the running program handles: the rows of its window, the columns of its head."""

    def __init__(self, qkv_bias_ref: Any, bias_ref: Any, plan: _Plan) -> None:
        cut, window, place = plan.cut, pl.program_id(1), jnp.arange(plan.padded)
        across = plan.width // cut.window
        y = window // across * cut.window + place // cut.window
        x = window % across * cut.window + place % cut.window
        self.logit_bias = bias_ref[...]
        # y and x are positions on the shifted map. Along a shifted axis the last ones come from the other end.
        if cut.down or cut.right:
            region = jnp.zeros_like(y)
            if cut.down:
                region += 2 * (y >= plan.height - cut.down).astype(y.dtype)
            if cut.right:
                region += (x >= plan.width - cut.right).astype(x.dtype)
            self.logit_bias += jnp.where(region[:, None] == region[None, :], 0.0, MASKED)
        y, x = y + cut.down, x + cut.right
        y, x = jnp.where(y >= plan.height, y - plan.height, y), jnp.where(x >= plan.width, x - plan.width, x)
        self.exists = (place < cut.window**2)[:, None]
        # Positions in the padding get a row beyond the map, because the interpreter also writes masked values.
        self._rows = jnp.where(self.exists, (y * plan.width + x)[:, None], plan.height * plan.width)
        self._columns = (pl.program_id(0) * plan.size + jnp.arange(plan.size))[None, :]
        self._c = cut.heads * plan.size
        self._biases = [qkv_bias_ref[self._columns + part * self._c] for part in range(3)]

    def at(self, image: jax.Array, part: int = 0) -> Any:
        """Return the indices of an image's queries (0), keys (1) or values (2)."""
        return image, self._rows, self._columns + part * self._c

    def qkv(self, ref: Any, image: jax.Array) -> list[jax.Array]:
        """Load queries, keys and values (padded, size) with their biases; padding has only the bias."""
        read = (triton.load(ref.at[self.at(image, part)], mask=self.exists, other=0.0) for part in range(3))
        return [rows + bias for rows, bias in zip(read, self._biases, strict=True)]

    def weights(self, q: jax.Array, k: jax.Array) -> jax.Array:
        """Return the attention weights (padded, padded)."""
        logits = triton.dot(q, k, trans_b=True) * q.shape[-1] ** -0.5 + self.logit_bias
        weights = jnp.exp(logits - logits.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True)


def _forward_kernel(qkv_ref: Any, qkv_bias_ref: Any, bias_ref: Any, out_ref: Any, *, plan: _Plan) -> None:
    program = _Program(qkv_bias_ref, bias_ref, plan)

    def body(image: jax.Array, carry: None) -> None:
        q, k, v = program.qkv(qkv_ref, image)
        out = triton.dot(program.weights(q, k).astype(v.dtype), v)
        triton.store(out_ref.at[program.at(image)], out.astype(out_ref.dtype), mask=program.exists)

    jax.lax.fori_loop(0, plan.images, body, None)


def _backward_kernel(
    qkv_ref: Any,
    qkv_bias_ref: Any,
    bias_ref: Any,
    d_ref: Any,
    dqkv_ref: Any,
    dbias_ref: Any,
    *,
    plan: _Plan,
) -> None:
    program, scale = _Program(qkv_bias_ref, bias_ref, plan), plan.size**-0.5

    def body(image: jax.Array, dbias: jax.Array) -> jax.Array:
        q, k, v = program.qkv(qkv_ref, image)
        d = triton.load(d_ref.at[program.at(image)], mask=program.exists, other=0.0)
        weights = program.weights(q, k)
        dweights = triton.dot(d, v, trans_b=True)
        # Queries in the padding contribute nothing, because their d is zero; keys in the padding have no weight.
        dlogits = weights * (dweights - (weights * dweights).sum(1, keepdims=True))
        narrow = dlogits.astype(q.dtype)
        gradients = (
            triton.dot(narrow, k) * scale,
            triton.dot(narrow, q, trans_a=True) * scale,
            triton.dot(weights.astype(d.dtype), d, trans_a=True),
        )
        for part, gradient in enumerate(gradients):
            triton.store(dqkv_ref.at[program.at(image, part)], gradient.astype(dqkv_ref.dtype), mask=program.exists)
        return dbias + dlogits

    dbias_ref[...] = jax.lax.fori_loop(0, plan.images, body, jnp.zeros(dbias_ref.shape, jnp.float32))
