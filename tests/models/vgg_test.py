"""VGG16, with batch norm and with Inception blocks: stages, layers, dropout. See contract_test.py for the rest."""

from __future__ import annotations

import functools
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from histojax import models
from histojax.models.ops.pooling import adaptive_avg_pool
from histojax.models.rngs import seeded
from histojax.models.vgg import (
    VGG,
    Classifier,
    Inception,
    VGGConfig,
    VGGFeaturesConfig,
    VGGInception,
    VGGInceptionConfig,
)
from tests.helpers.modules import evaluation, flat, map_shapes

K = 3
SMALL = {"widths": (4, 4, 8, 8, 8), "depths": (1, 2, 1, 1, 1)}
INCEPTIONS = ((4, 2, 4, 2, 4, 4), (2, 2, 4, 2, 4, 2))
KINDS = ("plain", "inception")


@functools.cache
def small(kind="plain", *, batch_norm=False):
    if kind == "plain":
        return VGG(VGGConfig(**SMALL, batch_norm=batch_norm, hidden=16), num_classes=K, rngs=seeded(default=0))
    config = VGGInceptionConfig(**SMALL, batch_norm=batch_norm, inceptions=INCEPTIONS)
    return VGGInception(config, num_classes=K, rngs=seeded(default=0))


def test_feature_maps_have_the_names_and_sizes_of_the_stages():
    wanted = {"conv1": (224, 224, 64), "conv2": (112, 112, 128), "conv3": (56, 56, 256), "conv4": (28, 28, 512)}
    wanted |= {"conv5": (14, 14, 512), "pool5": (7, 7, 512)}
    for name in ("vgg16", "vgg16_bn", "vgg16_inception"):
        model = nnx.eval_shape(lambda name=name: models.create(name, num_classes=K, rngs=seeded(default=0)))
        more = {"inception1": (7, 7, 832), "inception2": (7, 7, 1024)} if "inception" in name else {}
        assert map_shapes(model, 224, 224) == wanted | more
    heights_and_widths = [(75, 97), (37, 48), (18, 24), (9, 12), (4, 6), (2, 3)]
    assert [shape[:2] for shape in map_shapes(small(), 75, 97).values()] == heights_and_widths


@pytest.mark.parametrize("kind", KINDS)
def test_images_smaller_than_32_are_refused(kind):
    for size in ((31, 64), (64, 8)):
        with pytest.raises(ValueError, match=f"at least 32, not {size[0]}×{size[1]}"):
            map_shapes(small(kind), *size)


def test_hidden_dense_layers_lie_in_classifier_and_the_last_one_in_head():
    model = nnx.eval_shape(lambda: models.create("vgg16", num_classes=K, rngs=seeded(default=0)))
    dense = {name: v.shape for name, v in flat(nnx.state(model)).items() if "kernel" in name and "blocks" not in name}
    assert dense == {
        "classifier/fc1/kernel": (25088, 4096),
        "classifier/fc2/kernel": (4096, 4096),
        "head/kernel": (4096, K),
    }


def test_batch_norm_is_only_where_requested():
    assert not [name for name in flat(nnx.state(small())) if "norm" in name]
    norms = {name for name in flat(nnx.state(small(batch_norm=True))) if name.endswith("norm/mean")}
    assert len(norms) == sum(SMALL["depths"])
    for batch_norm in (False, True):
        names = flat(nnx.state(small("inception", batch_norm=batch_norm)))
        assert any("blocks" in name and "norm" in name for name in names) == batch_norm
        assert any("inceptions" in name and "norm" in name for name in names)
    made = nnx.eval_shape(
        lambda: models.create("vgg16_inception", num_classes=K, rngs=seeded(default=0), batch_norm=True)
    )
    assert "blocks/4/layers/2/norm/scale" in flat(nnx.state(made))


def test_adaptive_averages_equal_hand_computed_values():
    x = jnp.arange(5.0).reshape(1, 5, 1, 1)
    # Cells of 5 positions on a grid of 3: 0-1, 1-3 and 3-4; the one column is repeated.
    wanted = np.broadcast_to(np.array([0.5, 2.0, 3.5])[:, None], (3, 3))
    np.testing.assert_allclose(adaptive_avg_pool(x, 3)[0, :, :, 0], wanted)
    assert adaptive_avg_pool(x.astype(jnp.bfloat16), 3).dtype == jnp.bfloat16


def test_branches_have_receptive_fields_of_1_3_and_5_pixels():
    block = evaluation(Inception(2, (1, 1, 1, 1, 1, 1), rngs=seeded(default=0)))
    for unit in (block.branch1, *block.branch2, *block.branch3, block.branch4):
        unit.conv.kernel[...] = jnp.ones_like(unit.conv.kernel[...])
    x = np.zeros((1, 9, 9, 2), np.float32)
    x[0, 4, 4] = 1
    y = np.asarray(block(jnp.asarray(x)))[0]
    assert [int((y[..., i] > 0).sum()) for i in range(4)] == [1, 9, 25, 9]


def test_dropout_follows_both_hidden_layers():
    layers = Classifier(4, 64, 0.5, rngs=seeded(default=0))
    layers.fc1.kernel[...], layers.fc1.bias[...] = jnp.zeros((4, 64)), jnp.ones(64)
    layers.fc2.kernel[...] = jnp.eye(64)
    y = np.asarray(layers(np.ones((64, 4), np.float32)))
    assert set(np.unique(y)) == {0.0, 4.0}
    assert np.mean(y == 0) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(("name", "rate"), [("vgg16", 0.5), ("vgg16_bn", 0.5), ("vgg16_inception", 0.4)])
def test_dropout_rates_follow_the_options(name, rate):
    for options, wanted in (({}, rate), ({"dropout": 0.1}, 0.1)):
        model = nnx.eval_shape(lambda o=options: models.create(name, num_classes=K, rngs=seeded(default=0), **o))
        found = [model.dropout] if "inception" in name else [model.classifier.dropout1, model.classifier.dropout2]
        assert [dropout.rate for dropout in found] == [wanted] * len(found)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (VGGFeaturesConfig, {"widths": (64, 128)}, "widths=(64, 128) is not five positive numbers"),
        (VGGFeaturesConfig, {"depths": (2, 2, 3, 3, 0)}, "depths=(2, 2, 3, 3, 0) is not five positive numbers"),
        (VGGConfig, {"hidden": 0}, "hidden=0 is not a positive number"),
        (VGGConfig, {"dropout": 1.0}, "dropout=1.0 is not in [0, 1)"),
        (VGGInceptionConfig, {"dropout": -0.1}, "dropout=-0.1 is not in [0, 1)"),
        (VGGInceptionConfig, {"inceptions": ()}, "inceptions=() is not a tuple of blocks of six positive numbers each"),
        (VGGInceptionConfig, {"inceptions": ((1, 2, 3),)}, "inceptions=((1, 2, 3),) is not a tuple of blocks of six"),
        (VGGInceptionConfig, {"inceptions": ((1, 2, 3, 4, 5, 0),)}, "is not a tuple of blocks of six positive numbers"),
    ],
)
def test_invalid_options_are_named(make, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**options)
