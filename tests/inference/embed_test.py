"""Features of images: those of the network's own parts, in order, once each, the same bytes whatever was killed."""

import pathlib

import jax
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from data_pipelines.pixels import resize
from histojax import models, weights
from histojax.cli.main import main
from histojax.core.errors import RunError
from histojax.evaluation import feature_files
from histojax.inference.embed import image_facts, image_features
from histojax.inference.embed.embedder import Embedder, configure
from histojax.inference.predict.images import ImageRef, find
from histojax.inference.predictor import Predictor
from histojax.models.ops.normalise import normalise
from histojax.training import default_config
from histojax.training.state import ModelState
from tests.conftest import ROOT, WriteImages
from tests.helpers import twins
from tests.helpers.colour_embedder import ColourEmbedder

VIT_RUN = ROOT / "tests" / "fixtures" / "runs_of_0_1" / "vit"
OPTIONS = {"image_size": 16, "patch": 8, "embed_dim": 8, "depth": 1, "heads": 2}
NAMES = [f"SOB_{'MB'[i % 2]}_{'DC' if i % 2 == 0 else 'A'}-14-{i}A-200-{i:03}.png" for i in range(22)]


@pytest.fixture
def folder(tmp_path: pathlib.Path, write_images: WriteImages) -> pathlib.Path:
    """22 files with names as in BreakHis, of which two are no images."""
    write_images(tmp_path / "images", NAMES)
    for name in (NAMES[3], NAMES[9]):
        (tmp_path / "images" / name).write_text("no image")
    return tmp_path / "images"


def embed(folder: pathlib.Path, output: pathlib.Path, model: ColourEmbedder) -> image_features.Summary:
    refs = find([str(folder)])
    ids = image_facts.relative_ids(refs, [str(folder)])
    facts = [image_facts.image_facts(ref, {}) for ref in refs]
    return image_features.run(refs, ids, facts, model, output)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", feature_files.SUFFIXES)
def test_a_run_killed_twice_ends_with_the_same_bytes(folder: pathlib.Path, suffix: str) -> None:
    undisturbed, output = folder.parent / f"one{suffix}", folder.parent / f"two{suffix}"
    summary = embed(folder, undisturbed, ColourEmbedder())
    assert (summary.images, summary.failed, summary.patients) == (20, 2, 20)
    assert summary.labels == {"benign": 9, "malignant": 11}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            embed(folder, output, ColourEmbedder(killed_after=1))
    last = ColourEmbedder()
    embed(folder, output, last)
    assert last.num_embedded == 22 - 8
    assert output.read_bytes() == undisturbed.read_bytes()
    assert (folder.parent / "two.failed.csv").read_bytes() == (folder.parent / "one.failed.csv").read_bytes()
    assert not list(folder.parent.glob("*.partial*"))
    with pytest.raises(RunError, match=r"already exists.*--redo"):
        embed(folder, output, ColourEmbedder())


def test_a_row_has_the_image_s_features_and_what_its_name_says(folder: pathlib.Path) -> None:
    embed(folder, folder.parent / "f.parquet", ColourEmbedder())
    table = feature_files.read(folder.parent / "f.parquet")
    assert table.facts["image_id"].tolist() == sorted(name for i, name in enumerate(NAMES) if i not in (3, 9))
    position = table.facts["image_id"].tolist().index(NAMES[5])
    assert table.facts.iloc[position].tolist() == [NAMES[5], "benign", "SOB_B_A_14-5A", "14-5", None, None]
    assert table.metadata["model"] == "colours"
    only = embed(folder / NAMES[5], folder.parent / "g.npz", ColourEmbedder())
    assert only.images == 1
    np.testing.assert_array_equal(feature_files.read(folder.parent / "g.npz").features[0], table.features[position])


def test_the_split_of_a_run_comes_before_names_and_a_list_before_both(tmp_path: pathlib.Path) -> None:
    split = {NAMES[0].removesuffix(".png"): {"label": "M", "patient_id": "p", "split": "test", "group": "g"}}
    ref = ImageRef(f"mirror/{NAMES[0]}", f"mirror/{NAMES[0]}", "", {"split": "train", "slide_id": "s"})
    assert list(image_facts.image_facts(ref, split).values()) == ["M", "p", "14-0", "s", "train"]
    (tmp_path / "split.csv").write_text("image_id,split\na,val\n")
    assert image_facts.read_split(tmp_path / "checkpoints" / "best" / "3") == {"a": {"image_id": "a", "split": "val"}}
    assert image_facts.read_split(tmp_path / "other" / "a" / "b" / "c" / "d") == {}


