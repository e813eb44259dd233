"""Pathology backbones: files with their names and sizes load completely and convert back."""

import functools
import pathlib
import sys
from typing import Any

import numpy as np
import pytest
import torch

from configs import pathology_breakhis
from histojax.core.errors import RunError
from histojax.weights import Contents, inspect
from histojax.weights.fitting import fit
from histojax.weights.saving import cast_floats
from tests.helpers import twins
from tests.helpers.warm_start import run

import timm  # isort: skip  (after twins, which makes torchvision importable)
import timm.layers  # isort: skip
import transformers  # isort: skip

pytestmark = pytest.mark.parity
CONFIG = "configs/pathology_breakhis.py"
DEPTH = 2  # of these, for the memory: widths are the published ones
GATED = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
# What the model cards of the published files pass to timm, but for the depth.
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "lunit_vit_small16": ("vit_small_patch16_224", {}),
    "lunit_vit_small8": ("vit_small_patch8_224", {}),
    "uni": ("vit_large_patch16_224", {"init_values": 1e-5, "dynamic_img_size": True}),
    "uni2": (
        "vit_giant_patch14_224",
        {"img_size": 224, "patch_size": 14, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536}
        | {"mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8, "dynamic_img_size": True}
        | GATED,
    ),
    "gigapath": (
        "vit_giant_patch14_dinov2",
        {"img_size": 224, "patch_size": 16, "num_heads": 24, "init_values": 1e-5, "mlp_ratio": 5.33334},
    ),
    "h_optimus_0": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224, "init_values": 1e-5}),
    "h_optimus_1": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224, "init_values": 1e-5}),
    "h0_mini": (
        "vit_base_patch14_reg4_dinov2",
        {"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.33334} | GATED,
    ),
    "virchow": ("vit_huge_patch14_224", {"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375} | GATED),
    "kaiko_vits8": ("vit_small_patch8_224", {}),
    "kaiko_vits16": ("vit_small_patch16_224", {}),
    "kaiko_vitb8": ("vit_base_patch8_224", {}),
    "kaiko_vitb16": ("vit_base_patch16_224", {}),
    "virchow2": (
        "vit_huge_patch14_224",
        {"img_size": 224, "init_values": 1e-5, "reg_tokens": 4, "mlp_ratio": 5.3375} | GATED,
    ),
}


# hibou_l and midnight have the names of hibou_b in sizes that would be slow to write; the numbers of parameters are
# compared below.
LARGE = ("hibou_l", "midnight")


def published(name: str, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of the file by their names there: transformers saves others than it has in memory."""
    if name == "hibou_b":
        sizes = {"num_hidden_layers": DEPTH, "image_size": 224, "patch_size": 14, "use_swiglu_ffn": True}
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=4, **sizes)
        transformers.Dinov2WithRegistersModel(config).save_pretrained(folder)
        return dict(inspect(folder / "model.safetensors").arrays)
    if name.startswith("phikon"):
        sizes = {"num_hidden_layers": DEPTH, "image_size": 224, "patch_size": 16}
        if name == "phikon":
            module: Any = transformers.ViTModel(transformers.ViTConfig(**sizes), add_pooling_layer=False)
        else:
            module = transformers.Dinov2Model(
                transformers.Dinov2Config(hidden_size=1024, num_attention_heads=16, **sizes)
            )
        module.save_pretrained(folder)
        return dict(inspect(folder / "model.safetensors").arrays)
    with torch.device("meta"):  # names and shapes without their memory
        if name == "lunit_resnet50":
            module = timm.create_model("resnet50", num_classes=0)
        else:
            model, options = TIMM[name]
            module = timm.create_model(model, num_classes=0, depth=DEPTH, **options)
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items() if "num_batches" not in key}
    return {key: np.broadcast_to(np.float32(0.5), shape) for key, shape in shapes.items()}


@functools.cache
def model_of(name: str, depth: int | None = DEPTH) -> Any:
    config = pathology_breakhis.get_config(name)
    options = config.model.options.to_dict()
    if depth and config.model.name == "vit":
        options["depth"] = depth
    return twins.abstract(config.model.name, 2, **options)


@pytest.mark.parametrize("name", [name for name in pathology_breakhis.BACKBONES if name not in LARGE])
def test_every_array_of_the_published_file_has_its_place(name: str, tmp_path: pathlib.Path) -> None:
    expected = twins.expected(model_of(name))
    backbone = pathology_breakhis.BACKBONES[name]
    values, words = fit(Contents(pathlib.Path("a file"), published(name, tmp_path)), backbone.model, expected)
    assert expected.keys() - values.keys() == {"head/kernel", "head/bias"}
    assert "resampled" not in words


@pytest.mark.parametrize(
    ("name", "millions"),
    [("lunit_resnet50", 23.5), ("lunit_vit_small16", 21.7), ("phikon", 85.8), ("phikon_v2", 303.4), ("uni", 303.4),
     ("uni2", 681.4), ("gigapath", 1134.9), ("h_optimus_0", 1134.8), ("virchow2", 631.2),
     ("h0_mini", 85.7), ("virchow", 631.2), ("midnight", 1134.8),
     ("hibou_b", 85.7), ("hibou_l", 303.8), ("kaiko_vitb8", 85.8)],
)  # fmt: skip
def test_sizes_are_the_published_ones(name: str, millions: float) -> None:
    shapes = twins.expected(model_of(name, None))
    statistics = ("mean", "var")
    count = sum(
        int(np.prod(shape))
        for path, (shape, _) in shapes.items()
        if not path.startswith("head") and not path.endswith(statistics)
    )
    assert count / 1e6 == pytest.approx(millions, abs=0.15)


def test_an_unknown_variant_is_reported() -> None:
    with pytest.raises(ValueError, match="unknown variant ':resnet' of this config; choose from smoke, lunit_resnet50"):
        pathology_breakhis.get_config("resnet")
    with pytest.raises(ValueError, match="exclude each other"):
        pathology_breakhis.get_config("uni,uni2")


def test_a_backbone_is_converted_by_its_config_and_read_back_in_half(tmp_path: pathlib.Path) -> None:
    module = twins.randomised(timm.create_model("vit_small_patch16_224", num_classes=0))
    torch.save(module.state_dict(), tmp_path / "dino.pth")
    words = [sys.executable, "-m", "histojax", "convert", f"--config={CONFIG}:lunit_vit_small16"]
    words += [
        f"--weights={tmp_path / 'dino.pth'}",
        "--num_classes=2",
        f"--output={tmp_path / 'out'}",
        "--dtype=float16",
    ]
    done = run(words)
    assert done.returncode == 0, done.stderr
    assert "timm/DINOv2 names" in done.stdout
    assert "initial values kept, the file has no classifier" in done.stdout
    path = tmp_path / "out" / "model.safetensors"
    assert path.stat().st_size == pytest.approx(2 * 21.67e6, rel=0.01)
    expected = twins.expected(model_of("lunit_vit_small16", None))
    values, _ = fit(inspect(path), "vit", expected)
    theirs = module.state_dict()["blocks.11.attn.proj.weight"].numpy().T
    np.testing.assert_allclose(values["blocks/11/attn/proj/kernel"], theirs, atol=1e-3)
    assert values["blocks/11/attn/proj/kernel"].dtype == np.float32
    done = run([*words[:-1], "--dtype=int8"])
    assert done.returncode == 1
    assert "'int8' is not one of float32, float16, bfloat16" in done.stderr


def test_values_too_large_for_half_are_reported(tmp_path: pathlib.Path) -> None:
    arrays = {"a": np.array([1e5], np.float32), "b": np.array([1.0], np.float32)}
    assert cast_floats(arrays, "bfloat16")["a"].dtype.name == "bfloat16"
    with pytest.raises(RunError, match="values of a are too large for float16; use bfloat16"):
        cast_floats(arrays, "float16")
