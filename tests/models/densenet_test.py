"""DenseNet: channels, stages, dropout after each layer. See contract_test.py for the rest."""

from __future__ import annotations

import re

import numpy as np
import pytest
from flax import nnx

from histojax import models
from histojax.models.densenet import DenseNet, DenseNetConfig
from histojax.models.rngs import seeded
from tests.helpers.modules import call, evaluation, images, map_shapes

K = 3
SMALL = {"growth_rate": 4, "block_sizes": (2, 3, 1, 2), "width": 8, "bn_size": 2}


def small(*, seed=0, drop_rate=0.0) -> DenseNet:
    config = DenseNetConfig(**SMALL, drop_rate=drop_rate)
    return DenseNet(config, num_classes=K, rngs=seeded(params=0, dropout=seed))


def test_channels_grow_and_are_halved():
    # Table 1 of the paper, and torchvision's in_features of its transitions and classifier.
    config = DenseNetConfig()
    assert [config.in_features(i) for i in range(4)] == [64, 128, 256, 512]
    assert [config.out_features(i) for i in range(4)] == [256, 512, 1024, 1024]
    model = nnx.eval_shape(lambda: models.create("densenet121", num_classes=K, rngs=seeded(default=0)))
    assert [len(block) for block in model.blocks] == [6, 12, 24, 16]
    assert map_shapes(model, 224, 224) == {
        "block1": (56, 56, 256),
        "block2": (28, 28, 512),
        "block3": (14, 14, 1024),
        "block4": (7, 7, 1024),
        "norm5": (7, 7, 1024),
    }


@pytest.mark.parametrize("size", [(32, 32), (75, 97)])
def test_sizes_are_rounded_down_at_transitions(size):
    h, w = (-(-n // 4) for n in size)
    found = map_shapes(nnx.eval_shape(small), *size)
    assert [found[f"block{i + 1}"][:2] for i in range(4)] == [(h // 2**i, w // 2**i) for i in range(4)]


def test_dropout_follows_each_layer_in_training_only():
    def new(model):
        """Return the channels that the first block's layers add."""
        return np.asarray(call(model, images(8), lambda m, x: m.feature_maps(x)["block1"]))[..., SMALL["width"] :]

    one, other = (small(drop_rate=0.5, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(new(evaluation(one)), new(evaluation(small())))
    assert not np.array_equal(new(one), new(other))
    assert np.mean(new(one) == 0) == pytest.approx(0.5, abs=0.05)
    made = nnx.eval_shape(lambda: models.create("densenet121", num_classes=K, rngs=seeded(default=0), drop_rate=0.2))
    assert {layer.dropout.rate for block in made.blocks for layer in block} == {0.2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth_rate": 0}, "growth_rate=0 is not a positive number"),
        ({"width": 0}, "width=0 is not a positive number"),
        ({"bn_size": -1}, "bn_size=-1 is not a positive number"),
        ({"block_sizes": (6, 12, 24)}, "block_sizes=(6, 12, 24) is not four positive numbers"),
        ({"block_sizes": (6, 12, 24, 0)}, "block_sizes=(6, 12, 24, 0) is not four positive numbers"),
        ({"drop_rate": 1.0}, "drop_rate=1.0 is not in [0, 1)"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DenseNetConfig(**options)
    if "drop_rate" in options:
        with pytest.raises(ValueError, match=re.escape(message)):
            models.create("densenet121", num_classes=K, rngs=seeded(default=0), **options)
