"""Hugging Face repositories as timm and WSInfer load them, and all formats on real images."""

import json
import pathlib
import shutil
import subprocess
import sys
import warnings

import jax
import jsonschema
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from data_pipelines.pixels import decode, resize
from histojax.core.errors import RunError
from histojax.inference.export import export
from histojax.inference.export.export import ExportSpec
from histojax.inference.predictor import Predictor
from tests.conftest import ROOT, SHARED
from tests.helpers import wsinfer
from tests.helpers.export_checkpoint import random_checkpoint

# Defines what torchvision lacks beside a CPU build of torch.
from tests.helpers import torchvision_import  # noqa: F401  # isort: skip
import timm

pytestmark = [pytest.mark.slow, pytest.mark.parity]
# Windows of 2 tile every map of 64 pixels, as windows of 7 do at 224.
SWIN = {"embed_dim": 24, "depths": (2, 2, 2, 2), "heads": (2, 4, 8, 16), "window": 2}
# Those that timm builds in one size are exported in it. dinov2_vitb14 has the layers of vit_base_patch16_224, and
# layer scale; resnet50 is compared in the test of WSInfer.
MODELS = {
    "seresnet50": (64, {}),
    "densenet121": (64, {}),
    "swin_tiny_patch4_window7_224": (64, SWIN),
    "dinov2_vitb14": (56, {"image_size": 56, "embed_dim": 48, "depth": 2, "heads": 3}),
}


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A work directory of resnet50 on tiles of 128 pixels at 0.5 µm/px, with its repository in `hf`."""
    run = random_checkpoint(tmp_path_factory.mktemp("resnet50"), "resnet50", 64, data={"tile_pixels": 128, "mpp": 0.5})
    export.export(run, run / "hf", ExportSpec("hf"))
    return run


def predict_with_timm(folder: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """Probabilities by timm's model of the folder and timm's normalisation; only the pixels are ours."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    assert tuple(config["input_size"]) == (3, *images.shape[1:3])
    transform = timm.data.create_transform(**config)
    with torch.inference_mode():
        batch = torch.stack([transform(Image.fromarray(i)) for i in images])
        return model(batch).softmax(-1).numpy()


@pytest.mark.parametrize("name", MODELS)
def test_timm_predicts_the_same(name: str, tmp_path: pathlib.Path) -> None:
    size, options = MODELS[name]
    run = random_checkpoint(tmp_path, name, size, **options)
    images = np.random.default_rng(1).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    expected = Predictor.load(run, batch_size=4).predict(images)
    export.export(run, tmp_path / "out", ExportSpec("hf"))
    probabilities = predict_with_timm(tmp_path / "out", images)
    print(f"{name}: {np.abs(probabilities - expected).max():.1e}")
    assert expected.std() > 1e-3
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["label_names"] == ["benign", "malignant"]
    assert "spec_version" not in config
    assert "library_name: timm" in (tmp_path / "out" / "README.md").read_text()
    assert "the side of an image in µm is unknown" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "size", "options", "reason"),
    [
        ("swin_tiny_patch4_window7_224", 32, SWIN, "only where windows tile every map"),
        ("seresnet50", 32, {"stage_sizes": (1, 1, 1, 1)}, "timm's seresnet50 has no stage_sizes=(1, 1, 1, 1)"),
        ("vit", 32, {"image_size": 32, "embed_dim": 48, "depth": 2, "heads": 3}, "timm has no vit"),
    ],
)
def test_models_that_timm_computes_differently_are_not_for_timm(
    name: str, size: int, options: dict[str, object], reason: str, tmp_path: pathlib.Path
) -> None:
    export.export(random_checkpoint(tmp_path, name, size, **options), tmp_path / "out", ExportSpec("hf"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not for timm: " in card
    assert reason in card
    assert "library_name: histojax" in card
    assert "pretrained_cfg" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_wsinfer_has_its_fields_and_the_readme_writes_its_torchscript(
    resnet50: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = resnet50
    shutil.copytree(run / "hf", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    jsonschema.validate(config, wsinfer.SCHEMA)
    assert config["patch_size_pixels"] * config["spacing_um_px"] == 64  # µm: 128 pixels of 0.5
    assert config["class_names"] == ["benign", "malignant"]
    normalize = config["transform"][2]["arguments"]
    assert normalize["mean"] == config["pretrained_cfg"]["mean"]

    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[2].split("```")[0]
    code = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.helpers import torchvision_import\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    images = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    x = (images.transpose(0, 3, 1, 2) / 255 - np.reshape(normalize["mean"], (3, 1, 1))) / np.reshape(
        normalize["std"], (3, 1, 1)
    )
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated, but WSInfer needs it
        scripted = torch.jit.load(tmp_path / "out" / "torchscript_model.pt")
        probabilities = scripted(torch.from_numpy(x.astype(np.float32))).softmax(-1).numpy()
    np.testing.assert_allclose(probabilities, Predictor.load(run, batch_size=4).predict(images), atol=1e-4)

    export.export(run, tmp_path / "other", ExportSpec("hf", tile_um=100.0))
    assert json.loads((tmp_path / "other" / "config.json").read_text())["spacing_um_px"] == 100 / 64
    with pytest.raises(RunError, match=r"--tile_um=-1\.0 is not a positive length"):
        export.export(run, tmp_path / "third", ExportSpec("hf", tile_um=-1.0))
    assert not (tmp_path / "third").exists()


def test_all_formats_agree_on_real_images(tmp_path: pathlib.Path) -> None:
    files = sorted((SHARED / "BreaKHis_v1_part").rglob("*.png"))[::4][:50]
    if len(files) < 50:
        pytest.skip(f"real images are not here ({SHARED})")
    run = random_checkpoint(tmp_path, "swin_tiny_patch4_window7_224", 64, **SWIN)
    images = [decode(path.read_bytes()) for path in files]
    resized = np.stack([resize(image, 64) for image in images])
    expected = Predictor.load(run, batch_size=8).predict(images)
    assert expected.std(axis=0).max() > 1e-3
    for to in ("stablehlo", "onnx", "hf"):
        export.export(run, tmp_path / to, ExportSpec(to), images)
    program = jax.export.deserialize(bytearray((tmp_path / "stablehlo" / "model.stablehlo").read_bytes()))
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    results = {
        "stablehlo": np.asarray(program.call(resized)),
        "onnxruntime": session.run(None, {"images": resized})[0],
        "timm": predict_with_timm(tmp_path / "hf", resized),
    }
    for name, probabilities in results.items():
        print(f"{name}: {np.abs(probabilities - expected).max():.1e}")
        np.testing.assert_allclose(probabilities, expected, atol=1e-4)
