"""Swin-T against torchvision's: names, logits at several sizes, and gradients of every parameter and of the input."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from histojax import models
from histojax.models.rngs import seeded
from tests.helpers import parity
from tests.helpers.modules import call, images
from tests.helpers.torchvision_import import StochasticDepth, swin_t

pytestmark = [pytest.mark.parity, pytest.mark.slow]
CLASSES = 7

# Our path -> torchvision's name.
RULES = (
    (r"^patch_embed/proj", "features/0/0"),
    (r"^patch_embed/norm", "features/0/2"),
    (r"^stages/(\d)", lambda m: f"features/{2 * int(m[1]) + 1}"),
    (r"^merges/(\d)", lambda m: f"features/{2 * int(m[1]) + 2}"),
    (r"/mlp/fc1", "/mlp/0"),
    (r"/mlp/fc2", "/mlp/3"),
)


def without_stochastic_depth() -> torch.nn.Module:
    twin = swin_t(num_classes=CLASSES)
    for module in twin.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0
    return twin


def make_pair(*, training: bool = False, dtype: Any = np.float32) -> parity.Pair:
    def make() -> nnx.Module:
        return models.create(
            "swin_tiny_patch4_window7_224",
            num_classes=CLASSES,
            stochastic_depth=0.0,
            dtype=dtype,
            rngs=seeded(default=0),
        )

    twin = without_stochastic_depth()
    return parity.make_pair(make, twin, parity.attention_values, RULES, training=training, dtype=dtype)


@pytest.fixture(scope="module")
def pair() -> parity.Pair:
    return make_pair()


def test_number_of_parameters_equals_torchvisions() -> None:
    ours = parity.num_parameters("swin_tiny_patch4_window7_224")
    assert ours == 28_288_354 == parity.num_torch_parameters(swin_t())


# 224: whole windows, the last stage a single one. 256: padding everywhere. 64: maps of 16, 8, 4 and 2, so padded
# windows of which some are not shifted. 64×192: shifted along one axis only (8×24 padded to 14×28, 4×12 to 7×14).
@pytest.mark.parametrize("size", [(224, 224), (256, 256), (64, 64), (64, 96), (64, 192)], ids=str)
def test_logits_equal_torchvisions(pair: parity.Pair, size: tuple[int, int]) -> None:
    x = images(2 if size[0] < 100 else 1, *size)
    theirs = {"logits": parity.torch_logits(pair.twin, x)}
    parity.assert_outputs_equal({"logits": call(pair.model, x)}, theirs, size)


def test_gradients_in_train_mode_equal_torchvisions() -> None:
    # In float64, where an error of 1e-8 is a mistake and not rounding. 96×64: maps of 24×16, 12×8, 6×4 and 3×2.
    with jax.enable_x64(True):
        pair = make_pair(training=True, dtype=np.float64)
        parity.assert_steps_equal(pair, images(2, 96, 64, np.float64), np.array([3, 5]))
