"""GPU kernels compared with XLA: interpreted on a CPU, compiled if there is a GPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import pallas
from jax.sharding import AbstractDevice, AbstractMesh

from histojax.core.errors import RunError
from histojax.distributed.sharding import Layout
from histojax.models import swin
from histojax.models.ops import kernels, norms, row_norm, window_attention
from histojax.models.ops.attention import attend
from histojax.models.ops.sharded_call import sharded_calls
from histojax.models.ops.window_attention import Cut
from histojax.models.rngs import seeded

EPSILON = 1e-5
CUTS = [Cut(3, 7), Cut(2, 7, 3, 3), Cut(1, 4, 0, 2), Cut(2, 4, 1, 0)]


def normal(seed: int, *shape: int, dtype=jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def relative(a: jax.Array, b: jax.Array) -> float:
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def plain_attention(qkv, qkv_bias, bias, cut):
    """Attend in windows that are rolled, cut and masked as in `swin` without the kernel."""
    _, h, w, _ = qkv.shape
    x = jnp.roll(qkv + qkv_bias.reshape(1, 1, 1, -1), (-cut.down, -cut.right), (1, 2))
    x = swin.window_partition(x, cut.window)
    q, k, v = x.reshape(*x.shape[:3], 3, cut.heads, -1).transpose(3, 0, 1, 4, 2, 5)
    regions = swin.shift_regions(h, w, cut.window, (cut.down, cut.right))
    masked = np.where(regions[:, :, None] == regions[:, None, :], 0.0, swin.MASKED)[:, None]
    y = attend(q, k, v, bias[None] + masked.astype(np.float32)).swapaxes(2, 3)
    y = swin.window_reverse(y.reshape(*y.shape[:3], -1), cut.window, h, w)
    return jnp.roll(y, (cut.down, cut.right), (1, 2))


def attention_arrays(cut: Cut, b=2, dtype=jnp.float32, size=16):
    h, w, c, n = 2 * cut.window, 3 * cut.window, cut.heads * size, cut.window**2
    qkv, d = normal(0, b, h, w, 3 * c, dtype=dtype), normal(3, b, h, w, c, dtype=dtype)
    return qkv, normal(1, 3 * c, dtype=dtype), normal(2, cut.heads, n, n), d


def with_gradients(function, *arrays):
    """Return `function` of all arrays but the last, and its gradients; the last array is the result's gradient."""

    @jax.jit
    def both(*arrays):
        y, back = jax.vjp(function, *arrays[:-1])
        return y, *back(arrays[-1])

    return both(*arrays)


@pytest.mark.parametrize("cut", CUTS)
def test_window_attention_equals_xla(cut):
    arrays = attention_arrays(cut)
    ours = with_gradients(lambda *a: window_attention.window_attention(*a, cut), *arrays)
    wanted = with_gradients(lambda *a: plain_attention(*a, cut), *arrays)
    assert max(map(relative, ours, wanted)) < 1e-6


def test_a_program_sums_gradients_over_its_images(monkeypatch):
    monkeypatch.setattr(window_attention, "_MIN_PROGRAMS", 24)  # 2 heads, 6 windows, 2 groups
    cut = Cut(2, 4, 2, 2)
    qkv, *rest = attention_arrays(cut, b=6)
    assert window_attention._Plan.of(qkv.shape, cut).images == 3
    ours = with_gradients(lambda *a: window_attention.window_attention(*a, cut), qkv, *rest)
    wanted = with_gradients(lambda *a: plain_attention(*a, cut), qkv, *rest)
    assert max(map(relative, ours, wanted)) < 1e-6


