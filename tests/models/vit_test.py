"""Vision Transformers: sizes, types, rematerialisation, stochastic depth, pooling, and messages for illegal options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from histojax import models
from histojax.models.rngs import seeded
from histojax.models.vit import resample_positions

SMALL = {"image_size": 32, "patch": 8, "embed_dim": 16, "depth": 2, "heads": 2}


def small(**options):
    settings = {"dtype": jnp.float32, "remat": False} | SMALL | options
    return models.create("vit", num_classes=3, rngs=seeded(params=0, dropout=1), **settings)


def images(h=32, w=32, b=2):
    return jnp.asarray(np.random.default_rng(0).normal(size=(b, h, w, 3)), jnp.float32)


def evaluated(model):
    return nnx.view(model, deterministic=True)


def test_any_multiple_of_the_patch_works_with_the_same_parameters():
    model = evaluated(small())
    assert model(images()).shape == (2, 3)
    assert model(images(48, 24)).shape == (2, 3)
    maps = model.feature_maps(images(48, 24))
    assert {name: m.shape for name, m in maps.items()} == {"block1": (2, 6, 3, 16), "block2": (2, 6, 3, 16)}
    with pytest.raises(ValueError, match="multiples of 8, not 30: use 24 or 32"):
        model(images(30, 32))
    with pytest.raises(ValueError, match="multiples of 14, not 64: use 56 or 70"):
        models.check_image_size("dinov2_vitb14", 64)
    models.check_image_size("vit_base_patch16_224", 64)


def test_resampling_keeps_a_constant_position_embedding():
    model = evaluated(small())
    model.position_embedding[...] = jnp.full_like(model.position_embedding[...], 0.7)
    np.testing.assert_allclose(resample_positions(model.position_embedding[...], (4, 4), (7, 2)), 0.7, rtol=1e-6)


def test_bfloat16_is_close_and_returns_float32():
    wide, narrow = evaluated(small())(images()), evaluated(small(dtype=jnp.bfloat16))(images())
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, atol=0.05)
    assert not np.array_equal(narrow, wide)


def test_rematerialisation_changes_no_values():
    def value(model, x):
        return jnp.sum(model(x) ** 2)

    results = [nnx.value_and_grad(value)(evaluated(small(remat=remat)), images()) for remat in (False, True)]
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), results[0][1], results[1][1])


def test_drops_are_random_in_training_and_off_in_evaluation():
    model = small(stochastic_depth=0.5, dropout=0.1)
    assert not np.array_equal(model(images()), model(images()))
    still = evaluated(model)
    np.testing.assert_array_equal(still(images()), still(images()))


def test_stochastic_depth_drops_whole_images():
    model = small(stochastic_depth=0.9)
    before = model.feature_maps(images(b=64))
    same = np.all(np.isclose(before["block1"], before["block2"]), axis=(1, 2, 3))
    assert 0.6 < same.mean() < 0.95  # both branches of the last block dropped: 0.81


@pytest.mark.parametrize(("pool", "width"), [("token", 16), ("mean", 16), ("token_mean", 32)])
def test_the_head_sees_the_pooled_tokens(pool, width):
    model = evaluated(small(pool=pool))
    assert model.head.kernel.shape == (width, 3)
    tokens = model.features(images())
    token, mean = tokens[:, 0], tokens[:, 1:].mean(1)
    seen = {"token": token, "mean": mean, "token_mean": jnp.concatenate([token, mean], -1)}[pool]
    np.testing.assert_allclose(model(images()), seen @ model.head.kernel[...], atol=1e-5)


def test_layer_scale_scales_the_branches():
    model = evaluated(small(layer_scale=1e-30))
    maps = model.feature_maps(images())
    np.testing.assert_array_equal(maps["block1"], maps["block2"])
    assert small().blocks[0].scale1 is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads=3 does not divide embed_dim=16"),
        ({"pool": "max"}, "pool='max' is not one of 'token', 'mean', 'token_mean'"),
        ({"image_size": 30}, "multiples of 8, not 30"),
        ({"depth": 0}, "depth=0 is not a positive number"),
        ({"dropout": 1.0}, r"dropout=1.0 is not in \[0, 1\)"),
        ({"layer_scale": -1.0}, "layer_scale=-1.0 is negative"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)
