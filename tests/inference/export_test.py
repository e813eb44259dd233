"""A model trained by the program goes out in four formats, and answers there as it does here."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import jax
import numpy as np
import pytest
import safetensors.numpy

from histojax.core.errors import RunError
from histojax.inference.export import export, onnx, stablehlo
from histojax.inference.export.export import ExportSpec
from histojax.inference.export.function import Portable
from histojax.inference.predictor import Predictor
from histojax.models.ops import kernels
from tests.helpers.export_checkpoint import checkpoint_of
from tests.helpers.programs import run as run_program
from tests.helpers.programs import small_ldcsf_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly() -> Iterator[None]:
    """Most of the time here would go into optimizing programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return small_ldcsf_run(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def predictor(run: pathlib.Path) -> Predictor:
    return Predictor.load(run, batch_size=8)


@pytest.fixture(scope="module")
def images(predictor: Predictor) -> np.ndarray:
    size = predictor.image_size
    return np.random.default_rng(5).integers(0, 256, (7, size, size, 3), dtype=np.uint8)


def histojax_export(run: pathlib.Path, *words: object) -> subprocess.CompletedProcess[str]:
    return run_program([sys.executable, "-m", "histojax", "export", str(run), *map(str, words)])


def snippets(folder: pathlib.Path) -> list[str]:
    """The Python that README.md shows."""
    return [part.split("```")[0] for part in (folder / "README.md").read_text().split("```python\n")[1:]]


def answer_of_snippet(folder: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """What README.md's program says of other images than its zeros, in a process that cannot import histojax."""
    np.save(folder.parent / "images.npy", images)
    code = "import sys; sys.modules['histojax'] = None\n" + snippets(folder)[0]
    lines = [
        line if not line.startswith("images = ") else "images = np.load('../images.npy')" for line in code.split("\n")
    ]
    code = "\n".join(lines) + "\nnp.save('../answer.npy', probabilities)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return np.load(folder.parent / "answer.npy")


def test_no_kernel_for_gpus_goes_into_a_file(run: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    portable = Portable.load(run, batch_size=8)
    monkeypatch.setattr(kernels, "usable_here", lambda: True)
    wanted, images = portable.predictor.trained.program, portable.struct(2)
    assert "pallas_call" not in str(jax.make_jaxpr(portable.function())(images))
    assert "pallas_call" in str(jax.make_jaxpr(wanted.logits)(portable.predictor.trained.model, images))


@pytest.mark.parametrize("to", ["stablehlo", "onnx"])
def test_a_file_answers_without_histojax_any_number_of_images(
    run: pathlib.Path, predictor: Predictor, images: np.ndarray, tmp_path: pathlib.Path, to: str
) -> None:
    done = histojax_export(run, "--to", to, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"ldcsf as {to} in {tmp_path / 'out'}")
    assert not done.stderr
    wanted = predictor.predict(images)
    assert wanted.std(axis=0).max() > 1e-5  # the images do not all look the same to it
    for n in (1, 7):
        found = answer_of_snippet(tmp_path / "out", images[:n])
        assert found.shape == (n, 4)
        np.testing.assert_allclose(found, wanted[:n], atol=1e-5)

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
    run: pathlib.Path, predictor: Predictor, images: np.ndarray, tmp_path: pathlib.Path, to: str
) -> None:
    export.export(run, tmp_path / "out", ExportSpec(to, preprocessing="separate"))
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["input"]["type"] == "float32"
    normalised = (images / 255 - np.array(facts["mean"])) / np.array(facts["std"])
    found = answer_of_snippet(tmp_path / "out", normalised.astype(np.float32))
    np.testing.assert_allclose(found, predictor.predict(images), atol=1e-5)


def test_weights_by_a_naming(run: pathlib.Path, predictor: Predictor, tmp_path: pathlib.Path) -> None:
    done = histojax_export(run, "--to", "safetensors", "--output", tmp_path / "out", "--naming", "histojax")
    assert done.returncode == 0, done.stderr
    arrays = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    model = predictor.trained.model
    leaves = [leaf for tree in (model.params, model.stats) for leaf in jax.tree_util.tree_leaves_with_path(tree)]
    assert len(leaves) == len(arrays)
    for path, leaf in leaves:
        np.testing.assert_array_equal(arrays[jax.tree_util.keystr(path, simple=True, separator=".")], leaf)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["naming"] == "histojax"
    assert "our own paths" in (tmp_path / "out" / "README.md").read_text()


def test_a_repository_has_a_card_with_the_results(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = histojax_export(run, "--to", "hf", "--output", tmp_path / "out", "--license", "cc-by-4.0")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\nlibrary_name: histojax\n")
    assert "Research use only" in card
    assert "Not for timm: timm has no ldcsf. Not for WSInfer" in card
    results = json.loads((run / "results.json").read_text())
    figure = results["splits"]["test"]["image"]["accuracy"]
    interval = f"{figure['value']:.4f}  [{figure['low']:.4f}, {figure['high']:.4f}]"
    assert interval in card
    assert results["protocol"] in card


def test_a_card_names_no_folder_of_the_machine(tmp_path: pathlib.Path) -> None:
    data = {"root": "/home/someone/tiles", "description": "tiles of /home/someone/tiles: 3 images"}
    small = {"image_size": 32, "embed_dim": 24, "depth": 1, "heads": 3}
    export.export(checkpoint_of(tmp_path, "vit", 32, data=data, **small), tmp_path / "out", ExportSpec("hf"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "tiles of tiles: 3 images" in card
    assert "someone" not in card
    assert "None lie beside the checkpoint." in card


def test_results_of_another_checkpoint_are_not_quoted(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(run), str(copy)], check=True)
    results = json.loads((copy / "results.json").read_text())
    (copy / "results.json").write_text(json.dumps(results | {"checkpoint_step": results["checkpoint_step"] + 1}))
    export.export(copy, tmp_path / "out", ExportSpec("hf"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The run's results are of another checkpoint." in card
    assert "accuracy" not in card
    assert card.startswith("---\nlicense: unknown\n")


def test_images_are_compared_too(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    tiles = sorted((run.parent / "tiles").rglob("*.png"))[:3]
    done = histojax_export(run, "--to", "safetensors", "--output", tmp_path / "out", "--images", *tiles)
    assert done.returncode == 0, done.stderr
    assert "probabilities of 11 images" in done.stdout
    (tmp_path / "broken.png").write_bytes(tiles[0].read_bytes()[:100])
    done = histojax_export(
        run, "--to", "safetensors", "--output", tmp_path / "other", "--images", tmp_path / "broken.png"
    )
    assert done.returncode == 1
    assert f"error: --images: {tmp_path / 'broken.png'}" in done.stderr
    assert not (tmp_path / "other").exists()


def test_another_answer_leaves_nothing_behind(
    run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = stablehlo.write

    def wrong(*arguments):
        found = written(*arguments)
        return export.Written(lambda images: found.ask(images) + np.float32(2e-4), found.loading, found.facts)

    monkeypatch.setattr(stablehlo, "write", wrong)
    with pytest.raises(RunError, match=r"answers otherwise than the trained model .*2\.0e-04"):
        export.export(run, tmp_path / "out", ExportSpec("stablehlo"))
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr(stablehlo, "write", lambda *_: export.Written(lambda x: np.full((len(x), 4), np.nan), ""))
    with pytest.raises(RunError, match="answers otherwise"):
        export.export(run, tmp_path / "out", ExportSpec("stablehlo"))


def test_what_the_converter_does_not_manage_is_told(
    run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*_):
        raise NotImplementedError("no such padding\nmore")

    monkeypatch.setattr(onnx, "_evaluate", unable)
    with pytest.raises(
        RunError, match=r"does not convert ldcsf \(NotImplementedError: no such padding\); --to stablehlo"
    ):
        export.export(run, tmp_path / "out", ExportSpec("onnx"))
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_told(run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for fields, words in (
        ({"to": "torch"}, "--to=torch is not one of stablehlo, onnx, safetensors, hf"),
        ({"to": "onnx", "preprocessing": "none"}, "--preprocessing=none is not one of baked, separate"),
        (
            {"to": "hf", "preprocessing": "separate"},
            "--preprocessing has no meaning for --to hf: it is of stablehlo, onnx",
        ),
        ({"to": "hf", "naming": "timm"}, "--naming has no meaning"),
        ({"to": "onnx", "licence": "mit"}, "--license has no meaning"),
        ({"to": "safetensors", "tile_um": 1.0}, "--tile_um has no meaning"),
        ({"to": "hf", "licence": "mit\nx: y"}, "is no identifier"),
    ):
        with pytest.raises(RunError, match=words):
            ExportSpec(**fields)
    with pytest.raises(RunError, match="ldcsf has no naming 'keras'"):
        export.export(run, tmp_path / "out", ExportSpec("safetensors", naming="keras"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match="out exists; name a folder that does not"):
        export.export(run, tmp_path / "out", ExportSpec("safetensors"))
    monkeypatch.setattr(export, "_NEEDED", {"onnx": ("json", "no_such_converter")})
    with pytest.raises(RunError, match=r"--to onnx needs no_such_converter: pip install 'histojax\[export\]'"):
        export.export(run, tmp_path / "other", ExportSpec("onnx"))
    done = run_program([sys.executable, "-m", "histojax", "export", "--help"])
    assert done.returncode == 0
    assert "Research use only" in done.stdout
