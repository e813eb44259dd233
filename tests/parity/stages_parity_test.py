"""ResNet50, Swin-T and DALAResNet50 stage by stage, and ResNet50's gradients, against their references."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from tests.helpers import dala_resnet_torch, parity, twins
from tests.helpers.modules import images

pytestmark = [pytest.mark.parity, pytest.mark.slow]
SWIN = "swin_tiny_patch4_window7_224"


def layers(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {f"layer{i}": getattr(module, f"layer{i}") for i in range(1, 5)}


@pytest.fixture(scope="module")
def resnet50() -> tuple[nnx.Module, torch.nn.Module]:
    """ResNet50 and torchvision's."""
    module = twins.randomised(twins.resnet50())
    return twins.loaded("resnet50", module), module


@pytest.mark.parametrize("size", [(64, 64), (75, 97)], ids=str)
def test_stages_of_resnet50_equal_torchvisions(
    resnet50: tuple[nnx.Module, torch.nn.Module], size: tuple[int, int]
) -> None:
    model, module = resnet50
    x = images(2, *size)
    theirs = parity.channels_last(parity.torch_outputs(module, layers(module), x))
    parity.assert_outputs_equal(parity.our_outputs(model, x, "layer4"), theirs, size)


def test_stages_of_swin_equal_torchvisions() -> None:
    module = twins.randomised(twins.torchvision_swin())
    x = images(2, 96, 96)
    theirs = parity.torch_outputs(module, {f"stage{i + 1}": module.features[2 * i + 1] for i in range(3)}, x)
    model = twins.loaded(SWIN, module, **twins.SWIN)
    parity.assert_outputs_equal(parity.our_outputs(model, x, "stage3"), theirs)


def test_gradients_of_resnet50_equal_torchvisions() -> None:
    module = twins.randomised(twins.resnet50()).double().train()
    x, y = images(4, 64, 64, np.float64), np.array([3, 0, 1, 4])
    # In float64: batch norm over the few values of layer4 amplifies float32 rounding beyond any honest tolerance.
    with jax.enable_x64(True):
        model = twins.loaded("resnet50", module, np.float64)
        ours = parity.our_step(nnx.view(model, use_running_average=False), x, y)
        theirs = parity.torch_step(module, x, y)
        expected = twins.gradients_from_torch("resnet50", theirs)
    assert abs(ours.loss - theirs.loss) < 1e-9
    parity.assert_gradients_equal(ours.gradients, expected)


@pytest.mark.parametrize("attention", ["layer4", "layer4_blocks"])
def test_stages_of_dala_equal_its_twins(attention: str) -> None:
    module = dala_resnet_torch.DALAResNet50(twins.CLASSES, attention, "dual").eval()
    model = twins.abstract("dala_resnet50", attention=attention, dropout=0.0)
    draw, rng = parity.normed_values(branch=0.3), np.random.default_rng(1)
    values = {path: draw(path, shape, rng).astype(dtype) for path, (shape, dtype) in twins.expected(model).items()}
    parity.load(module, values, ())
    x = images(2, 64, 64)
    theirs = parity.channels_last(parity.torch_outputs(module, layers(module), x))
    parity.assert_outputs_equal(parity.our_outputs(twins.with_values(model, values), x, "layer4"), theirs, attention)
