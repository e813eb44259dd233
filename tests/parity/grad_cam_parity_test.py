"""Grad-CAM against the package grad-cam (pytorch_grad_cam), on the same random weights, class by class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from histojax import models
from histojax.inference.explain.grad_cam import feature_map_shapes, grad_cam, upsample
from histojax.weights import convert
from tests.helpers import twins

import pytorch_grad_cam  # isort: skip  (after twins, which makes torchvision importable)
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # isort: skip
import timm.models.vision_transformer  # isort: skip
import torchvision  # isort: skip

pytestmark = pytest.mark.parity
VIT = {"image_size": 64, "patch": 8, "embed_dim": 64, "depth": 3, "heads": 2}


def ours(name: str, module: torch.nn.Module, x: np.ndarray, targets: np.ndarray, **options: Any) -> np.ndarray:
    model = twins.abstract(name, **options)
    arrays = {key: value.numpy() for key, value in module.state_dict().items() if "num_batches" not in key}
    values, report = convert(arrays, models.spec(name), twins.expected(model))
    assert not report.initial
    model = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    graphdef, weights, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
    weights = jax.tree_util.tree_map_with_path(lambda p, _: jnp.asarray(values[twins.name_of(p)]), nnx.as_pure(weights))
    rest = jax.tree.map(lambda leaf: np.zeros((), np.uint32), nnx.as_pure(rest))  # keys, not used at rate 0

    def logits(x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, weights, rest)(x)

    layer = models.spec(name).default_layer(feature_map_shapes(logits, jnp.asarray(x)))
    return np.asarray(jax.jit(lambda x, t: grad_cam(logits, x, t, layer))(jnp.asarray(x), jnp.asarray(targets)))


def theirs(
    module: torch.nn.Module, layer: torch.nn.Module, x: np.ndarray, targets: np.ndarray, reshape: Any = None
) -> np.ndarray:
    with pytorch_grad_cam.GradCAM(module, [layer], reshape_transform=reshape) as cam:
        asked = [ClassifierOutputTarget(int(target)) for target in targets]
        return cam(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), asked)


def assert_same(maps: np.ndarray, wanted: np.ndarray) -> None:
    """Theirs are shifted and scaled to 0 … 1, enlarged or not."""
    height, width = wanted.shape[1:]
    compared = 0
    for one, reference in zip(maps, wanted, strict=True):
        if not reference.any():
            assert not one.any()
            continue
        found = upsample(one - one.min(), width, height)
        found = (found - found.min()) / (found.max() - found.min())
        correlation, difference = np.corrcoef(found.ravel(), reference.ravel())[0, 1], np.abs(found - reference).max()
        print(f"1 - correlation {1 - correlation:.1e}, max difference {difference:.1e}")
        assert correlation > 0.999
        assert difference < 1e-4
        compared += 1
    assert compared >= len(maps) / 2


def randomised(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    with torch.no_grad():
        return twins.randomised(make())


TARGETS = np.array([0, 1, 2, 3, 4])


def images(side: int) -> np.ndarray:
    return np.repeat(twins.images(side)[:1], len(TARGETS), axis=0)


def test_resnet50() -> None:
    module = randomised(twins.resnet50)
    x = images(224)
    assert_same(ours("resnet50", module, x, TARGETS), theirs(module, module.layer4[-1], x, TARGETS))


def test_swin_t() -> None:
    module = randomised(lambda: torchvision.models.swin_t(num_classes=twins.CLASSES))
    x = images(224)
    wanted = theirs(module, module.features[-1], x, TARGETS, lambda maps: maps.permute(0, 3, 1, 2))
    assert_same(ours("swin_tiny_patch4_window7_224", module, x, TARGETS, stochastic_depth=0.0), wanted)


def test_vit() -> None:
    module = randomised(
        lambda: timm.models.vision_transformer.VisionTransformer(
            img_size=64, patch_size=8, embed_dim=64, depth=3, num_heads=2, num_classes=twins.CLASSES
        )
    )
    x = images(64)
    wanted = theirs(
        module, module.blocks[-2], x, TARGETS, lambda tokens: tokens[:, 1:].reshape(-1, 8, 8, 64).permute(0, 3, 1, 2)
    )
    assert_same(ours("vit", module, x, TARGETS, **VIT), wanted)