def test_in_bfloat16_the_kernel_is_about_as_accurate_as_xla():
    cut = CUTS[1]
    arrays = attention_arrays(cut, dtype=jnp.bfloat16)
    exact = with_gradients(lambda *a: plain_attention(*a, cut), *(a.astype(jnp.float32) for a in arrays))
    ours = with_gradients(lambda *a: window_attention.window_attention(*a, cut), *arrays)
    xla = with_gradients(lambda *a: plain_attention(*a, cut), *arrays)
    for a, x, e in zip(ours, xla, exact, strict=True):
        assert a.dtype == x.dtype
        assert relative(a, e) <= 1.05 * relative(x, e)
        assert relative(a, e) < 6e-3


@pytest.mark.parametrize("shape", [(2, 5, 7, 96), (3, 40, 384), (1, 130, 40)])
@pytest.mark.parametrize(("dtype", "near"), [(jnp.float32, 1e-6), (jnp.bfloat16, 4e-3)])
def test_row_normalisation_equals_xla(shape, dtype, near, monkeypatch):
    monkeypatch.setattr(row_norm, "_PROGRAMS", 2)  # each program then takes several blocks, and one an incomplete block
    x, d = 3 + normal(0, *shape, dtype=dtype), normal(3, *shape, dtype=dtype)
    scale, bias = normal(1, shape[-1]), normal(2, shape[-1])
    wanted = with_gradients(lambda *a: norms.layer_norm(*a, EPSILON), x, scale, bias, d)
    ours = row_norm.forward(x, scale, bias, EPSILON), *row_norm.backward(x, scale, d, EPSILON)
    assert [a.dtype for a in ours] == [a.dtype for a in wanted]
    assert max(map(relative, ours, wanted)) < near


def small_swin(images):
    config = swin.SwinConfig(32, (2, 2), (2, 2), 4, stochastic_depth=0.0)
    graph, params, rest = nnx.split(swin.Swin(config, num_classes=3, rngs=seeded(default=0)), nnx.Param, ...)
    return with_gradients(lambda params: nnx.merge(graph, params, rest)(images), params, normal(4, 2, 3))


def test_a_swin_transformer_with_kernels_equals_one_without(monkeypatch):
    images = normal(0, 2, 64, 96, 3)
    without = small_swin(images)
    called = []
    original = kernels.call
    monkeypatch.setattr(kernels, "window_kernel_supports", lambda *_: True)
    monkeypatch.setattr(kernels, "row_kernel_supports", lambda *_: True)
    monkeypatch.setattr(kernels, "call", lambda kernel, **given: called.append(kernel) or original(kernel, **given))
    ours = small_swin(images)
    # Forward and backward passes of 4 blocks and of 11 norms: in the blocks, the embedding, the merging, the last one.
    assert len(called) == 2 * (4 + 11)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(without), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)


@pytest.mark.devices
def test_each_device_computes_only_its_part(monkeypatch):
    layout, cut = Layout(2, jax.devices()[:4]), CUTS[1]
    arrays = attention_arrays(cut, b=8)
    seen = []
    monkeypatch.setattr(window_attention, "_forward", watched(window_attention._forward, seen))
    monkeypatch.setattr(window_attention, "_backward", watched(window_attention._backward, seen))
    monkeypatch.setattr(row_norm, "_backward", watched(row_norm._backward, seen))

    def both(qkv, qkv_bias, bias, d):
        with sharded_calls(layout.shard_map_batch):
            y, back = jax.vjp(lambda *a: window_attention.window_attention(*a, cut), qkv, qkv_bias, bias)
            return y, *back(d), *row_norm.backward(y, jnp.ones(y.shape[-1]), d, EPSILON)

    undivided = with_gradients(lambda *a: plain_attention(*a, cut), *arrays)
    divided = [jax.device_put(a, layout.batch if a.shape[0] == 8 else layout.replicated) for a in arrays]
    y, dqkv, *sums = jax.jit(both)(*divided)
    assert seen == [2, 2, 2]
    assert y.sharding.is_equivalent_to(layout.batch, y.ndim)
    assert dqkv.sharding.is_equivalent_to(layout.batch, dqkv.ndim)
    assert max(map(relative, (y, dqkv, *sums[:2]), undivided)) < 1e-6
    normed = row_norm.backward(undivided[0], jnp.ones(y.shape[-1]), arrays[-1], EPSILON)
    assert max(map(relative, sums[2:], normed)) < 1e-5


