"""Names of Vision Transformers: Hugging Face's two, the original's, and embeddings of another grid."""

import pathlib
import re
from typing import Any

import numpy as np
import pytest
import torch

from histojax import models
from histojax.weights import Contents, WeightsError, convert, export, inspect
from histojax.weights.fitting import fit
from tests.helpers import twins
from tests.helpers.parity import torch_logits

import transformers  # isort: skip  (after twins, which makes torchvision importable)

pytestmark = pytest.mark.parity
SMALL = {"image_size": 32, "patch": 8, "embed_dim": 128, "depth": 2, "heads": 2}
SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def arrays_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def saved(module: Any, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """As `save_pretrained` writes it, which may rename what is in memory."""
    module.save_pretrained(folder)
    return inspect(folder / "model.safetensors").arrays


def test_hugging_faces_vit(tmp_path: pathlib.Path) -> None:
    config = transformers.ViTConfig(**SIZES, intermediate_size=512, num_labels=twins.CLASSES, layer_norm_eps=1e-6)
    module = twins.randomised(transformers.ViTForImageClassification(config))
    model = twins.abstract("vit", **SMALL)
    values, report = convert(saved(module, tmp_path), models.spec("vit"), twins.expected(model))
    assert report.naming == "Hugging Face"
    assert not report.initial
    x = twins.images(32)
    wanted = torch_logits(module, x)
    np.testing.assert_allclose(twins.logits(model, values, x), wanted, atol=1e-4 * np.abs(wanted).max())


def test_hugging_faces_dinov2_loads_all_but_the_head(tmp_path: pathlib.Path) -> None:
    config = transformers.Dinov2Config(**SIZES, mlp_ratio=4, layerscale_value=0.5)
    module = twins.randomised(transformers.Dinov2Model(config))
    model = twins.abstract("vit", **SMALL, layer_scale=0.5)
    values, report = convert(saved(module, tmp_path), models.spec("vit"), twins.expected(model))
    assert report.naming == "Hugging Face DINOv2, without head"
    assert set(report.initial) == {"head/kernel", "head/bias"}
    assert all("mask_token" in name for name in report.left_out)
    expected = twins.expected(model)
    values |= {path: np.zeros(*expected[path]) for path in report.initial}
    with torch.no_grad():
        x = twins.images(32)
        wanted = module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).last_hidden_state.numpy()
    # This head returns the first channels of the class token.
    values["head/kernel"] = np.eye(128, twins.CLASSES, dtype=np.float32)
    found = twins.logits(model, values, x)
    np.testing.assert_allclose(found, wanted[:, 0, : twins.CLASSES], atol=1e-4 * np.abs(wanted).max())


def test_the_originals_npz_goes_out_and_comes_back(tmp_path: pathlib.Path) -> None:
    expected = twins.expected(twins.abstract("vit", **SMALL))
    rng = np.random.default_rng(0)
    values = {path: rng.normal(size=shape).astype(dtype) for path, (shape, dtype) in expected.items()}
    table = models.spec("vit")
    theirs = export(values, table, "the original's")
    block = "Transformer/encoderblock_1"
    attention = f"{block}/MultiHeadDotProductAttention_1"
    assert theirs[f"{attention}/query/kernel"].shape == (128, 2, 64)
    assert theirs[f"{attention}/key/bias"].shape == (2, 64)
    assert theirs[f"{attention}/out/kernel"].shape == (2, 64, 128)
    assert theirs["cls"].shape == (1, 1, 128)
    # Flax's multi-head projection: x (c) with a kernel (c, heads, d).
    x = rng.normal(size=128).astype(np.float32)
    wanted = np.einsum("c,chd->hd", x, theirs[f"{attention}/value/kernel"]).reshape(-1)
    np.testing.assert_allclose(x @ values["blocks/1/attn/qkv/kernel"][:, 256:], wanted, rtol=1e-4, atol=1e-4)
    np.savez(tmp_path / "vit.npz", **theirs)
    back, report = convert(inspect(tmp_path / "vit.npz").arrays, table, expected)
    assert report.naming == "the original's"
    assert all(np.array_equal(back[path], value) for path, value in values.items())


def test_positions_of_another_grid_are_resampled_and_reported() -> None:
    import timm

    module = twins.randomised(
        timm.models.vision_transformer.VisionTransformer(
            img_size=56, patch_size=8, embed_dim=128, depth=2, num_heads=2, num_classes=twins.CLASSES
        )
    )
    expected = twins.expected(twins.abstract("vit", **SMALL))
    values, words = fit(Contents(pathlib.Path("a file"), arrays_of(module)), "vit", expected)
    assert "position embedding resampled from 7×7 to 4×4" in words
    module.set_input_size((32, 32))  # timm resamples its own
    np.testing.assert_allclose(values["position_embedding"], module.pos_embed.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("nested", [False, True])
def test_the_prefix_that_the_message_asks_for_chooses_a_network(nested: bool, tmp_path: pathlib.Path) -> None:
    import timm

    module = twins.randomised(
        timm.models.vision_transformer.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=128, depth=2, num_heads=2, num_classes=twins.CLASSES
        )
    )
    state = module.state_dict()
    networks = {"student": {k: v + 1 for k, v in state.items()}, "net": state}
    if not nested:
        networks = {f"{who}.{name}": value for who, values in networks.items() for name, value in values.items()}
    torch.save({"models": networks, "step": 3}, tmp_path / "both.pth")
    expected = twins.expected(twins.abstract("vit", **SMALL))

    def load(prefix: str) -> np.ndarray:
        values, _ = fit(inspect(tmp_path / "both.pth", prefix=prefix), "vit", expected, prefix)
        return values["norm/bias"]

    with pytest.raises(WeightsError, match=r"pretrained_prefix=PREFIX .*: '(models\.)?\w+\.?'") as caught:
        load("")
    listed = re.findall(r"'([\w.]+)'", str(caught.value).split(": ")[-1])
    assert len(listed) == 2
    for prefix in listed:
        np.testing.assert_array_equal(load(prefix), state["norm.bias"].numpy() + ("student" in prefix))


def test_a_prefix_that_no_name_has_is_refused() -> None:
    expected = twins.expected(twins.abstract("vit", **SMALL))
    ours = {path.replace("/", "."): np.zeros(shape, np.float32) for path, (shape, _) in expected.items()}
    contents = Contents(pathlib.Path("own.safetensors"), ours)
    assert fit(contents, "vit", expected)[0].keys() == expected.keys()
    with pytest.raises(WeightsError, match=r"own\.safetensors: its names behind 'student\.'.* are not those of vit"):
        fit(contents, "vit", expected, "student")
