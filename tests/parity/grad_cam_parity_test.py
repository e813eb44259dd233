"""Grad-CAM against the package grad-cam (pytorch_grad_cam), on the same random weights, class by class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from histojax import models
from histojax.inference.explain.grad_cam import feature_map_shapes, grad_cam, upsample
from tests.helpers import twins
from tests.helpers.modules import call
from tests.helpers.parity import to_torch

import pytorch_grad_cam  # isort: skip  (after twins, which makes torchvision importable)
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # isort: skip
import timm.models.vision_transformer  # isort: skip
import torchvision  # isort: skip

pytestmark = [pytest.mark.parity, pytest.mark.slow]
VIT = {"image_size": 64, "patch": 8, "embed_dim": 64, "depth": 3, "heads": 2}
CLASSES = np.array([0, 1, 2, 3, 4])  # the one to explain in each image


def repeated_image(side: int) -> np.ndarray:
    """One random image per class to explain, the same for all: (classes, side, side, 3)."""
    return np.repeat(twins.images(side)[:1], len(CLASSES), axis=0)


def our_maps(name: str, module: torch.nn.Module, x: np.ndarray, **options: Any) -> np.ndarray:
    """Grad-CAM maps (b, h, w) of our model with the module's values."""
    model = twins.loaded(name, module, **options)

    def maps(model: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        layer = models.spec(name).default_layer(feature_map_shapes(model, x))
        return grad_cam(model, x, jnp.asarray(CLASSES), layer)

    return np.asarray(call(model, x, maps))


def their_maps(
    module: torch.nn.Module, layer: torch.nn.Module, x: np.ndarray, reshape: Callable[..., Any] | None = None
) -> np.ndarray:
    """The package's maps, shifted and scaled to 0 … 1 and enlarged to the images: (b, side, side).

    Args:
      module: the model.
      layer: the layer to explain.
      x: images.
      reshape: output of the layer -> feature maps (b, c, h, w).
    """
    targets = [ClassifierOutputTarget(int(index)) for index in CLASSES]
    with pytorch_grad_cam.GradCAM(module, [layer], reshape_transform=reshape) as cam:
        return cam(to_torch(x), targets)


def assert_maps_equal(ours: np.ndarray, theirs: np.ndarray) -> None:
    height, width = theirs.shape[1:]
    compared = 0
    for our_map, expected in zip(ours, theirs, strict=True):
        if not expected.any():
            assert not our_map.any()
            continue
        found = upsample(our_map - our_map.min(), width, height)
        found = (found - found.min()) / (found.max() - found.min())
        correlation, difference = np.corrcoef(found.ravel(), expected.ravel())[0, 1], np.abs(found - expected).max()
        print(f"1 - correlation {1 - correlation:.1e}, max difference {difference:.1e}")
        assert correlation > 0.999
        assert difference < 1e-4
        compared += 1
    assert compared >= len(ours) / 2


def test_maps_of_resnet50_equal_the_packages() -> None:
    module, x = twins.randomised(twins.resnet50()), repeated_image(224)
    assert_maps_equal(our_maps("resnet50", module, x), their_maps(module, module.layer4[-1], x))


def test_maps_of_swin_equal_the_packages() -> None:
    module = twins.randomised(torchvision.models.swin_t(num_classes=twins.CLASSES))
    x = repeated_image(224)
    theirs = their_maps(module, module.features[-1], x, lambda maps: maps.permute(0, 3, 1, 2))
    assert_maps_equal(our_maps("swin_tiny_patch4_window7_224", module, x, stochastic_depth=0.0), theirs)


def test_maps_of_vit_equal_the_packages() -> None:
    module = twins.randomised(
        timm.models.vision_transformer.VisionTransformer(
            img_size=64, patch_size=8, embed_dim=64, depth=3, num_heads=2, num_classes=twins.CLASSES
        )
    )
    x = repeated_image(64)

    def reshape(tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, 1:].reshape(-1, 8, 8, 64).permute(0, 3, 1, 2)

    assert_maps_equal(our_maps("vit", module, x, **VIT), their_maps(module, module.blocks[-2], x, reshape))
