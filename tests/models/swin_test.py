"""Swin Transformer: windows, masks, image sizes, types, rematerialisation and stochastic depth."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from histojax import models
from histojax.models import swin
from histojax.models.rngs import seeded
from histojax.models.swin import ShiftedWindowAttention, Swin, SwinBlock, SwinConfig
from tests.helpers.modules import call, evaluation, flat, images

NAME = "swin_tiny_patch4_window7_224"
# Windows of 2 on maps of 8, 4, 2 and 1: shifted in the first two stages, padded in the last.
SMALL = {"embed_dim": 8, "depths": (2, 2, 1, 1), "heads": (2, 2, 4, 4), "window": 2}
CHANNELS, WINDOW = 4, 4


def small(**kwargs) -> Swin:
    options = {"stochastic_depth": 0.0, "rngs": seeded(default=0)} | SMALL | kwargs
    return models.create(NAME, num_classes=3, **options)


def test_windows_are_squares_of_the_map_and_can_be_reversed():
    x = np.arange(2 * 6 * 9 * 2).reshape(2, 6, 9, 2)
    windows = swin.window_partition(jnp.asarray(x), 3)
    assert windows.shape == (2, 6, 9, 2)
    np.testing.assert_array_equal(windows[1, 5], x[1, 3:6, 6:9].reshape(9, 2))
    np.testing.assert_array_equal(swin.window_reverse(windows, 3, 6, 9), x)


def test_the_bias_depends_only_on_the_relative_position():
    index = swin.relative_position_index(3).reshape(3, 3, 3, 3)
    assert sorted(set(index.ravel())) == list(range(25))
    for y, x, v, u in np.ndindex(3, 3, 3, 3):
        assert index[y, x, v, u] == (y - v + 2) * 5 + (x - u + 2)


def reach(shift, h, w) -> np.ndarray:
    """Return bool (h, w, h, w): the positions that each position's attention depends on, by the gradient."""
    attention = ShiftedWindowAttention(CHANNELS, 2, WINDOW, shift, rngs=seeded(default=0))
    x = np.random.default_rng(1).normal(size=(1, h, w, CHANNELS)).astype(np.float32)
    graphdef, state = nnx.split(attention)
    weights = np.random.default_rng(2).normal(size=(1, 1, 1, CHANNELS)).astype(np.float32)

    def outputs(x):
        return jnp.sum(nnx.merge(graphdef, state)(x) * weights, axis=(0, 3))

    return np.asarray(jnp.any(jax.jit(jax.jacrev(outputs))(x)[:, :, 0] != 0, axis=-1))


def expected_reach(shift, h, w) -> np.ndarray:
    """Return bool (h, w, h, w): the positions in the same window of a grid moved by `shift`, without wrapping."""

    def group(size, s):
        padded = -(-size // WINDOW) * WINDOW
        s = s if padded > WINDOW else 0
        return (np.arange(size) + (WINDOW - s) % WINDOW) // WINDOW

    rows, columns = group(h, shift), group(w, shift)
    same_row, same_column = (g[:, None] == g[None, :] for g in (rows, columns))
    return same_row[:, None, :, None] & same_column[None, :, None, :]


# (8, 12): no padding; (6, 10): padded; (4, 12): one window high, so shifted only along the width.
@pytest.mark.parametrize("size", [(8, 12), (6, 10), (4, 12)])
@pytest.mark.parametrize("shift", [0, 2])
def test_attention_reaches_its_window_and_nothing_else(shift, size):
    found = reach(shift, *size)
    np.testing.assert_array_equal(found, expected_reach(shift, *size))
    # Shifted windows connect neighbours across the other blocks' boundaries, but not opposite edges of the map.
    assert found[0, 3, 0, 4] == bool(shift)
    assert not found[0, 0, 0, -1]


def test_padding_takes_part_in_attention_as_zeros():
    attention = ShiftedWindowAttention(CHANNELS, 2, WINDOW, 0, rngs=seeded(default=0))
    x = np.random.default_rng(0).normal(size=(1, 3, 4, CHANNELS)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0)))
    np.testing.assert_allclose(attention(x), attention(padded)[:, :3], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (96, 160), (224, 224), (256, 256), (512, 224)])