def test_names_that_two_folders_share_stay_whole() -> None:
    refs = [ImageRef(name, name) for name in ("a/1.png", "a/b/2.png", "c/3.png")]
    assert image_facts.relative_ids(refs, ["a", "c/"]) == ["1.png", "b/2.png", "3.png"]
    refs.append(ImageRef("c/1.png", "c/1.png"))
    assert image_facts.relative_ids(refs, ["a", "c/"]) == ["a/1.png", "a/b/2.png", "c/3.png", "c/1.png"]


@pytest.fixture(scope="module")
def weight_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A tiny Vision Transformer by timm's names, behind a prefix."""
    rng = np.random.default_rng(0)
    shapes = twins.expected(twins.abstract("vit", num_classes=2, **OPTIONS))
    values = {path: rng.random(shape, np.float32) for path, (shape, _) in shapes.items()}
    arrays = weights.export(values, models.spec("vit"))
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    safetensors.numpy.save_file({f"module.pre.{name}": array for name, array in arrays.items()}, path)
    return path


def config(source: str | pathlib.Path) -> ConfigDict:
    made = default_config.base()
    made.model.name, made.model.options = "vit", ConfigDict(OPTIONS)
    return configure(made, str(source), image_size=16, normalisation=((0.5, 0.4, 0.3), (0.2, 0.2, 0.2)))


def test_features_are_the_input_of_the_classifier(weight_file: pathlib.Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8)
    pooled = Embedder.of_weights(config(weight_file), batch_size=4)
    (features,) = pooled.stream([images])
    module = twins.abstract("vit", num_classes=2, **OPTIONS)
    values, _ = weights.fitting.fit(weights.inspect(weight_file), "vit", twins.expected(module))
    normalised = normalise(images, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    expected = twins.logits(module, values, normalised)
    np.testing.assert_allclose(features @ values["head/kernel"] + values["head/bias"], expected, rtol=1e-4)
    assert pooled.metadata["weights_sha256"] == weights.sha256(weight_file)
    assert pooled.metadata["preprocessing"]["mean"] == [0.5, 0.4, 0.3]


def test_a_predictor_embeds_images() -> None:
    predictor = Predictor.load(VIT_RUN, batch_size=4)
    images = [np.random.default_rng(i).integers(0, 256, (40 + i, 30, 3), np.uint8) for i in range(3)]
    features = predictor.embed(images)
    assert features.shape == (3, predictor.trained.config.model.options.embed_dim)
    assert not np.allclose(features[0], features[1])
    np.testing.assert_array_equal(predictor.embed(images[:1])[0], features[0])
    trained = predictor.trained
    pixels = np.stack([resize(image, predictor.image_size) for image in [*images, images[0]]])

    @jax.jit
    def means(model: ModelState) -> jax.Array:
        return trained.program.apply(lambda module, x: module.feature_maps(x)["block1"].mean((1, 2)), model, pixels)

    np.testing.assert_allclose(predictor.embed(images, "block1"), means(trained.model)[:3], atol=1e-5)
    assert predictor.embed([], "block1").shape == (0, features.shape[1])
    with pytest.raises(RunError, match=r"--layer=block9 is no layer of this model \(did you mean 'block\d'\?\)"):
        predictor.embed(images, "block9")


def test_the_command_writes_the_features_of_a_run(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("histojax.distributed.runtime.prepare", lambda: None)  # jax has started
    output = folder.parent / "f.parquet"
    main(["embed", str(VIT_RUN), str(folder), "--output", str(output), "--batch_size=8", "--shard=1/2"])
    assert "Images   10," in capsys.readouterr().out
    table = pd.read_parquet(output)
    assert table["image_id"].tolist() == [name for name in sorted(NAMES)[1::2] if name not in (NAMES[3], NAMES[9])]
    for words, message in (
        ([str(VIT_RUN)], "no images are named"),
        (["--weights=w.pth", str(folder)], "--weights needs the network"),
        ([str(VIT_RUN), str(folder), "--prefix=a"], "--prefix: has an effect only with --weights"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["embed", *words, f"--output={output}"])