def watched(function, seen):
    def call(first, *rest, **named):
        seen.append(first.shape[0])
        return function(first, *rest, **named)

    return call


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
def test_the_kernels_lower_to_triton(monkeypatch):
    """The target is an H100, which need not be present."""
    original = pallas.pallas_call
    monkeypatch.setattr(pallas, "pallas_call", lambda kernel, interpret, **given: original(kernel, **given))
    cut = Cut(3, 7, 3, 3)

    def all_kernels(qkv, qkv_bias, bias, d):
        y, back = jax.vjp(lambda *a: window_attention.window_attention(*a, cut), qkv, qkv_bias, bias)
        scale = jnp.ones(y.shape[-1])
        return back(d), row_norm.forward(y, scale, scale, EPSILON), row_norm.backward(y, scale, d, EPSILON)

    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    arrays = attention_arrays(cut, b=4, dtype=jnp.bfloat16, size=32)
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device)):
        text = jax.jit(all_kernels).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 4


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize(("side", "heads", "shift"), [(56, 3, 3), (14, 12, 0), (7, 24, 0)])
def test_compiled_kernels_are_close_to_float32(side, heads, shift):
    cut, c = Cut(heads, 7, shift, shift), 32 * heads
    d, qkv = (normal(seed, 32, side, side, width, dtype=jnp.bfloat16) for seed, width in ((0, c), (1, 3 * c)))
    arrays = qkv, normal(2, 3 * c, dtype=jnp.bfloat16), normal(3, heads, 49, 49), d
    with jax.default_matmul_precision("highest"):
        exact = with_gradients(lambda *a: plain_attention(*a, cut), *(a.astype(jnp.float32) for a in arrays))
    ours = with_gradients(lambda *a: window_attention.window_attention(*a, cut), *arrays)
    assert max(map(relative, ours, exact)) < 6e-3
    for dtype, near in ((jnp.float32, 1e-6), (jnp.bfloat16, 4e-3)):
        x, scale, bias = d.astype(dtype), normal(1, c), normal(2, c)
        ours = row_norm.forward(x, scale, bias, EPSILON), *row_norm.backward(x, scale, x, EPSILON)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(kernels.SWITCH, "off")
            wanted = with_gradients(lambda *a: norms.layer_norm(*a, EPSILON), x, scale, bias, x)
        assert max(map(relative, ours, wanted)) < near


class _Device:
    platform = "gpu"

    def __init__(self, capability: str | None) -> None:
        if capability:
            self.compute_capability = capability


@pytest.mark.parametrize(
    ("capability", "switch", "usable"),
    [
        ("9.0", None, True),
        ("12.0", "on", True),
        ("9.0", "off", False),
        ("7.5", None, False),
        ("gfx942", None, False),
        (None, None, False),
    ],
)
def test_kernels_need_an_nvidia_gpu_with_bfloat16(capability, switch, usable, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [_Device(capability)])
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    if switch:
        monkeypatch.setenv(kernels.SWITCH, switch)
    assert kernels.usable() is usable
    assert kernels.row_kernel_supports(jnp.float32, 96) is usable
    assert kernels.window_kernel_supports(jnp.bfloat16, 7, 32) is usable
    assert not kernels.window_kernel_supports(jnp.float32, 7, 32)
    assert not kernels.window_kernel_supports(jnp.bfloat16, 12, 32)
    assert not kernels.window_kernel_supports(jnp.bfloat16, 7, 24)


def test_an_unknown_value_of_the_switch_is_an_error(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv(kernels.SWITCH, "no")
    with pytest.raises(RunError, match="HISTOJAX_KERNELS='no' is not one of on, off"):
        kernels.usable()
