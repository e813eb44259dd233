"""DenseNet-121 against torchvision's: names, stages and logits at several sizes, gradients of a small variant."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from histojax import models
from histojax.models.densenet import DenseNet, DenseNetConfig
from histojax.models.rngs import seeded
from tests.helpers import parity
from tests.helpers.modules import images

from tests.helpers import torchvision_import  # noqa: F401  # isort: skip  (makes torchvision importable)
from torchvision.models import densenet  # isort: skip

pytestmark = [pytest.mark.parity, pytest.mark.slow]
CLASSES = 7

# Our path -> torchvision's name.
RULES = (
    (r"^head/", "classifier/"),
    (r"^(conv0|norm0|norm5)/", r"features/\1/"),
    (r"^blocks/(\d)/(\d+)", lambda m: f"features/denseblock{int(m[1]) + 1}/denselayer{int(m[2]) + 1}"),
    (r"^transitions/(\d)", lambda m: f"features/transition{int(m[1]) + 1}"),
)


@pytest.fixture(scope="module")
def pair() -> parity.Pair:
    def make() -> nnx.Module:
        return models.create("densenet121", num_classes=CLASSES, rngs=seeded(default=0))

    return parity.make_pair(make, densenet.densenet121(num_classes=CLASSES), parity.normed_values(), RULES)


def test_number_of_parameters_equals_torchvisions() -> None:
    assert parity.num_parameters("densenet121") == 7_978_856 == parity.num_torch_parameters(densenet.densenet121())


# 75×97: maps of 19×25, 9×12, 4×6 and 2×3, odd ones cut at the transitions.
@pytest.mark.parametrize("size", [(64, 64), (75, 97)], ids=str)
def test_stages_and_logits_equal_torchvisions(pair: parity.Pair, size: tuple[int, int]) -> None:
    children = dict(pair.twin.features.named_children())
    parts = {f"block{i}": children[f"denseblock{i}"] for i in range(1, 5)} | {"norm5": children["norm5"]}
    x = images(2, *size)
    theirs = parity.channels_last(parity.torch_outputs(pair.twin, parts, x))
    parity.assert_outputs_equal(parity.our_outputs(pair.model, x, "norm5"), theirs, size)


def test_gradients_in_train_mode_equal_torchvisions() -> None:
    config = DenseNetConfig(growth_rate=4, block_sizes=(2, 3, 2, 2), width=8, bn_size=2)
    twin = densenet.DenseNet(
        growth_rate=4, block_config=(2, 3, 2, 2), num_init_features=8, bn_size=2, num_classes=CLASSES
    )

    def make() -> nnx.Module:
        return DenseNet(config, num_classes=CLASSES, dtype=np.float64, rngs=seeded(default=0))

    # In float64: batch norm over few values amplifies float32 rounding beyond any honest tolerance.
    with jax.enable_x64(True):
        pair = parity.make_pair(make, twin, parity.normed_values(), RULES, training=True, dtype=np.float64)
        parity.assert_steps_equal(pair, images(4, 64, 64, np.float64), np.array([3, 5, 0, 6]))
