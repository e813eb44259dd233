"""Parameters, floating-point operations and feature maps of the models, without allocating them."""

import pytest

from histojax import models
from histojax.models.cost import cost, measure
from histojax.models.ops import kernels


def test_resnet50_has_its_published_cost() -> None:
    parameters, flops = cost("resnet50", 1000, 224, {})
    assert parameters == 25_557_032
    assert 7.5e9 < flops < 9e9  # 4.1 G multiply-adds of two operations each, and the rest


def test_the_cost_is_counted_without_gpu_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"depths": (1,), "heads": (2,), "embed_dim": 32}
    expected = cost("swin_tiny_patch4_window7_224", 2, 56 * 4, small)
    monkeypatch.setattr(kernels, "usable_here", lambda: True)
    monkeypatch.setattr(kernels, "call", None)  # any call fails
    assert kernels.usable()
    assert cost("swin_tiny_patch4_window7_224", 2, 56 * 4, small) == expected


@pytest.mark.parametrize("name", models.names())
def test_feature_maps_never_grow(name: str) -> None:
    maps = measure(name, 1000, 224, {}).feature_maps
    heights = [shape[0] for shape in maps.values()]
    assert heights == sorted(heights, reverse=True)
    patches_of_16, patches_of_14 = ("vit_base_patch16_224", "vit"), ("dinov2_vitb14", "vit_small_patch14_dinov2")
    assert heights[-1] == (14 if name in patches_of_16 else 16 if name in patches_of_14 else 7)
