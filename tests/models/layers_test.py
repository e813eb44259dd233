"""Layers against plain formulas and against XLA's own operations."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from histojax.models.ops import layers, norms
from histojax.models.rngs import seeded

PAD_1 = ((1, 1), (1, 1))


@pytest.fixture(autouse=True)
def _strict_ranks() -> Iterator[None]:
    with jax.numpy_rank_promotion("raise"):
        yield


def normal(seed: int, *shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def relative(a: jax.Array, b: jax.Array) -> float:
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))


def weighted_sum(f, weights):
    return lambda *args: jnp.sum(f(*args) * weights)


def test_matmul_gradients_equal_autodiff():
    x, kernel, weights = normal(0, 7, 5), normal(1, 5, 3), normal(2, 7, 3)
    ours = jax.jit(jax.grad(weighted_sum(layers.matmul, weights), (0, 1)))(x, kernel)
    plain = jax.jit(jax.grad(weighted_sum(jnp.dot, weights), (0, 1)))(x, kernel)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_matmul_in_bfloat16_keeps_the_kernel_gradient_in_float32():
    x, kernel = jnp.asarray(normal(0, 512, 8), jnp.bfloat16), normal(1, 8, 4)
    weights = normal(2, 512, 4).astype(jnp.bfloat16)
    dx, dkernel = jax.grad(weighted_sum(layers.matmul, weights), (0, 1))(x, kernel)
    assert (dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.float32)
    # The error of summing 512 products in bfloat16 would be a hundred times the tolerance.
    exact = np.asarray(x, np.float64).T @ weights.astype(np.float64)
    np.testing.assert_allclose(dkernel, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1)])
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
@pytest.mark.parametrize("use_bias", [False, True])
def test_pointwise_convolution_by_dot_equals_convolution(strides, size, use_bias):
    x = normal(0, 2, *size, 5)
    dot, conv = (
        layers.Conv(5, 6, (1, 1), strides=strides, use_bias=use_bias, impl=impl, rngs=seeded(default=0))
        for impl in ("dot", "conv")
    )
    assert jax.tree.structure(nnx.as_pure(nnx.state(dot))) == jax.tree.structure(nnx.as_pure(nnx.state(conv)))

    def loss_and_grads(model):
        graphdef, params = nnx.split(model, nnx.Param)

        def loss_fn(p, x):
            return jnp.sum(jnp.square(nnx.merge(graphdef, p)(x)))

        return jax.jit(jax.value_and_grad(loss_fn, (0, 1)))(nnx.as_pure(params), x)

    assert dot(x).shape == conv(x).shape
    for a, b in zip(jax.tree.leaves(loss_and_grads(dot)), jax.tree.leaves(loss_and_grads(conv)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_grouped_and_padded_convolutions_do_not_use_dot():
    x = normal(0, 1, 4, 4, 6)
    grouped = layers.Conv(6, 6, (1, 1), groups=6, impl="dot", rngs=seeded(default=0))
    np.testing.assert_allclose(grouped(x), x * np.asarray(grouped.kernel[...])[0], rtol=1e-6)
    padded = layers.Conv(6, 2, (1, 1), padding=PAD_1, impl="dot", rngs=seeded(default=0))
    assert padded(x).shape == (1, 6, 6, 2)


@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_depthwise_convolution_by_shifts_equals_convolution(dtype, strides):
    x = normal(0, 2, 7, 6, 5)
    options = {
        "strides": strides,
        "padding": PAD_1,
        "groups": 5,
        "use_bias": True,
        "dtype": dtype,
        "rngs": seeded(default=0),
    }
    shifts, auto, conv = (layers.Conv(5, 5, (3, 3), impl=impl, **options) for impl in ("dot", "auto", "conv"))
    for other in (shifts, auto):
        nnx.update(other, nnx.state(conv))

    def loss_and_grads(model):
        graphdef, params = nnx.split(model, nnx.Param)

        def loss_fn(p, x):
            return jnp.sum(jnp.sin(nnx.merge(graphdef, p)(x).astype(jnp.float32)))

        return jax.jit(jax.value_and_grad(loss_fn, (0, 1)))(nnx.as_pure(params), x)

    def convolutions(model):
        return str(jax.make_jaxpr(lambda x: model(x))(x)).count("conv_general_dilated")

    assert [convolutions(model) for model in (shifts, auto, conv)] == [0, 0, 1]  # these tests run on CPUs
    tolerance = 2e-5 if dtype == jnp.float32 else 0.1
    for a, b in zip(jax.tree.leaves(loss_and_grads(shifts)), jax.tree.leaves(loss_and_grads(conv)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("kernel", "padding", "channels", "size"),
    [
        (7, ((3, 3), (3, 3)), 3, (32, 20)),
        (3, PAD_1, 3, (8, 8)),
        (3, ((0, 1), (0, 1)), 4, (8, 6)),
        (4, ((1, 1), (1, 2)), 2, (10, 6)),
        (2, ((0, 0), (0, 0)), 2, (10, 6)),
        (1, ((0, 0), (0, 0)), 4, (8, 6)),
    ],
)
def test_strided_convolution_by_blocks_equals_convolution(kernel, padding, channels, size):
    x = normal(0, 2, *size, channels, dtype=np.float64)
    with jax.enable_x64(True):
        blocks, conv = (
            layers.Conv(channels, 5, (kernel, kernel), strides=(2, 2), padding=padding, dtype=jnp.float64, impl=impl,
                        rngs=seeded(default=0))
            for impl in ("blocks", "conv")
        )  # fmt: skip
        assert f"{size[0] // 2},{size[1] // 2},{4 * channels}]" in str(jax.make_jaxpr(lambda x: blocks(x))(x))
        graphdef, params = nnx.split(conv)
        y = conv(x)
        weights = normal(1, *y.shape, dtype=np.float64)
        np.testing.assert_allclose(blocks(x), y, rtol=0, atol=1e-12)
        ours, exact = (
            jax.grad(lambda p, x, g=g: jnp.sum(nnx.merge(g, p)(x) * weights), (0, 1))(nnx.as_pure(params), x)
            for g in (nnx.graphdef(blocks), graphdef)
        )
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


def test_an_odd_map_is_not_convolved_by_blocks():
    conv = layers.Conv(3, 4, (3, 3), strides=(2, 2), padding=PAD_1, impl="blocks", rngs=seeded(default=0))
    assert conv(normal(0, 1, 7, 8, 3)).shape == (1, 4, 4, 4)


def test_gelu_with_slope_equals_gelu():
    x, weights = 3 * normal(0, 50, dtype=np.float64), normal(1, 50, dtype=np.float64)
    with jax.enable_x64(True):
        (y, ours), (_, exact) = (
            jax.value_and_grad(weighted_sum(f, weights))(x)
            for f in (layers.gelu_with_slope, lambda x: jax.nn.gelu(x, approximate=False))
        )
        np.testing.assert_allclose(y, jnp.sum(layers.gelu(x) * weights), rtol=1e-14)
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-13)
    kept = jax.vjp(layers.gelu_with_slope, jnp.ones(7, jnp.bfloat16))[1]
    assert [leaf.shape for leaf in jax.tree.leaves(kept)] == [(7,)]


def test_layer_norm_gradients_equal_the_plain_formula_in_float64():
    x = 3 + 2 * normal(0, 4, 5, 7, dtype=np.float64)
    weights = normal(3, *x.shape, dtype=np.float64)
    with jax.enable_x64(True):
        norm = norms.LayerNorm(7, dtype=jnp.float64, rngs=seeded(default=0))
        graphdef, _ = nnx.split(norm)

        def ours(x, scale, bias):
            return nnx.merge(graphdef, nnx.State({"scale": nnx.Param(scale), "bias": nnx.Param(bias)}))(x)

        def plain(x, scale, bias):
            deviation = x - x.mean(-1, keepdims=True)
            var = jnp.square(deviation).mean(-1, keepdims=True)
            return deviation / jnp.sqrt(var + 1e-5) * scale[None, None] + bias[None, None]

        args = x, normal(1, 7, dtype=np.float64), normal(2, 7, dtype=np.float64)
        (y, grads), (y_plain, exact) = (value_and_grads(f, weights)(*args) for f in (ours, plain))
        assert abs(y - y_plain) < 1e-10
        for a, b in zip(grads, exact, strict=True):
            assert a.dtype == jnp.float64
            assert relative(a, b) < 1e-12


def test_layer_norm_of_bfloat16_has_float32_statistics():
    # Far from zero: bfloat16 statistics, or E[x²] - E[x]² in float32, would be off by more than this.
    x = jnp.asarray(1000 + 8 * np.arange(16), jnp.bfloat16).reshape(1, 16)
    y = norms.LayerNorm(16, dtype=jnp.bfloat16, rngs=seeded(default=0))(x)
    wide = np.asarray(x, np.float64)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(np.float32), (wide - wide.mean()) / wide.std(), rtol=2**-8)


def test_unknown_impl_is_refused():
    with pytest.raises(ValueError, match="impl='gemm'"):
        layers.Conv(3, 3, (1, 1), impl="gemm", rngs=seeded(default=0))


def plain_batch_norm(x, scale, bias):
    """Algorithm 1 of the paper, with the two-pass variance."""
    mean = x.mean((0, 1, 2), keepdims=True)
    var = jnp.square(x - mean).mean((0, 1, 2), keepdims=True)
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale[None, None, None] + bias[None, None, None]


def layers_batch_norm(x, scale, bias):
    return norms.batch_norm_train(x, scale, bias, 1e-5)[0]


def value_and_grads(f, weights):
    return jax.jit(jax.value_and_grad(weighted_sum(f, weights), (0, 1, 2)))


def test_batch_norm_gradients_equal_the_plain_formula_in_float64():
    x = 3 + 2 * normal(0, 4, 5, 6, 7, dtype=np.float64)
    scale, bias = normal(1, 7, dtype=np.float64), normal(2, 7, dtype=np.float64)
    weights = normal(3, *x.shape, dtype=np.float64)
    with jax.enable_x64(True):
        y, grads = value_and_grads(layers_batch_norm, weights)(x, scale, bias)
        y_plain, plain = value_and_grads(plain_batch_norm, weights)(x, scale, bias)
        assert abs(y - y_plain) < 1e-10
        for a, b in zip(grads, plain, strict=True):
            assert a.dtype == jnp.float64
            assert relative(a, b) < 1e-12


def test_batch_norm_in_float32_is_close_to_float64():
    x = 1 + normal(0, 8, 6, 6, 4)
    scale, bias, weights = normal(1, 4), normal(2, 4), normal(3, *x.shape)
    _, grads = value_and_grads(layers_batch_norm, weights)(x, scale, bias)
    with jax.enable_x64(True):
        wide = [a.astype(np.float64) for a in (x, scale, bias)]
        _, exact = value_and_grads(plain_batch_norm, weights)(*wide)
    for a, b in zip(grads, exact, strict=True):
        assert relative(a, b) < 2e-6


def test_constant_channels_stay_finite():
    # Rounding makes E[x²] - E[x]² of some of these constants negative.
    x = np.broadcast_to(np.linspace(1, 2000, 256, dtype=np.float32), (5, 3, 3, 256))
    squares = np.square(x).mean((0, 1, 2)) - np.square(x.mean((0, 1, 2)))
    assert squares.min() < -1
    y, _, var = norms.batch_norm_train(x, jnp.ones(256), jnp.zeros(256), 1e-5)
    assert np.isfinite(y).all()
    assert (np.asarray(var) >= 0).all()


def test_running_statistics_equal_those_of_flax():
    x = 2 + 3 * normal(0, 4, 5, 5, 3)
    ours = norms.BatchNorm(3, rngs=seeded(default=0))
    flax = nnx.BatchNorm(3, momentum=0.9, rngs=nnx.Rngs(0))
    for _ in range(2):
        np.testing.assert_allclose(ours(x), flax(x), atol=1e-5)
    np.testing.assert_allclose(ours.mean[...], flax.mean[...], rtol=1e-5)
    np.testing.assert_allclose(ours.var[...], flax.var[...], rtol=1e-5)
    np.testing.assert_allclose(ours.var[...], 0.81 + 0.19 * x.var((0, 1, 2)), rtol=1e-5)

    mean, var = np.asarray(ours.mean[...]), np.asarray(ours.var[...])
    view = nnx.view(ours, use_running_average=True, deterministic=True)
    np.testing.assert_allclose(view(x), (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    np.testing.assert_array_equal(ours.mean[...], mean)


def test_a_misspelt_view_is_refused():
    with pytest.raises(ValueError, match="use_running_avg"):
        nnx.view(norms.BatchNorm(3, rngs=seeded(default=0)), use_running_avg=True)


def window_max(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))


@pytest.mark.parametrize("size", [(8, 8), (2, 4), (7, 8), (8, 7), (9, 5), (1, 1)])
def test_max_pool_equals_the_window_reduction(size):
    # Distinct values, because ties split the gradient differently; negative, so that padding with zeros would show.
    shape = (2, *size, 3)
    x = -1 - np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(np.float32)
    expected = window_max(x)
    assert expected.shape == (2, -(-size[0] // 2), -(-size[1] // 2), 3)
    np.testing.assert_array_equal(layers.max_pool_3x3_s2(x), expected)
    weights = normal(1, *expected.shape)
    ours = jax.jit(jax.grad(weighted_sum(layers.max_pool_3x3_s2, weights)))(x)
    np.testing.assert_allclose(ours, jax.jit(jax.grad(weighted_sum(window_max, weights)))(x), rtol=1e-6)


def test_linear_maps_the_last_axis():
    linear = layers.Linear(4, 3, bias_init=jax.nn.initializers.ones, rngs=seeded(default=0))
    x = normal(0, 2, 5, 4)
    np.testing.assert_allclose(linear(x), x @ np.asarray(linear.kernel[...]) + 1, rtol=1e-5)


def test_the_gradient_of_a_bias_is_summed_in_float32():
    d, bias = normal(0, 40, 50, 3).astype(jnp.bfloat16), jnp.zeros(3)
    _, back = jax.vjp(lambda bias: layers.add_bias(jnp.zeros_like(d), bias), bias)
    np.testing.assert_allclose(back(d)[0], d.astype(jnp.float32).sum((0, 1)), rtol=1e-5)


def test_a_folded_convolution_equals_convolution_and_norm(monkeypatch):
    conv = layers.Conv(3, 4, (3, 3), strides=(2, 2), padding=PAD_1, rngs=seeded(default=0))
    norm = norms.BatchNorm(4, rngs=seeded(default=0))
    for variable, value in zip((norm.scale, norm.bias, norm.mean, norm.var), normal(1, 4, 4), strict=True):
        variable.set_value(jnp.abs(value) + 0.1)
    x = normal(2, 2, 8, 8, 3)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # folding is for GPUs only
    trained = norms.conv_norm(conv, norm, x)
    np.testing.assert_array_equal(trained, norms.batch_norm_train(conv(x), norm.scale[...], norm.bias[...], 1e-5)[0])
    norm.use_running_average = True
    folded = norms.conv_norm(conv, norm, x)
    operations = [
        equation.primitive.name for equation in jax.make_jaxpr(lambda x: norms.conv_norm(conv, norm, x))(x).eqns
    ]
    assert operations[-1] == "add"
    assert operations.index("conv_general_dilated") > operations.index("rsqrt")
    np.testing.assert_allclose(folded, norm(conv(x)), rtol=2e-5, atol=2e-6)


def test_global_average_is_float32_for_bfloat16_maps():
    pooled = layers.global_avg_pool(jnp.ones((2, 3, 3, 4), jnp.bfloat16))
    assert (pooled.dtype, pooled.shape) == (jnp.float32, (2, 4))


TWO_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from histojax.models.ops import layers, norms

assert jax.device_count() == 2
conv, bn = layers.Conv(3, 4, (1, 1), rngs=nnx.Rngs(0)), norms.BatchNorm(4, rngs=nnx.Rngs(0))
graphdef, params, stats = nnx.split(nnx.List([conv, bn]), nnx.Param, nnx.BatchStat)

def loss_fn(params, stats, x):
    conv, bn = model = nnx.merge(graphdef, params, stats)
    loss = jnp.mean(jnp.sin(layers.max_pool_3x3_s2(bn(conv(x)))))
    return loss, nnx.as_pure(nnx.state(model, nnx.BatchStat))

step = jax.value_and_grad(loss_fn, has_aux=True)
args = nnx.as_pure(params), nnx.as_pure(stats), np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("f")
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
replicated, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
one = jax.jit(step)(*args)
two = jax.jit(step, in_shardings=(replicated, replicated, split), out_shardings=replicated)(*args)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, two)
"""


@pytest.mark.devices
def test_two_devices_give_the_statistics_and_gradients_of_one():
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", TWO_DEVICES], env=env, check=True, timeout=120)
