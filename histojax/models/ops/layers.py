"""Layers shared by the models: convolution, dense, pooling and attention, fast on accelerators and on CPUs.

Shapes: images are (b, h, w, c); kernels are HWIO. Parameters and batch statistics are float32; `dtype` is the
type that a layer computes in. With `dtype=float64` and float64 parameters everything is computed in float64.
The custom gradients support reverse mode only: `jax.jvp`, `jax.jacfwd` and `jax.hessian` raise TypeError.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

Initializer = Callable[..., jax.Array]
Padding = tuple[tuple[int, int], tuple[int, int]]

SMALL_MAP = 64  # pixels
FEW_CHANNELS = 4
# sigmoid(3) = 0.953: the features of a pretrained backbone pass almost unchanged at first.
OPEN_GATE = 3.0

lecun_normal = jax.nn.initializers.lecun_normal()
he_normal_fan_out = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def at_least_float32(dtype: Any) -> jnp.dtype:
    """Return `dtype`, or float32 where `dtype` is narrower: the type for statistics and logits."""
    return jnp.promote_types(dtype, jnp.float32)


def gelu(x: jax.Array) -> jax.Array:
    """Return x · Φ(x) exactly (Hendrycks and Gimpel 2016, arXiv 1606.08415), not the tanh approximation.

    On GPUs and TPUs the gradient stores one array, the slope Φ(x) + x · φ(x); autodiff stores three. CPUs use autodiff,
    because XLA:CPU would compute Φ twice for the slope.
    """
    return jax.nn.gelu(x, approximate=False) if jax.default_backend() == "cpu" else gelu_with_slope(x)


@jax.custom_vjp
def gelu_with_slope(x: jax.Array) -> jax.Array:
    """Return `gelu(x)`; its gradient is a product with the slope stored in the forward pass."""
    return _gelu_fwd(x)[0]


def _gelu_fwd(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = x.astype(at_least_float32(x.dtype))
    z = wide * math.sqrt(0.5)
    # erf is far cheaper on GPUs. 1 + erf loses digits far below zero, which 16-bit results do not show.
    below = 0.5 * (1 + jax.lax.erf(z) if x.dtype.itemsize == 2 else jax.lax.erfc(-z))
    slope = below + wide * jnp.exp(-jnp.square(z)) * (1 / math.sqrt(2 * math.pi))
    # Without the barrier XLA removes the rounding and stores an array twice as large.
    return (wide * below).astype(x.dtype), jax.lax.optimization_barrier(slope.astype(x.dtype))


def _gelu_bwd(slope: jax.Array, d: jax.Array) -> tuple[jax.Array]:
    return (d * slope,)


gelu_with_slope.defvjp(_gelu_fwd, _gelu_bwd)


def over_channels(v: jax.Array, ndim: int) -> jax.Array:
    """Reshape (c,) to (1, ..., 1, c), so that nothing relies on implicit rank promotion."""
    return v.reshape((1,) * (ndim - 1) + v.shape)


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """Add bias (c,) to y (..., c) in the type of `y`.

    The bias is rounded after broadcasting, so that its gradient is summed in its own type: a sum of thousands of values
    in bfloat16 is off by several per cent.
    """
    return y + jnp.broadcast_to(over_channels(bias, y.ndim), y.shape).astype(y.dtype)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply x (n, i) by kernel (i, o) in the type of `x`; the kernel's gradient keeps the kernel's type.

    Autodiff's gradient, transpose(dᵀx), makes XLA:CPU copy dᵀ, which takes a fifth of a ResNet50 step.
    """
    return jnp.dot(x, kernel.astype(x.dtype))


