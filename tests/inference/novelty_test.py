"""A run recognises images unlike its own: quantiles, flags, the file beside the run, and the columns of predictions."""

import pathlib
import re
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest

from data_pipelines.pixels import decode
from data_pipelines.prepare import open_images
from data_pipelines.splits import Split
from histojax.cli.main import main
from histojax.core.errors import RunError
from histojax.data.sources import open_dataset
from histojax.evaluation.novelty import COLUMNS
from histojax.inference.novelty import memory, pixel_rules
from histojax.inference.novelty.scorer import NoveltyScorer
from histojax.inference.predictor import Predictor
from tests.conftest import ROOT
from tests.helpers.command import histojax

VIT_RUN = ROOT / "tests" / "fixtures" / "runs_of_0_1" / "vit"
PINK = (200, 120, 190)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A copy of a small run on synthetic images, with its file. Do not write into it."""
    folder = tmp_path_factory.mktemp("novelty") / "run"
    shutil.copytree(VIT_RUN, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("histojax.distributed.runtime.prepare", lambda: None)  # jax has started
        main(["novelty", str(folder)])
    return folder


@pytest.fixture(scope="module")
def images(run: pathlib.Path) -> pathlib.Path:
    """The run's validation images, and in other folders copies in inverted colours and blank images."""
    predictor = Predictor.load(run)
    dataset = open_dataset(predictor.trained.config.data)
    stored = open_images(dataset.prepared.directory)
    folder = run.parent / "images"
    for kind in ("val", "inverted", "blank"):
        (folder / kind).mkdir(parents=True)
    for i in dataset.place(Split.from_json(predictor.trained.meta["split"])).indices("val"):
        pixels = decode(stored[int(i)]["image"])[..., ::-1]
        cv2.imwrite(str(folder / "val" / f"{i}.png"), pixels)
        cv2.imwrite(str(folder / "inverted" / f"{i}.png"), 255 - pixels)
        cv2.imwrite(str(folder / "blank" / f"{i}.png"), np.full_like(pixels, 245))
    return folder


@pytest.fixture(scope="module")
def table(run: pathlib.Path, images: pathlib.Path) -> pd.DataFrame:
    """What `histojax predict` says of them."""
    done = histojax("predict", run, images, "--output", run.parent / "all.csv")
    assert done.returncode == 0, done.stderr
    assert "novelty: distances from 168 training images, layer pooled; quantiles among 36 validation images of 6" in (
        done.stderr
    )
    assert re.search("Unusual images: .*unlike training", done.stdout)
    table = pd.read_csv(run.parent / "all.csv", keep_default_na=False)
    assert table.columns[-len(COLUMNS) :].tolist() == list(COLUMNS)
    return table.assign(kind=table["image_id"].map(lambda name: pathlib.Path(name).parent.name))


def test_validation_images_are_usual_and_other_images_are_not(table: pd.DataFrame) -> None:
    quantiles = table.groupby("kind")[["novelty_quantile", "novelty_knn_quantile"]].median()
    np.testing.assert_allclose(quantiles.loc["val"], 0.5, atol=0.03)
    assert (quantiles.drop("val") > 0.9).all(axis=None)
    assert (quantiles.loc["inverted"] > 0.99).all()
    flagged = table["novelty_flags"].str.split("; ").map(lambda flags: "unlike training" in flags)
    assert flagged.equals(table["novelty_quantile"] >= 0.99)
    assert flagged[table["kind"] == "inverted"].mean() > 0.9
    assert flagged[table["kind"] == "val"].mean() < 0.05
    assert table["novelty_flags"].str.contains("almost no tissue").equals(table["kind"] == "blank")


