"""TorchScript of models with every operator: read by PyTorch alone, for batches of any size, as WSInfer wants it."""

import json
import pathlib
import warnings

import jsonschema
import numpy as np
import onnx
import pytest
import torch

from histojax import models
from histojax.core.errors import RunError
from histojax.inference.export import export
from histojax.inference.export.export import ExportSpec
from histojax.inference.export.torch_graph import Graph
from histojax.inference.predictor import Predictor
from tests.helpers import wsinfer
from tests.helpers.export_checkpoint import random_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.parity]
SIZE = 32
VIT = {"image_size": SIZE, "patch": 8, "embed_dim": 48, "depth": 1, "heads": 3, "mlp": "swiglu", "registers": 2}
# Together they have every operator of torch_graph; export_models_test compares the operators of the other families.
MODELS = {name: models.spec(name).small for name in ("dala_resnet50", "swin_tiny_patch4_window7_224")} | {"vit": VIT}
IMAGES = np.random.default_rng(1).integers(0, 256, (7, SIZE, SIZE, 3), dtype=np.uint8)
TILES = {"tile_pixels": 64, "mpp": 0.5}


def load(folder: pathlib.Path) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated, but WSInfer needs it
        return torch.jit.load(folder / "torchscript_model.pt")


@pytest.mark.parametrize("name", list(MODELS))
def test_pytorch_predicts_the_same(name: str, tmp_path: pathlib.Path) -> None:
    run = random_checkpoint(tmp_path, name, SIZE, data=TILES, **MODELS[name])
    expected = Predictor.load(run, batch_size=8).predict(IMAGES)
    assert expected.std(axis=0).max() > 1e-4
    said = export.export(run, tmp_path / "out", ExportSpec("torchscript"))
    assert "as torchscript in" in said

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    jsonschema.validate(config, wsinfer.SCHEMA)
    assert config["patch_size_pixels"] * config["spacing_um_px"] == 32  # µm: 64 pixels of 0.5
    normalize = config["transform"][2]["arguments"]
    pixels = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2) / np.float32(255))
    mean, std = (torch.tensor(normalize[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    program = load(tmp_path / "out")
    for n in (1, 7):
        with torch.inference_mode():
            probabilities = program(((pixels - mean) / std)[:n]).softmax(-1).numpy()
        np.testing.assert_allclose(probabilities, expected[:n], atol=1e-5)
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["output"] == {"name": "logits", "shape": ["batch", 2], "type": "float32"}


def test_a_model_of_several_labels_is_written_but_not_for_wsinfer(
    ldcsf_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    export.export(ldcsf_run, tmp_path / "out", ExportSpec("torchscript"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not for WSInfer: WSInfer applies a softmax" in card
    assert ".sigmoid()" in card
    assert not (tmp_path / "out" / "config.json").exists()


def test_an_operator_that_is_not_known_is_refused() -> None:
    node = onnx.helper.make_node("Gelu", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["b", 3]) for name in "xy")
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y]))
    with pytest.raises(ValueError, match="the ONNX operator Gelu is not known here"):
        Graph(model)


def test_options_of_other_formats_are_refused() -> None:
    with pytest.raises(RunError, match="--preprocessing does not apply to --to torchscript"):
        ExportSpec("torchscript", preprocessing="separate")
