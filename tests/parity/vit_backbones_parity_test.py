"""The Vision Transformers of pathology and of DINOv2 with registers and gates, small, against timm and transformers."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import numpy as np
import pytest
import torch

from histojax import models
from histojax.weights import export, inspect
from histojax.weights.fitting import fit
from tests.helpers import twins

import timm  # isort: skip  (after twins, which makes torchvision importable)
import timm.layers  # isort: skip
import transformers  # isort: skip

pytestmark = pytest.mark.parity
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": twins.CLASSES}
OURS = {"image_size": 32, "patch": 8, "embed_dim": 24, "depth": 2, "heads": 2}
GATED = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU, "mlp_ratio": 2.66667 * 2}
REGISTERS = {"reg_tokens": 3, "no_embed_class": True}


def from_timm(**options: Any) -> torch.nn.Module:
    settings = SIZES | {"init_values": 1e-5} | options
    return twins.randomised(timm.models.vision_transformer.VisionTransformer(**settings))


def arrays_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


@functools.cache
def ours(**options: Any) -> Any:
    return twins.abstract("vit", **OURS | {"layer_scale": 1e-5} | options)


def assert_same_logits(module: torch.nn.Module, arrays: dict[str, np.ndarray], model: Any, side: int = 32) -> str:
    expected = twins.expected(model)
    values, words = fit(arrays, "vit", expected, "a file")
    assert values.keys() == expected.keys()
    x = twins.images(side)
    wanted = twins.torch_logits(module, x)
    assert 1e-2 < wanted.std() < 1e2
    np.testing.assert_allclose(twins.logits(model, values, x), wanted, atol=1e-4 * np.abs(wanted).max())
    return words


@pytest.mark.parametrize(
    ("theirs", "options"),
    [
        ({}, {}),  # UNI, Prov-GigaPath's layout
        (GATED, {"mlp": "swiglu", "mlp_ratio": 5.33334}),  # Prov-GigaPath
        (REGISTERS | GATED, {"registers": 3, "mlp": "swiglu", "mlp_ratio": 5.33334}),  # UNI2-h, H-optimus-0
        # Virchow2: the registers and the class token have positions.
        (GATED | {"reg_tokens": 4}, {"registers": 4, "mlp": "swiglu", "mlp_ratio": 5.33334}),
        ({"no_embed_class": True}, {}),
        ({"global_pool": "avg", "fc_norm": False}, {"pool": "mean"}),
        (REGISTERS | {"global_pool": "avg", "fc_norm": False}, {"registers": 3, "pool": "mean"}),
    ],
    ids=["plain", "gated", "gated, registers", "placed registers", "class not placed", "mean", "mean, registers"],
)
def test_logits_are_timms(theirs: dict[str, Any], options: dict[str, Any]) -> None:
    module = from_timm(**theirs)
    words = assert_same_logits(module, arrays_of(module), ours(**options))
    assert "resampled" not in words
    assert "timm/DINOv2 names" in words


def test_registers_are_timms_at_other_sizes_and_from_other_grids() -> None:
    module = from_timm(**REGISTERS, dynamic_img_size=True)
    assert_same_logits(module, arrays_of(module), ours(registers=3), side=48)
    other = from_timm(**REGISTERS | {"img_size": 56})
    arrays = arrays_of(other)
    other.set_input_size((32, 32))
    assert "resampled from 7×7 to 4×4" in assert_same_logits(other, arrays, ours(registers=3))


def test_what_goes_out_is_loaded_by_timm() -> None:
    module = from_timm(**REGISTERS, **GATED)
    model = ours(registers=3, mlp="swiglu", mlp_ratio=5.33334)
    values, _ = fit(arrays_of(module), "vit", twins.expected(model), "a file")
    back = from_timm(**REGISTERS, **GATED)
    torch.nn.init.zeros_(back.reg_token)
    back.load_state_dict({name: torch.from_numpy(a) for name, a in export(values, models.spec("vit")).items()})
    np.testing.assert_array_equal(
        twins.torch_logits(back, twins.images(32)), twins.torch_logits(module, twins.images(32))
    )


def test_dinov2s_own_names_with_registers_and_gates() -> None:
    # The file as facebookresearch's code writes it: the class token has a position, the registers have none.
    module = from_timm(**REGISTERS, **GATED)
    arrays = arrays_of(module)
    position = np.random.default_rng(0).normal(size=(1, 1, 24)).astype(np.float32)
    arrays["cls_token"] = arrays["cls_token"] - position
    arrays["pos_embed"] = np.concatenate([position, arrays["pos_embed"]], axis=1)
    arrays["mask_token"] = np.zeros((1, 24), np.float32)
    new = {"reg_token": "register_tokens", "mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
    renamed = {}
    for name, array in arrays.items():
        for ours_, theirs in new.items():
            name = name.replace(ours_, theirs)
        renamed[name] = array
    words = assert_same_logits(module, renamed, ours(registers=3, mlp="swiglu", mlp_ratio=5.33334))
    assert "DINOv2, gated names" in words


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("registers", [0, 3])
def test_hugging_faces_dinov2(gated: bool, registers: int, tmp_path: pathlib.Path) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    sizes |= {"mlp_ratio": 4, "layerscale_value": 0.5, "use_swiglu_ffn": gated}
    if registers:
        module = transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)
        )
    else:
        module = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    twins.randomised(module).save_pretrained(tmp_path)
    options = {"mlp": "swiglu", "mlp_ratio": 128 / 24} if gated else {}  # (4·24·2/3 → 64) · 2
    model = ours(registers=registers, **options)
    expected = twins.expected(model)
    values, words = fit(inspect(tmp_path / "model.safetensors").arrays, "vit", expected, "a file")
    assert "Hugging Face DINOv2" in words
    assert expected.keys() - values.keys() == {"head/kernel", "head/bias"}
    # This head returns the first channels of the class token.
    values |= {"head/kernel": np.eye(24, twins.CLASSES, dtype=np.float32), "head/bias": np.zeros(twins.CLASSES)}
    x = twins.images(32)
    with torch.no_grad():
        wanted = module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).last_hidden_state.numpy()
    found = twins.logits(model, values, x)
    np.testing.assert_allclose(found, wanted[:, 0, : twins.CLASSES], atol=1e-4 * np.abs(wanted).max())


def test_the_norms_epsilon_of_hugging_faces_vit_is_an_option(tmp_path: pathlib.Path) -> None:
    # Phikon's has 1e-12, the others 1e-6; 0.3 shows that it arrives.
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = transformers.ViTConfig(**sizes, intermediate_size=96, num_labels=twins.CLASSES, layer_norm_eps=0.3)
    module = twins.randomised(transformers.ViTForImageClassification(config))
    module.save_pretrained(tmp_path)
    arrays = inspect(tmp_path / "model.safetensors").arrays
    assert_same_logits(module, arrays, ours(layer_scale=0.0, epsilon=0.3))
    with pytest.raises(AssertionError):
        assert_same_logits(module, arrays, ours(layer_scale=0.0))
