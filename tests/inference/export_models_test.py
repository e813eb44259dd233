"""Every family of models in the two formats that contain a program, from small checkpoints with random weights."""

import json
import pathlib

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

from histojax import models
from histojax.inference.export import export, torch_graph
from histojax.inference.export.export import ExportSpec
from histojax.inference.predictor import Predictor
from tests.helpers.export_checkpoint import random_checkpoint

pytestmark = pytest.mark.slow
SIZE = 32
VIT = {"image_size": SIZE, "patch": 8, "embed_dim": 48, "depth": 1, "heads": 3}
SWIGLU = {"mlp": "swiglu", "layer_scale": 0.1, "registers": 2, "pool": "mean", "mlp_ratio": 2.0}
# Every layer of every family, in the specifications' small sizes: dala_resnet50 has the layers of resnet50, and
# vgg16_inception those of vgg16.
MODELS = {
    "dala_resnet50": models.spec("dala_resnet50").small,
    "seresnet50": models.spec("seresnet50").small,
    "densenet121": models.spec("densenet121").small,
    "vgg16_inception": models.spec("vgg16_inception").small,
    "vit with registers and gates": VIT | SWIGLU,
    "swin_tiny_patch4_window7_224": models.spec("swin_tiny_patch4_window7_224").small,
}
IMAGES = np.random.default_rng(1).integers(0, 256, (7, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=list(MODELS))
def title(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def run(title: str, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return random_checkpoint(tmp_path_factory.mktemp("models"), title.split()[0], SIZE, **MODELS[title])


def test_every_family_exports_to_onnx(title: str, run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    expected = Predictor.load(run, batch_size=8).predict(IMAGES)
    assert expected.std(axis=0).max() > 1e-4
    export.export(run, tmp_path / "out", ExportSpec("onnx"))
    nodes = onnx.load(tmp_path / "out" / "model.onnx").graph.node
    assert {node.op_type for node in nodes} <= set(torch_graph._OPERATORS), "--to torchscript needs them"
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["histojax"])["classes"] == ["benign", "malignant"]
    for n in (1, 7):
        probabilities = session.run(None, {"images": IMAGES[:n]})[0]
        print(f"{title}, {n} images: {np.abs(probabilities - expected[:n]).max():.1e}")
        np.testing.assert_allclose(probabilities, expected[:n], atol=1e-5)


def test_every_family_exports_to_stablehlo(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    export.export(run, tmp_path / "out", ExportSpec("stablehlo"))
    compared = json.loads((tmp_path / "out" / "export.json").read_text())["compared"]
    assert 0 <= compared["largest_difference"] < 1e-5
    assert compared["images"] == 8


def test_a_model_trained_in_half_precision_is_exported_in_float32(tmp_path: pathlib.Path) -> None:
    run = random_checkpoint(tmp_path, "vit", SIZE, dtype="bfloat16", **VIT)
    half = Predictor.load(run, batch_size=8).predict(IMAGES)
    export.export(run, tmp_path / "out", ExportSpec("stablehlo"))
    program = jax.export.deserialize(bytearray((tmp_path / "out" / "model.stablehlo").read_bytes()))
    probabilities = np.asarray(program.call(IMAGES))
    assert 1e-5 < np.abs(probabilities - half).max() < 0.05
    full = Predictor.load(random_checkpoint(tmp_path / "full", "vit", SIZE, **VIT), batch_size=8)
    np.testing.assert_allclose(probabilities, full.predict(IMAGES), atol=1e-5)