def test_shards_and_other_batches_give_the_same_values(
    run: pathlib.Path, images: pathlib.Path, table: pd.DataFrame, tmp_path: pathlib.Path
) -> None:
    for shard in ("0/2", "1/2"):
        done = histojax("predict", run, images, f"--shard={shard}", "--output", tmp_path / f"{shard[0]}.csv")
        assert done.returncode == 0, done.stderr
    whole = (run.parent / "all.csv").read_text().splitlines()
    parts = [line for n in (0, 1) for line in (tmp_path / f"{n}.csv").read_text().splitlines()[1:]]
    assert sorted(parts) == sorted(whole[1:])


def test_several_runs_have_no_columns(run: pathlib.Path, images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = histojax("predict", f"{run},{run}", images / "blank", "--output", tmp_path / "two.csv")
    assert "no columns of novelty: several runs are averaged" in done.stderr
    assert not set(COLUMNS) & set(pd.read_csv(tmp_path / "two.csv").columns)


def test_the_file_is_the_same_every_time_and_belongs_to_its_checkpoint(
    run: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = run / memory.FILE
    remembered = memory.read(path)
    remembered.write(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    copy = tmp_path / "copy"
    shutil.copytree(VIT_RUN, copy)
    predictor = Predictor.load(copy)
    assert NoveltyScorer.of_predictor(predictor) is None
    facts = {**remembered.facts, "checkpoint": "another"}
    memory.Memory(**{**vars(remembered), "facts": facts}).write(copy / memory.FILE)
    assert NoveltyScorer.of_predictor(predictor) is None
    assert f"belongs to another checkpoint and is not used; write it again: histojax novelty {copy}" in caplog.text
    (copy / memory.FILE).write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"novelty\.safetensors: cannot be read .* or delete it"):
        NoveltyScorer.of_predictor(predictor)


def test_a_layer_that_does_not_exist_and_too_few_images_are_errors(tmp_path: pathlib.Path) -> None:
    shutil.copytree(VIT_RUN, tmp_path / "run")
    done = histojax("novelty", tmp_path / "run", "--layer=block9")
    assert "--layer=block9 is no layer of this model (did you mean 'block" in done.stderr
    assert not (tmp_path / "run" / memory.FILE).exists()
    x, nothing = np.random.default_rng(0).normal(size=(20, 3)), np.zeros((0, 3))
    for train, val, words in (
        (x, nothing, "the run has 0 validation images; .*val_fraction"),
        (x[:9], x, "the run has 9 training images"),
        (x * np.nan, x, "features of training images are NaN"),
        (x * 0, x, "all features are equal: .*--layer"),
    ):
        measured = [pixel_rules.measure(np.zeros((8, 8, 3), np.uint8))] * len(val)
        units = ("image", np.arange(len(val)), len(val))
        with pytest.raises(RunError, match=words):
            memory.build(train, ["a"] * len(train), val, units, measured, {})


def painted(colour: tuple[int, int, int], share: float) -> np.ndarray:
    """Pink tissue, with another colour on a part of it."""
    image = np.full((40, 40, 3), PINK, np.uint8)
    image[: round(40 * share)] = colour
    return image


@pytest.mark.parametrize(
    ("colour", "words"),
    [
        ((245, 245, 245), "almost no tissue"),
        ((30, 60, 190), "pen, black, or a blue or green stain"),
        ((20, 20, 20), "pen, black, or a blue or green stain"),
        ((140, 90, 50), "a brown stain, not H&E"),
    ],
)
def test_a_flag_needs_more_than_validation_images_have(colour: tuple[int, int, int], words: str) -> None:
    none = dict.fromkeys(pixel_rules.RULES, 0.0)
    assert pixel_rules.flags(pixel_rules.measure(painted(colour, 0.0)), none) == []
    measured = pixel_rules.measure(painted(colour, 0.98))
    assert pixel_rules.flags(measured, none) == [words]
    assert pixel_rules.flags(measured, dict.fromkeys(pixel_rules.RULES, 1.0)) == []
    assert pixel_rules.flags(pixel_rules.measure(painted(colour, 0.15)), none) == []