def test_multiples_of_32_are_accepted(size):
    model = nnx.eval_shape(lambda: evaluation(models.create(NAME, num_classes=5, rngs=seeded(default=0))))
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    assert nnx.eval_shape(lambda m, x: m.features(x), model, x).shape == (2, size[0] // 32, size[1] // 32, 768)
    out = nnx.eval_shape(lambda m, x: m(x), model, x)
    assert (out.shape, out.dtype) == ((2, 5), jnp.float32)


@pytest.mark.parametrize(("size", "nearest"), [(100, "96 or 128"), (50, "32 or 64"), (20, "32"), (0, "32"), (-4, "32")])
@pytest.mark.parametrize("name", [NAME, "ldcsf"])
def test_other_sizes_are_refused_with_the_nearest_ones(name, size, nearest):
    message = re.escape(f"multiples of 32, not {size}: use {nearest}") + r"(\n|$)"  # jax may add lines
    with pytest.raises(ValueError, match=message):
        models.check_image_size(name, size)
    if size > 0:
        model = nnx.eval_shape(lambda: models.create(name, num_classes=3, rngs=seeded(default=0)))
        for shape in ((1, 64, size, 3), (1, size, 64, 3)):
            with pytest.raises(ValueError, match=message):
                nnx.eval_shape(lambda m, x: m(x), model, jax.ShapeDtypeStruct(shape, jnp.float32))


def test_published_image_sizes_are_accepted():
    for name in models.names():
        for size in (56, 112, 224) if "dinov2" in name else (32, 64, 224, 256):
            models.check_image_size(name, size)
    models.check_image_size("resnet50", 100)
    with pytest.raises(ValueError, match="at least 32, not 31"):
        models.check_image_size("dala_resnet50", 31)
    with pytest.raises(ValueError, match="unknown model 'no_such_model'"):
        models.check_image_size("no_such_model", 31)


def test_one_set_of_parameters_serves_every_size():
    model = evaluation(small())
    a, b = call(model, images(2, 32, 32)), call(model, images(2, 64, 96))
    assert a.shape == b.shape == (2, 3)
    full = nnx.eval_shape(lambda: models.create(NAME, num_classes=3, rngs=seeded(default=0)))
    nnx.eval_shape(lambda m, x: m(x), full, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    before = jax.tree.map(jnp.shape, nnx.state(full, nnx.Param))
    nnx.eval_shape(lambda m, x: m(x), full, jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32))
    assert before == jax.tree.map(jnp.shape, nnx.state(full, nnx.Param))


def test_every_parameter_gets_a_gradient_and_each_block_draws_twice():
    model = nnx.view(small(stochastic_depth=0.5), deterministic=False)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss_fn(params, rest, x):
        merged = nnx.merge(graphdef, params, rest)
        loss = -jnp.mean(jax.nn.log_softmax(merged(x))[:, 1])
        return loss, nnx.as_pure(nnx.state(merged, nnx.RngCount))

    grads, counts = jax.jit(jax.grad(loss_fn, has_aux=True))(nnx.as_pure(params), nnx.as_pure(rest), images(8))
    assert not [name for name, grad in flat(grads).items() if not np.linalg.norm(grad) > 0]
    # The first block draws nothing, because its rate is 0.
    assert sorted(int(v) for name, v in flat(counts).items() if "stochastic_depth" in name) == [0, 2, 2, 2, 2, 2]


def test_stochastic_depth_drops_whole_images_and_keeps_the_expectation():
    rate, b = 0.25, 4096
    block = SwinBlock(CHANNELS, 2, 2, drop_rate=rate, rngs=seeded(default=0))
    x = np.random.default_rng(0).normal(size=(1, 2, 2, CHANNELS)).astype(np.float32)
    attended = x + block.attn(block.norm1(x))
    block.mlp.fc2.kernel[...] = jnp.zeros_like(block.mlp.fc2.kernel[...])
    branch = np.asarray(attended - x)
    got = np.asarray(block(np.broadcast_to(x, (b, 2, 2, CHANNELS)))) - x
    dropped = (got == 0).all((1, 2, 3))
    np.testing.assert_allclose(got[~dropped], np.broadcast_to(branch / (1 - rate), got[~dropped].shape), atol=1e-6)
    assert dropped.mean() == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / b))


def test_stochastic_depth_grows_linearly_over_all_blocks():
    model = nnx.eval_shape(lambda: models.create(NAME, num_classes=3, rngs=seeded(default=0), stochastic_depth=0.22))
    rates = [block.stochastic_depth.rate for stage in model.stages for block in stage]
    np.testing.assert_allclose(rates, 0.02 * np.arange(12))
    assert SwinConfig(depths=(1,), heads=(3,)).drop_rate(0) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windw": 4}, "unknown option 'windw' of swin_tiny_patch4_window7_224 (did you mean 'window'?)"),
        ({"window": 0}, "window=0 is not a positive number"),
        ({"embed_dim": 0}, "embed_dim=0 is not a positive number"),
        ({"depths": (2, 0)}, "depths=(2, 0) is not a tuple of positive numbers"),
        ({"heads": ()}, "heads=() is not a tuple of positive numbers"),
        ({"depths": (2, 2)}, "depths=(2, 2) and heads=(3, 6, 12, 24) are not of the same length"),
        ({"depths": (1,) * 5, "heads": (3,) * 5}, "depths=(1, 1, 1, 1, 1): at most four stages"),
        ({"embed_dim": 32}, "heads=(3, 6, 12, 24): 3 does not divide 32 channels"),
        ({"mlp_ratio": 0}, "mlp_ratio=0 is not positive"),
        ({"stochastic_depth": 1.0}, "stochastic_depth=1.0 is not in [0, 1)"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        nnx.eval_shape(lambda: models.create(NAME, num_classes=3, rngs=seeded(default=0), **options))
