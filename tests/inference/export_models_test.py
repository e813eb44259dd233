"""Every family of models through the two formats that hold a program, by checkpoints that nobody trained."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from flax import nnx

from histojax import models
from histojax.inference.export import export
from histojax.inference.export.export import ExportSpec
from histojax.inference.predictor import Predictor
from histojax.models.densenet import DenseNet, DenseNetConfig
from tests.helpers.export_checkpoint import checkpoint_of

pytestmark = pytest.mark.slow
SMALL_VIT = {"image_size": 64, "embed_dim": 48, "depth": 1, "heads": 3}
SWIGLU = {"mlp": "swiglu", "layer_scale": 0.1, "registers": 2, "pool": "mean", "mlp_ratio": 2.0}
# VGG16 and its like have 138 million parameters: vgg16_inception has their layers, and fewer; dala_resnet50 has those
# of resnet50.
MODELS = {
    "dala_resnet50": {},
    "seresnet50": {},
    "densenet121": {},
    "vgg16_inception": {},
    "vit with registers and gates": SMALL_VIT | SWIGLU,
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (2, 2, 2, 2)},
}


def shallow_densenet(*, num_classes: int, rngs: nnx.Rngs, dtype: Any = jnp.float32, remat: bool = False) -> DenseNet:
    """DenseNet-121's layers, fewer of them: translating all takes minutes."""
    config = dataclasses.replace(DenseNetConfig.densenet121(num_classes), block_sizes=(2, 2, 2, 2))
    return DenseNet(config, dtype=dtype, remat=remat, rngs=rngs)


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly() -> Iterator[None]:
    """Most of the time here would go into optimizing programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("title", MODELS)
def test_every_family_goes_to_onnx(title: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODELS, "densenet121", shallow_densenet)
    run = checkpoint_of(tmp_path, title.split()[0], 64, **MODELS[title])
    images = np.random.default_rng(1).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
    wanted = Predictor.load(run, batch_size=8).predict(images)
    assert wanted.std(axis=0).max() > 1e-4
    export.export(run, tmp_path / "out", ExportSpec("onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["histojax"])["classes"] == ["benign", "malignant"]
    for n in (1, 7):
        found = session.run(None, {"images": images[:n]})[0]
        print(f"{title}, {n} images: {np.abs(found - wanted[:n]).max():.1e}")
        np.testing.assert_allclose(found, wanted[:n], atol=1e-5)


@pytest.mark.parametrize("title", ["dala_resnet50", "vit with registers and gates", "swin_tiny_patch4_window7_224"])
def test_families_go_to_stablehlo(title: str, tmp_path: pathlib.Path) -> None:
    run = checkpoint_of(tmp_path, title.split()[0], 64, **MODELS[title])
    export.export(run, tmp_path / "out", ExportSpec("stablehlo"))
    compared = json.loads((tmp_path / "out" / "export.json").read_text())["compared"]
    assert 0 < compared["largest_difference"] < 1e-5


def test_a_model_trained_in_half_precision_goes_out_in_float32(tmp_path: pathlib.Path) -> None:
    run = checkpoint_of(tmp_path, "vit", 64, dtype="bfloat16", **SMALL_VIT)
    images = np.random.default_rng(1).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
    half = Predictor.load(run, batch_size=8).predict(images)
    export.export(run, tmp_path / "out", ExportSpec("stablehlo"))
    program = jax.export.deserialize(bytearray((tmp_path / "out" / "model.stablehlo").read_bytes()))
    found = np.asarray(program.call(images))
    assert 1e-5 < np.abs(found - half).max() < 0.05
    full = Predictor.load(checkpoint_of(tmp_path / "full", "vit", 64, **SMALL_VIT), batch_size=8)
    np.testing.assert_allclose(found, full.predict(images), atol=1e-5)
