"""The Vision Transformers of pathology and of DINOv2 with registers and gates, small, against timm and transformers."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx

from histojax import models
from histojax.weights import export, inspect
from histojax.weights.files import Contents
from histojax.weights.fitting import fit
from tests.helpers import twins
from tests.helpers.parity import assert_outputs_equal, to_torch, torch_logits

import timm  # isort: skip  (after twins, which makes torchvision importable)
import timm.layers  # isort: skip
import transformers  # isort: skip

pytestmark = pytest.mark.parity
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": twins.CLASSES}
OURS = {"image_size": 32, "patch": 8, "embed_dim": 24, "depth": 2, "heads": 2}
GATED = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU, "mlp_ratio": 2.66667 * 2}
REGISTERS = {"reg_tokens": 3, "no_embed_class": True}


def timm_vit(**options: Any) -> torch.nn.Module:
    """timm's model with random values."""
    settings = SIZES | {"init_values": 1e-5} | options
    return twins.randomised(timm.models.vision_transformer.VisionTransformer(**settings))


def our_vit(**options: Any) -> nnx.Module:
    """Our model with shapes in place of arrays."""
    return twins.abstract("vit", **OURS | {"layer_scale": 1e-5} | options)


def assert_logits_equal(
    module: torch.nn.Module, arrays: dict[str, np.ndarray], model: nnx.Module, side: int = 32
) -> str:
    """Compare our logits with the module's after reading its arrays, and return what the reader reports."""
    shapes = twins.expected(model)
    values, report = fit(Contents(pathlib.Path("a file"), arrays), "vit", shapes)
    assert values.keys() == shapes.keys()
    x = twins.images(side)
    theirs = {"logits": torch_logits(module, x)}
    assert_outputs_equal({"logits": twins.logits(model, values, x)}, theirs)
    return report


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
def test_logits_equal_timms(theirs: dict[str, Any], options: dict[str, Any]) -> None:
    module = timm_vit(**theirs)
    report = assert_logits_equal(module, twins.arrays_of(module), our_vit(**options))
    assert "resampled" not in report
    assert "timm/DINOv2 names" in report


def test_logits_with_registers_equal_timms_at_other_sizes_and_from_other_grids() -> None:
    module = timm_vit(**REGISTERS, dynamic_img_size=True)
    assert_logits_equal(module, twins.arrays_of(module), our_vit(registers=3), side=48)
    other = timm_vit(**REGISTERS | {"img_size": 56})
    arrays = twins.arrays_of(other)
    other.set_input_size((32, 32))
    assert "resampled from 7×7 to 4×4" in assert_logits_equal(other, arrays, our_vit(registers=3))


def test_timm_loads_exported_weights() -> None:
    module = timm_vit(**REGISTERS, **GATED)
    model = our_vit(registers=3, mlp="swiglu", mlp_ratio=5.33334)
    values, _ = fit(Contents(pathlib.Path("a file"), twins.arrays_of(module)), "vit", twins.expected(model))
    back = timm_vit(**REGISTERS, **GATED)
    torch.nn.init.zeros_(back.reg_token)
    back.load_state_dict({name: torch.from_numpy(a) for name, a in export(values, models.spec("vit")).items()})
    np.testing.assert_array_equal(torch_logits(back, twins.images(32)), torch_logits(module, twins.images(32)))


def test_logits_equal_timms_from_dinov2s_own_names() -> None:
    # The file as facebookresearch's code writes it: the class token has a position, the registers do not.
    module = timm_vit(**REGISTERS, **GATED)
    arrays = twins.arrays_of(module)
    position = np.random.default_rng(0).normal(size=(1, 1, 24)).astype(np.float32)
    arrays["cls_token"] = arrays["cls_token"] - position
    arrays["pos_embed"] = np.concatenate([position, arrays["pos_embed"]], axis=1)
    arrays["mask_token"] = np.zeros((1, 24), np.float32)
    new = {"reg_token": "register_tokens", "mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
    renamed = {}
    for name, array in arrays.items():
        for timms, dinov2s in new.items():
            name = name.replace(timms, dinov2s)
        renamed[name] = array
    report = assert_logits_equal(module, renamed, our_vit(registers=3, mlp="swiglu", mlp_ratio=5.33334))
    assert "DINOv2, gated names" in report


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("registers", [0, 3])
def test_features_equal_hugging_faces_dinov2(gated: bool, registers: int, tmp_path: pathlib.Path) -> None:
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
    model = our_vit(registers=registers, **options)
    shapes = twins.expected(model)
    values, report = fit(inspect(tmp_path / "model.safetensors"), "vit", shapes)
    assert "Hugging Face DINOv2" in report
    assert shapes.keys() - values.keys() == {"head/kernel", "head/bias"}
    # This head returns the first channels of the class token.
    values |= {"head/kernel": np.eye(24, twins.CLASSES, dtype=np.float32), "head/bias": np.zeros(twins.CLASSES)}
    x = twins.images(32)
    with torch.no_grad():
        theirs = module(to_torch(x)).last_hidden_state.numpy()
    ours = twins.logits(model, values, x)
    np.testing.assert_allclose(ours, theirs[:, 0, : twins.CLASSES], atol=1e-4 * np.abs(theirs).max())


def test_logits_equal_hugging_faces_vit_with_its_epsilon(tmp_path: pathlib.Path) -> None:
    # Phikon's has 1e-12, the others 1e-6; 0.3 shows that the option has an effect.
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = transformers.ViTConfig(**sizes, intermediate_size=96, num_labels=twins.CLASSES, layer_norm_eps=0.3)
    module = twins.randomised(transformers.ViTForImageClassification(config))
    module.save_pretrained(tmp_path)
    arrays = inspect(tmp_path / "model.safetensors").arrays
    assert_logits_equal(module, arrays, our_vit(layer_scale=0.0, epsilon=0.3))
    with pytest.raises(AssertionError):
        assert_logits_equal(module, arrays, our_vit(layer_scale=0.0))
