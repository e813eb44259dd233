"""SE-ResNet50 against timm's: names, stages and logits at several sizes, gradients of a shallower variant."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from histojax.models.rngs import seeded
from histojax.models.seresnet import SEResNet, SEResNetConfig
from tests.helpers import parity
from tests.helpers.modules import images

from tests.helpers import torchvision_import  # noqa: F401  # isort: skip  (timm imports torchvision)
from timm.models import resnet  # isort: skip

pytestmark = [pytest.mark.parity, pytest.mark.slow]
CLASSES = 7

# Our path -> timm's name.
RULES = (
    (r"^head/", "fc/"),
    (r"/attention/", "/se/"),
)
# Sixteen blocks must not explode, and the gates must differ.
VALUES = parity.normed_values(branch=0.5)


@pytest.fixture(scope="module")
def pair() -> parity.Pair:
    def make() -> nnx.Module:
        return SEResNet(SEResNetConfig(), num_classes=CLASSES, rngs=seeded(default=0))

    return parity.make_pair(make, resnet.seresnet50(num_classes=CLASSES), VALUES, RULES)


def test_number_of_parameters_equals_timms() -> None:
    assert parity.num_parameters("seresnet50") == 28_088_024 == parity.num_torch_parameters(resnet.seresnet50())


# 75×97: odd sizes at every stage, 19×25, 10×13, 5×7 and 3×4.
@pytest.mark.parametrize("size", [(64, 64), (75, 97)], ids=str)
def test_stages_and_logits_equal_timms(pair: parity.Pair, size: tuple[int, int]) -> None:
    parts = {f"layer{i}": getattr(pair.twin, f"layer{i}") for i in range(1, 5)}
    x = images(2, *size)
    theirs = parity.channels_last(parity.torch_outputs(pair.twin, parts, x))
    parity.assert_outputs_equal(parity.our_outputs(pair.model, x, "layer4"), theirs, size)


def test_gradients_in_train_mode_equal_timms() -> None:
    # Fewer blocks save time.
    layers = (1, 2, 1, 1)
    twin = resnet.ResNet(resnet.Bottleneck, layers, num_classes=CLASSES, block_args={"attn_layer": "se"})

    def make() -> nnx.Module:
        return SEResNet(SEResNetConfig(layers), num_classes=CLASSES, dtype=np.float64, rngs=seeded(default=0))

    # In float64: batch norm over the few values of layer4 amplifies float32 rounding beyond any honest tolerance.
    with jax.enable_x64(True):
        pair = parity.make_pair(make, twin, VALUES, RULES, training=True, dtype=np.float64)
        parity.assert_steps_equal(pair, images(4, 64, 64, np.float64), np.array([3, 5, 0, 6]))
