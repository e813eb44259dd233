"""SE-ResNet and the stages of ResNets: squeezes, gates, attention by stage. See contract_test.py for the rest."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from flax import nnx

from histojax import models
from histojax.models.ops.layers import ChannelAttention
from histojax.models.resnet import ResNet, ResNetConfig
from histojax.models.rngs import seeded
from histojax.models.seresnet import SEResNet, SEResNetConfig
from tests.helpers.modules import flat, map_shapes

K = 3
SIZES = {"stage_sizes": (1, 2, 1, 1), "width": 4, "zero_init_residual": False}
TINY = ResNetConfig(**SIZES)


def small() -> SEResNet:
    return SEResNet(SEResNetConfig(**SIZES), num_classes=K, rngs=seeded(default=0))


@pytest.mark.parametrize(
    ("channels", "reduction", "wanted"),
    [(256, 16, 16), (512, 16, 32), (1024, 16, 64), (2048, 16, 128), (8, 16, 8), (200, 16, 16), (128, 4, 32)],
)
def test_the_squeeze_has_timms_width(channels, reduction, wanted):
    assert SEResNetConfig(reduction=reduction).hidden(channels) == wanted


def test_each_block_has_a_gate_that_starts_open():
    model = nnx.eval_shape(lambda: models.create("seresnet50", num_classes=K, rngs=seeded(default=0), reduction=8))
    widths = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        assert all(isinstance(block.attention, ChannelAttention) for block in stage)
        widths += [block.attention.fc1.kernel.shape for block in stage]
    assert widths == [(256, 32)] * 3 + [(512, 64)] * 4 + [(1024, 128)] * 6 + [(2048, 256)] * 3
    block = small().layer2[0]
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 32)).astype(np.float32)
    np.testing.assert_allclose(block.attention.gate(x), 0.9526, atol=1e-4)
    assert block.attention.activation is jax.nn.relu


def test_only_the_gates_add_paths_to_resnet():
    plain, gated = (set(flat(nnx.state(m))) for m in (ResNet(TINY, num_classes=K, rngs=seeded(default=0)), small()))
    assert plain < gated
    assert all("/attention/fc" in name for name in gated - plain)


def test_attention_is_built_per_block_from_stage_and_channels():
    def make(stage, channels):
        return ChannelAttention(channels, 4 if stage == 3 else 8, rngs=seeded(default=0)) if stage else None

    model = ResNet(TINY, num_classes=K, attention=make, rngs=seeded(default=0))
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    assert model.layer1[0].attention is None
    assert [[block.attention.fc1.kernel.shape for block in stage] for stage in stages[1:]] == [
        [(32, 4)] * 2,
        [(64, 8)],
        [(128, 32)],
    ]


def test_feature_maps_have_the_names_and_sizes_of_the_stages():
    # ResNet defines the method, so it is tested as well.
    for model in (small(), ResNet(TINY, num_classes=K, rngs=seeded(default=0))):
        wanted = {"layer1": (19, 25, 16), "layer2": (10, 13, 32), "layer3": (5, 7, 64), "layer4": (3, 4, 128)}
        assert map_shapes(model, 75, 97) == wanted


@pytest.mark.parametrize("reduction", [0, -2])
def test_invalid_options_are_named(reduction):
    with pytest.raises(ValueError, match=re.escape(f"reduction={reduction} is not a positive number")):
        models.create("seresnet50", num_classes=K, rngs=seeded(default=0), reduction=reduction)
