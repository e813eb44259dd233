"""A model that the program trained predicts the same in all four export formats."""

import json
import pathlib
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from histojax.core.errors import RunError
from histojax.inference import compat
from histojax.inference.export import export, hub, stablehlo
from histojax.inference.export.export import ExportSpec
from histojax.inference.export.exportable import ExportableModel, ExportedModel
from histojax.inference.predictor import Predictor
from histojax.models.ops import kernels
from tests.helpers.command import histojax
from tests.helpers.export_checkpoint import random_checkpoint
from tests.helpers.warm_start import run as run_program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def predictor(ldcsf_run: pathlib.Path) -> Predictor:
    return Predictor.load(ldcsf_run, batch_size=8)


@pytest.fixture(scope="module")
def images(predictor: Predictor) -> np.ndarray:
    size = predictor.image_size
    return np.random.default_rng(5).integers(0, 256, (7, size, size, 3), dtype=np.uint8)


def snippets(folder: pathlib.Path) -> list[str]:
    """The Python code in README.md."""
    return [part.split("```")[0] for part in (folder / "README.md").read_text().split("```python\n")[1:]]


def run_snippet(folder: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """Run README.md's program on images instead of its zeros, in a process that cannot import histojax."""
    np.save(folder.parent / "images.npy", images)
    code = "import sys; sys.modules['histojax'] = None\n" + snippets(folder)[0]
    lines = [
        line if not line.startswith("images = ") else "images = np.load('../images.npy')" for line in code.split("\n")
    ]
    code = "\n".join(lines) + "\nnp.save('../probabilities.npy', probabilities)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return np.load(folder.parent / "probabilities.npy")


def test_no_gpu_kernel_is_exported(ldcsf_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ExportableModel.load(ldcsf_run, batch_size=8)
    monkeypatch.setattr(kernels, "usable_here", lambda: True)
    program, images = model.predictor.trained.program, model.input_struct(2)
    assert "pallas_call" not in str(jax.make_jaxpr(model.function())(images))
    assert "pallas_call" in str(jax.make_jaxpr(program.logits)(model.predictor.trained.model, images))


@pytest.mark.parametrize("to", ["stablehlo", "onnx"])
def test_a_file_predicts_batches_of_any_size_without_histojax(
    ldcsf_run: pathlib.Path, predictor: Predictor, images: np.ndarray, tmp_path: pathlib.Path, to: str
) -> None:
    argv = ["export", str(ldcsf_run), "--to", to, "--output", str(tmp_path / "out")]
    # One program as a smoke test of the verb.
    done = run_program([sys.executable, "-m", "histojax", *argv]) if to == "stablehlo" else histojax(*argv)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"ldcsf as {to} in {tmp_path / 'out'}")
    assert not done.stderr
    expected = predictor.predict(images)
    assert expected.std(axis=0).max() > 1e-5  # the model distinguishes the images
    for n in (1, 7):
        found = run_snippet(tmp_path / "out", images[:n])
        assert found.shape == (n, 4)
        np.testing.assert_allclose(found, expected[:n], atol=1e-5)

    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["classes"] == list(predictor.classes)
    assert facts["thresholds"] == predictor.thresholds
    assert facts["input"]["type"] == "uint8"
    assert facts["versions"]["jax"] == jax.__version__
    assert facts["checkpoint"] == predictor.digest
    assert facts["compared"]["images"] == 8
    assert 0 <= facts["compared"]["largest_difference"] <= 1e-5
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    if to == "stablehlo":
        exported = jax.export.deserialize(bytearray((tmp_path / "out" / "model.stablehlo").read_bytes()))
        assert exported.platforms == ("cpu", "cuda", "tpu")
        assert exported.nr_devices == 1
        assert str(exported.in_avals[0].shape) == "(batch, 32, 32, 3)"


@pytest.mark.parametrize("to", ["stablehlo", "onnx"])
def test_normalised_images_go_in_where_preprocessing_is_separate(
    ldcsf_run: pathlib.Path, predictor: Predictor, images: np.ndarray, tmp_path: pathlib.Path, to: str
) -> None:
    export.export(ldcsf_run, tmp_path / "out", ExportSpec(to, preprocessing="separate"))
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["input"]["type"] == "float32"
    normalised = (images / 255 - np.array(facts["mean"])) / np.array(facts["std"])
    found = run_snippet(tmp_path / "out", normalised.astype(np.float32))
    np.testing.assert_allclose(found, predictor.predict(images), atol=1e-5)


def test_weights_by_a_naming(ldcsf_run: pathlib.Path, predictor: Predictor, tmp_path: pathlib.Path) -> None:
    done = histojax("export", ldcsf_run, "--to", "safetensors", "--output", tmp_path / "out", "--naming", "histojax")
    assert done.returncode == 0, done.stderr
    arrays = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    model = predictor.trained.model
    leaves = [leaf for tree in (model.params, model.stats) for leaf in jax.tree_util.tree_leaves_with_path(tree)]
    assert len(leaves) == len(arrays)
    for path, leaf in leaves:
        np.testing.assert_array_equal(arrays[jax.tree_util.keystr(path, simple=True, separator=".")], leaf)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["naming"] == "histojax"
    assert "the paths of histojax" in (tmp_path / "out" / "README.md").read_text()


def test_a_repository_has_a_card_with_the_results(ldcsf_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = histojax("export", ldcsf_run, "--to", "hf", "--output", tmp_path / "out", "--license", "cc-by-4.0")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\nlibrary_name: histojax\n")
    assert "Research use only" in card
    assert "Not for timm: timm has no ldcsf. For WSInfer, use `--to torchscript`." in card
    results = json.loads((ldcsf_run / "results.json").read_text())
    figure = results["splits"]["test"]["image"]["accuracy"]
    interval = f"{figure['value']:.4f}  [{figure['low']:.4f}, {figure['high']:.4f}]"
    assert interval in card
    assert results["protocol"] in card


def test_the_readme_names_no_folder_of_the_machine(tmp_path: pathlib.Path) -> None:
    data = {"root": "/home/someone/tiles", "description": "tiles of /home/someone/tiles: 3 images"}
    small = {"image_size": 32, "embed_dim": 24, "depth": 1, "heads": 3}
    export.export(random_checkpoint(tmp_path, "vit", 32, data=data, **small), tmp_path / "out", ExportSpec("hf"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "tiles of tiles: 3 images" in card
    assert "someone" not in card
    assert "There are no results beside the checkpoint." in card


def test_results_of_another_checkpoint_are_not_quoted(ldcsf_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(ldcsf_run), str(copy)], check=True)
    results = json.loads((copy / "results.json").read_text())
    (copy / "results.json").write_text(json.dumps(results | {"checkpoint_step": results["checkpoint_step"] + 1}))
    export.export(copy, tmp_path / "out", ExportSpec("hf"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The results of the run belong to another checkpoint." in card
    assert "accuracy" not in card
    assert card.startswith("---\nlicense: unknown\n")


def test_given_images_are_compared(ldcsf_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    tiles = sorted((ldcsf_run.parent / "tiles").rglob("*.png"))[:3]
    done = histojax("export", ldcsf_run, "--to", "safetensors", "--output", tmp_path / "out", "--images", *tiles)
    assert done.returncode == 0, done.stderr
    assert "probabilities of 11 images" in done.stdout
    (tmp_path / "broken.png").write_bytes(tiles[0].read_bytes()[:100])
    done = histojax(
        "export", ldcsf_run, "--to", "safetensors", "--output", tmp_path / "other", "--images", tmp_path / "broken.png"
    )
    assert done.returncode == 1
    assert f"error: --images: {tmp_path / 'broken.png'}" in done.stderr
    assert not (tmp_path / "other").exists()


def test_a_different_prediction_leaves_no_files(
    ldcsf_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = stablehlo.write

    def wrong(*arguments):
        exported = original(*arguments)
        return ExportedModel(
            lambda images: exported.predict(images) + np.float32(2e-4), exported.loading, exported.facts
        )

    monkeypatch.setattr(stablehlo, "write", wrong)
    with pytest.raises(RunError, match=r"predicts differently from the trained one .*2\.0e-04"):
        export.export(ldcsf_run, tmp_path / "out", ExportSpec("stablehlo"))
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr(stablehlo, "write", lambda *_: ExportedModel(lambda x: np.full((len(x), 4), np.nan), ""))
    with pytest.raises(RunError, match="predicts differently"):
        export.export(ldcsf_run, tmp_path / "out", ExportSpec("stablehlo"))


def test_a_failing_converter_is_reported(
    ldcsf_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_):
        raise NotImplementedError("no such padding\nmore")

    monkeypatch.setattr(compat, "retrace", fail)
    with pytest.raises(
        RunError, match=r"cannot convert ldcsf \(NotImplementedError: no such padding\); --to stablehlo"
    ):
        export.export(ldcsf_run, tmp_path / "out", ExportSpec("onnx"))
    assert list(tmp_path.iterdir()) == []


def test_user_errors_are_reported(ldcsf_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for fields, message in (
        ({"to": "torch"}, "--to=torch is not one of stablehlo, onnx, torchscript, safetensors, hf"),
        ({"to": "onnx", "preprocessing": "none"}, "--preprocessing=none is not one of baked, separate"),
        (
            {"to": "hf", "preprocessing": "separate"},
            "--preprocessing does not apply to --to hf, only to stablehlo, onnx",
        ),
        ({"to": "hf", "naming": "timm"}, "--naming does not apply"),
        ({"to": "onnx", "licence": "mit"}, "--license does not apply"),
        ({"to": "safetensors", "tile_um": 1.0}, "--tile_um does not apply"),
        ({"to": "hf", "licence": "mit\nx: y"}, "is not an identifier"),
    ):
        with pytest.raises(RunError, match=message):
            ExportSpec(**fields)
    with pytest.raises(RunError, match="ldcsf has no naming 'keras'"):
        export.export(ldcsf_run, tmp_path / "out", ExportSpec("safetensors", naming="keras"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match="out: already exists"):
        export.export(ldcsf_run, tmp_path / "out", ExportSpec("safetensors"))
    done = histojax("export", "--help")
    assert done.returncode == 0
    assert "Research use only" in done.stdout


def test_options_that_timm_lacks_are_named() -> None:
    config = ConfigDict({"model": {"options": {"reduction": 8}}})
    predictor = SimpleNamespace(image_size=224, trained=SimpleNamespace(config=config))
    model: Any = SimpleNamespace(architecture="seresnet50", predictor=predictor)
    assert hub.timm_model(model) == (None, "timm's seresnet50 has no reduction=8")
    config.model.options.reduction = 16
    assert hub.timm_model(model)[0] is not None
