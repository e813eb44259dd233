"""ViT-B/16 and DINOv2's ViT-B/14 against timm and torchvision: logits, named maps, gradients, position embeddings."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from histojax.models.vit import resample_positions
from tests.helpers import parity, twins
from tests.helpers.modules import call, images

import timm  # isort: skip  (after twins, which makes torchvision importable)
import timm.layers  # isort: skip
import torchvision  # isort: skip

pytestmark = [pytest.mark.parity, pytest.mark.slow]
CLASSES = twins.CLASSES
SMALL = {"image_size": 64, "embed_dim": 64, "depth": 3, "heads": 4}


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Position embeddings and tokens are drawn at scale one, so that they matter."""
    return twins.randomised(module, unscaled=("pos", "token"))


def small_timm(**options: Any) -> torch.nn.Module:
    return randomised(
        timm.models.vision_transformer.VisionTransformer(
            img_size=64, patch_size=16, embed_dim=64, depth=3, num_heads=4, num_classes=CLASSES, **options
        )
    )


def assert_logits_equal(model: nnx.Module, module: torch.nn.Module, x: np.ndarray) -> None:
    theirs = {"logits": parity.torch_logits(module, x)}
    parity.assert_outputs_equal({"logits": call(model, x)}, theirs, x.shape[1:3])


def test_logits_of_vit_equal_timms() -> None:
    module = randomised(timm.create_model("vit_base_patch16_224", num_classes=CLASSES))
    assert_logits_equal(twins.loaded("vit_base_patch16_224", module), module, images(2, 224, 224)[:1])


def test_logits_of_vit_equal_torchvisions() -> None:
    module = randomised(torchvision.models.vit_b_16(num_classes=CLASSES, image_size=64))
    assert_logits_equal(twins.loaded("vit_base_patch16_224", module, image_size=64), module, images(2, 64, 64))


@pytest.fixture(scope="module")
def dinov2() -> tuple[nnx.Module, torch.nn.Module]:
    """DINOv2's ViT-B/14 for images of 56 pixels, and timm's."""
    module = timm.create_model("vit_base_patch14_dinov2", num_classes=CLASSES, img_size=56, dynamic_img_size=True)
    return twins.loaded("dinov2_vitb14", randomised(module), image_size=56), module


def test_logits_of_dinov2_s_small_size_equal_timms() -> None:
    # One block of the published width: depth adds nothing but blocks.
    module = timm.create_model("vit_small_patch14_dinov2", num_classes=CLASSES, img_size=28, depth=1)
    model = twins.loaded("vit_small_patch14_dinov2", randomised(module), image_size=28, depth=1)
    assert_logits_equal(model, module, images(2, 28, 28))


@pytest.mark.parametrize("size", [(56, 56), (70, 84)])
def test_logits_of_dinov2_equal_timms_at_its_size_and_at_others(
    dinov2: tuple[nnx.Module, torch.nn.Module], size: tuple[int, int]
) -> None:
    assert_logits_equal(*dinov2, images(2, *size))


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("vit_base_patch16_224", {}, 86_567_656),
        # timm counts without a head at 37×37 positions; this image size gives our model as many positions.
        ("dinov2_vitb14", {"image_size": 518}, 86_579_712 + 769_000),
        ("vit_small_patch14_dinov2", {"image_size": 518}, 22_056_192 + 385_000),
    ],
)
def test_number_of_parameters_equals_timms(name: str, options: dict[str, int], count: int) -> None:
    assert parity.num_parameters(name, **options) == count


def test_named_maps_equal_timms() -> None:
    module, x = small_timm(), images(2, 64, 64)
    ours = twins.loaded("vit", module, **SMALL).feature_maps(jnp.asarray(x))
    with torch.no_grad():
        maps = module.forward_intermediates(parity.to_torch(x), intermediates_only=True)
    assert list(ours) == ["block1", "block2", "block3"]
    theirs = {name: array.numpy() for name, array in zip(ours, maps, strict=True)}
    parity.assert_outputs_equal(ours, parity.channels_last(theirs))


def test_gradients_equal_timms() -> None:
    module = small_timm(init_values=0.5).double()
    x, y = images(2, 64, 64, np.float64), np.array([1, 3])
    options = SMALL | {"layer_scale": 0.5}
    with jax.enable_x64(True):
        ours = parity.our_step(twins.loaded("vit", module, np.float64, **options), x, y)
        theirs = parity.torch_step(module, x, y)
        expected = twins.gradients_from_torch("vit", theirs, **options)
    assert abs(ours.loss - theirs.loss) < 1e-9
    parity.assert_gradients_equal(ours.gradients, expected)


@pytest.mark.parametrize(
    ("old", "new"), [((37, 37), (16, 16)), ((4, 4), (9, 9)), ((14, 14), (7, 20)), ((5, 8), (5, 8))]
)
def test_resampled_positions_equal_timms(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = np.random.default_rng(0).normal(size=(1, 1 + old[0] * old[1], 6)).astype(np.float32)
    theirs = timm.layers.resample_abs_pos_embed(torch.from_numpy(table), list(new), list(old), num_prefix_tokens=1)
    ours = resample_positions(table, old, new)
    assert isinstance(ours, np.ndarray)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    np.testing.assert_allclose(resample_positions(jnp.asarray(table), old, new), theirs.numpy(), atol=1e-5)