def _matmul_fwd(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul(x, kernel), (x, kernel)


def _matmul_bwd(res: tuple[jax.Array, jax.Array], d: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = res
    dx = jax.lax.dot_general(d, kernel.astype(d.dtype), (((1,), (1,)), ((), ())))
    dkernel = jax.lax.dot_general(x, d, (((0,), (0,)), ((), ())), preferred_element_type=kernel.dtype)
    return dx, dkernel


matmul.defvjp(_matmul_fwd, _matmul_bwd)


class Linear(nnx.Module):
    """Dense layer: (..., i) -> (..., o) in `dtype`; parameters `kernel` (i, o) and `bias` (o,)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        dtype: Any = jnp.float32,
        kernel_init: Initializer = lecun_normal,
        bias_init: Initializer = jax.nn.initializers.zeros,
        rngs: nnx.Rngs,
    ) -> None:
        self.kernel = nnx.Param(kernel_init(rngs.params(), (in_features, out_features), jnp.float32))
        self.bias = nnx.Param(bias_init(rngs.params(), (out_features,), jnp.float32)) if use_bias else None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (..., i) to (..., o)."""
        y = self.product(x)
        return y if self.bias is None else add_bias(y, self.bias[...])

    def product(self, x: jax.Array) -> jax.Array:
        """Map (..., i) to (..., o) without the bias."""
        kernel = self.kernel[...]
        y = matmul(x.astype(self.dtype).reshape(-1, kernel.shape[0]), kernel)
        return y.reshape(*x.shape[:-1], kernel.shape[1])


class Conv(nnx.Module):
    """2-D convolution: (b, h, w, i) -> (b, h', w', o) in `dtype`.

    Parameters: `kernel` (kh, kw, i / groups, o) and, with `use_bias`, `bias` (o,).

    `impl` selects the algorithm; parameters are the same for all of them.

    * "conv": a convolution by XLA.
    * "dot": a product of patches and kernel; for a depthwise convolution, a sum of shifted maps times their weights.
    * "blocks": for stride 2 and even height and width, a convolution of stride 1 over blocks of 2×2 pixels.
    * "auto": chosen for the backend when the call is traced. On CPUs "dot" for kernels of 1×1 (whose patches are the
      input itself: twice as fast), for outputs of at most `SMALL_MAP` pixels (XLA's gradient is slower there, at 2×2
      forty times), and for depthwise convolutions (XLA's gradient takes several times as long). On GPUs and TPUs
      "blocks" for at most `FEW_CHANNELS` input channels, because matrix units need more channels than three.

    Raises:
      ValueError: an unknown `impl`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: tuple[int, int],
        *,
        strides: tuple[int, int] = (1, 1),
        padding: Padding = ((0, 0), (0, 0)),
        groups: int = 1,
        use_bias: bool = False,
        dtype: Any = jnp.float32,
        impl: Literal["auto", "dot", "conv", "blocks"] = "auto",
        kernel_init: Initializer = he_normal_fan_out,
        rngs: nnx.Rngs,
    ) -> None:
        if impl not in ("auto", "dot", "conv", "blocks"):
            raise ValueError(f"impl={impl!r} is not one of 'auto', 'dot', 'conv', 'blocks'")
        shape = (*kernel_size, in_features // groups, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32)) if use_bias else None
        self.strides = strides
        self.padding = padding
        self.groups = groups
        self.dtype = dtype
        self.impl = impl

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve (b, h, w, i) to (b, h', w', o)."""
        y = self.convolve(x, self.kernel[...])
        return y if self.bias is None else add_bias(y, self.bias[...])

    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Convolve (b, h, w, i) to (b, h', w', o) with a kernel in place of the layer's own, and without bias."""
        x = x.astype(self.dtype)
        if self._as_dot(x):
            x = self._patches(x)
            y = matmul(x.reshape(-1, x.shape[-1]), kernel.reshape(-1, kernel.shape[-1]))
            y = y.reshape(*x.shape[:-1], kernel.shape[-1])
        elif self._as_shifts():
            wide = at_least_float32(self.dtype)
            weights = kernel.astype(wide).reshape(-1, 1, 1, 1, kernel.shape[-1])
            products = (tap.astype(wide) * weight for tap, weight in zip(self._taps(x), weights, strict=True))
            y = functools.reduce(jnp.add, products).astype(self.dtype)
        else:
            strides, padding = self.strides, self.padding
            if self._as_blocks(x):
                x, kernel, padding = _blocks(x, kernel, self._output_size(x), padding)
                strides = (1, 1)
            y = jax.lax.conv_general_dilated(
                x,
                kernel.astype(self.dtype),
                strides,
                padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=self.groups,
            )
        return y

    def _output_size(self, x: jax.Array) -> tuple[int, int]:
        """Return height and width of the result."""
        extents = zip(x.shape[1:3], self.padding, self.kernel.shape[:2], self.strides, strict=True)
        height, width = ((size + sum(pad) - kernel) // stride + 1 for size, pad, kernel, stride in extents)
        return height, width

    def _as_dot(self, x: jax.Array) -> bool:
        if self.groups > 1 or self.impl not in ("auto", "dot"):
            return False
        height, width = self._output_size(x)
        pays = self.kernel.shape[:2] == (1, 1) or height * width <= SMALL_MAP
        return self.impl == "dot" or (pays and jax.default_backend() == "cpu")

    def _as_blocks(self, x: jax.Array) -> bool:
        possible = self.groups == 1 and self.strides == (2, 2) and x.shape[1] % 2 == x.shape[2] % 2 == 0
        pays = x.shape[-1] <= FEW_CHANNELS and jax.default_backend() != "cpu"
        return possible and (self.impl == "blocks" or (self.impl == "auto" and pays))

    def _as_shifts(self) -> bool:
        depthwise = self.groups > 1 and self.kernel.shape[2] == 1 and self.kernel.shape[3] == self.groups
        return depthwise and (self.impl == "dot" or (self.impl == "auto" and jax.default_backend() == "cpu"))

    def _patches(self, x: jax.Array) -> jax.Array:
        """Map (b, h, w, i) to (b, h', w', kh · kw · i), channels in the kernel's order."""
        taps = self._taps(x)
        return taps[0] if len(taps) == 1 else jnp.concatenate(taps, axis=-1)

    def _taps(self, x: jax.Array) -> list[jax.Array]:
        """Return the part of the map (b, h', w', i) under each of the kernel's kh · kw positions, row by row."""
        height, width = self._output_size(x)
        down, right = self.strides
        if any(sum(pad) for pad in self.padding):
            x = jnp.pad(x, ((0, 0), *self.padding, (0, 0)))
        return [
            x[:, top : top + down * (height - 1) + 1 : down, left : left + right * (width - 1) + 1 : right]
            for top in range(self.kernel.shape[0])
            for left in range(self.kernel.shape[1])
        ]


def _blocks(
    x: jax.Array, kernel: jax.Array, output_size: tuple[int, int], padding: Padding
) -> tuple[jax.Array, jax.Array, Padding]:
    """Rewrite a convolution of stride 2 over blocks of 2×2 pixels.

    Returns:
      Map (b, h/2, w/2, 4i), kernel and padding of the equal convolution of stride 1.
    """
    b, h, w, i = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, i).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * i)
    kernel_padding, map_padding = [], []
    for size, extent, output, (before, _) in zip(kernel.shape[:2], (h, w), output_size, padding, strict=True):
        skipped = before % 2  # zeros in front of the kernel, so that it starts at a block
        blocks = -(-(size + skipped) // 2)
        kernel_padding.append((skipped, 2 * blocks - size - skipped))
        first = (before + skipped) // 2
        map_padding.append((first, output - 1 + blocks - extent // 2 - first))
    kernel = jnp.pad(kernel, (*kernel_padding, (0, 0), (0, 0)))
    rows, columns, _, o = kernel.shape
    kernel = kernel.reshape(rows // 2, 2, columns // 2, 2, i, o).transpose(0, 2, 1, 3, 4, 5)
    return x, kernel.reshape(rows // 2, columns // 2, 4 * i, o), (map_padding[0], map_padding[1])


def max_pool_3x3_s2(x: jax.Array) -> jax.Array:
    """Max-pool (b, h, w, c) with a 3×3 window, stride 2 and padding 1 to (b, ⌈h/2⌉, ⌈w/2⌉, c).

    For even h and w, except on TPUs, maxima of slices are taken along one axis after the other (on CPUs three times as
    fast). This splits the gradient among equal maxima, whereas the window reduction gives it to the first. After a ReLU
    ties are at zero and pass no gradient on.
    """
    if jax.default_backend() != "tpu" and x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0:
        return _max_of_3_stride_2(_max_of_3_stride_2(x, 2), 1)
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def _max_of_3_stride_2(x: jax.Array, axis: int) -> jax.Array:
    even = jax.lax.slice_in_dim(x, 0, None, stride=2, axis=axis)
    odd = jax.lax.slice_in_dim(x, 1, None, stride=2, axis=axis)
    # Window k covers 2k - 1, 2k and 2k + 1; the first has no left neighbour.
    shift = [(0, 0, 0)] * x.ndim
    shift[axis] = (1, -1, 0)
    left = jax.lax.pad(odd, jnp.array(-jnp.inf, x.dtype), shift)
    return jnp.maximum(jnp.maximum(even, odd), left)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Average (b, h, w, c) over h and w in float32 (or float64) to (b, c)."""
    return x.astype(at_least_float32(x.dtype)).mean((1, 2))


class ChannelAttention(nnx.Module):
    """y = x · sigmoid(W2 · activation(W1 · gap(x))), W1: c -> c / reduction (or `hidden`), W2: back, with biases.

    (b, h, w, c) -> (b, h, w, c). W1 and W2 are 1×1 convolutions of a 1×1 map, implemented as dense layers. The kernel
    of W2 starts at zero and its bias at 3, so the gate starts at 0.953 for every input and every scale of the
    features, which no random kernel guarantees. Training still starts: W2 gets a gradient at the first step, through
    the random W1, and W1 from the second step on. The gate is computed in float32 and applied in the type of `x`.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        hidden: int | None = None,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.leaky_relu,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        hidden = channels // reduction if hidden is None else hidden
        dtype = at_least_float32(dtype)
        self.activation = activation
        self.fc1 = Linear(channels, hidden, kernel_init=jax.nn.initializers.he_normal(), dtype=dtype, rngs=rngs)
        self.fc2 = Linear(
            hidden,
            channels,
            kernel_init=jax.nn.initializers.zeros,
            bias_init=jax.nn.initializers.constant(OPEN_GATE),
            dtype=dtype,
            rngs=rngs,
        )

    def gate(self, x: jax.Array) -> jax.Array:
        """Map (b, h, w, c) to the weights of its channels, (b, c), in (0, 1)."""
        return jax.nn.sigmoid(self.fc2(self.activation(self.fc1(global_avg_pool(x)))))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale the channels of (b, h, w, c)."""
        return x * self.gate(x)[:, None, None, :].astype(x.dtype)
