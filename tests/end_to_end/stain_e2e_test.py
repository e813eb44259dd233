"""Stain normalisation: fitted once on training images, kept in the checkpoint, the same wherever a model is used."""

import json
import pathlib
import re
import signal
from collections.abc import Iterator

import cv2
import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict

from data_pipelines import stain
from data_pipelines.pixels import resize
from data_pipelines.stain import StainNormalizer
from histojax.core.errors import RunError
from histojax.inference.explain.explain import Explainer
from histojax.inference.export import export
from histojax.inference.export.export import ExportSpec
from histojax.inference.predictor import Predictor
from histojax.inference.slide_model import slide_model
from histojax.slides import cohort, cohort_jobs
from histojax.training import checkpoint, loop, stains
from histojax.training.trainer import open_trainer
from tests.helpers.command import histojax
from tests.helpers.programs import assert_same_run
from tests.helpers.quick_run import get_config
from tests.helpers.slide_files import write_pyramid
from tests.helpers.tissue_pictures import GLASS, tissue_picture, tissue_texture

pytestmark = pytest.mark.slow
SIZE, PATIENTS = 16, [("B_A", 901 + i) for i in range(6)] + [("M_DC", 911 + i) for i in range(6)]
PROBABILITIES = ["prob_benign", "prob_malignant"]


def write(path: pathlib.Path, pixels: np.ndarray) -> pathlib.Path:
    cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Three images of tissue and one of glass per patient, each patient with stains of its own."""
    folder, rng = tmp_path_factory.mktemp("stained"), np.random.default_rng(0)
    texture = tissue_texture(24 * len(PATIENTS), 36 * 3, mpp=2.0) / 255.0
    for seed, (kind, case) in enumerate(PATIENTS):
        colours = rng.uniform(1.0, 1.7, 3)
        for number in range(3):
            pixels = 255 * texture[24 * seed :][:24, 36 * number :][:, :36] ** colours
            write(folder / f"SOB_{kind}-14-{case}-100-{number + 1:03}.png", pixels.astype(np.uint8))
        glass = np.array(GLASS) - rng.integers(0, 3, (24, 36, 3))  # noise, so that no two are the same
        write(folder / f"SOB_{kind}-14-{case}-100-004.png", glass.astype(np.uint8))
    return folder


def config_of(images: pathlib.Path, **fields: object) -> ConfigDict:
    return get_config(data__root=str(images), data__stain__method="macenko", **fields)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, images: pathlib.Path) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert loop.train_and_evaluate(config_of(images, data__augment__macenko_jitter=0.2), workdir)
    return workdir


@pytest.fixture(scope="module")
def predictor(run: pathlib.Path) -> Predictor:
    return Predictor.load(run, batch_size=8)


def pixels_of(images: pathlib.Path, name: str) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(images / f"{name}.png")), cv2.COLOR_BGR2RGB)


def test_the_numbers_are_those_of_the_training_images_alone(run: pathlib.Path, images: pathlib.Path) -> None:
    split = pd.read_csv(run / "split.csv")
    training = split[split["split"] == "train"]["image_id"]
    made, used, left_out = stain.fit("macenko", [resize(pixels_of(images, name), SIZE) for name in sorted(training)])
    saved = checkpoint.read_meta(checkpoint.find(run))["stain"]
    assert saved == made.to_json() | {"reference": "training images", "images": used, "without_tissue": left_out}
    assert left_out == training.str.endswith("-004").sum() > 0
    assert json.loads((run / "run.json").read_text())["stain"] == saved


def test_at_most_256_training_images_evenly_spaced_are_measured(
    images: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stains, "_IMAGES", 5)
    opened = open_trainer(config_of(images))
    assert opened.stain is not None
    assert opened.stain["images"] + opened.stain["without_tissue"] == 5
    assert opened.train_spec.stain == opened.eval_spec.stain == StainNormalizer.from_json(opened.stain)


def test_every_use_of_a_model_gives_the_same_probabilities(
    tmp_path: pathlib.Path, run: pathlib.Path, images: pathlib.Path, predictor: Predictor
) -> None:
    table = pd.read_parquet(run / "predictions.parquet").set_index("image_id")
    raw = [pixels_of(images, name) for name in table.index]
    expected = table[PROBABILITIES].to_numpy()
    np.testing.assert_allclose(predictor.predict(raw), expected, atol=1e-6)
    as_they_are = predictor.predict_inputs(resize(image, SIZE) for image in raw)
    assert np.abs(as_they_are - expected).max() > 1e-4  # so normalisation matters here

    assert histojax("eval", f"--checkpoint={run}", f"--workdir={tmp_path}").returncode == 0
    again = pd.read_parquet(tmp_path / "predictions.parquet").set_index("image_id")
    pd.testing.assert_frame_equal(again, table)

    done = histojax("predict", run, images, "--output", tmp_path / "table.parquet")
    assert done.returncode == 0, done.stderr
    assert "12 of 48 images have too little tissue for stain normalisation" in done.stdout
    predicted = pd.read_parquet(tmp_path / "table.parquet")
    assert (predicted["stain_normalised"] == ~predicted["image_id"].str.endswith("-004.png")).all()
    predicted = predicted.set_index(predicted["image_id"].str.split("/").str[-1].str.removesuffix(".png"))
    np.testing.assert_allclose(predicted.loc[table.index, PROBABILITIES].to_numpy(), expected, atol=1e-6)

    done = histojax("embed", run, images, "--output", tmp_path / "features.parquet")
    assert done.returncode == 0, done.stderr
    assert "Stains   12 images" in done.stdout
    features = pd.read_parquet(tmp_path / "features.parquet").set_index("image_id")
    names = [f"{name}.png" for name in table.index]
    found = np.stack(features.loc[names, "features"].tolist())
    np.testing.assert_allclose(found, predictor.embed(raw), atol=1e-5)

    explained = Explainer(predictor, target="malignant").explain(raw[:4])
    assert [one.probability for (one,) in explained] == pytest.approx(expected[:4, 1], abs=1e-6)


def test_results_and_report_count_what_could_not_be_normalised(tmp_path: pathlib.Path, run: pathlib.Path) -> None:
    results = json.loads((run / "results.json").read_text())
    table = pd.read_parquet(run / "predictions.parquet")
    assert results["stain"]["method"] == "macenko"
    for side, block in results["splits"].items():
        rows = table[table["split"] == side]
        assert (rows["stain_normalised"] == ~rows["image_id"].str.endswith("-004")).all()
        assert block["not_normalised"] == rows["patient_id"].nunique()
        (warning,) = [one for one in block["warnings"] if "stain normalisation" in one]
        assert warning.startswith(f"{side}: {block['not_normalised']} of {len(rows)} images have too little tissue")
    assert "macenko, fitted on" in (run / "results.txt").read_text()

    report = histojax("report", run, "--output", tmp_path)
    assert report.returncode == 0, report.stderr
    counts = ", ".join(f"{side} {b['not_normalised']} of {b['n_images']}" for side, b in results["splits"].items())
    expected = f"{results['stain']['description']}; images left as they are for want of tissue: {counts}"
    for page in ("report.html", "MODEL_CARD.md"):
        assert expected in (tmp_path / page).read_text()


def test_tiles_of_a_slide_are_normalised_like_images(tmp_path: pathlib.Path, predictor: Predictor) -> None:
    picture = tissue_picture(480, 480, seed=3)
    slide = write_pyramid(tmp_path / "slide.tif", picture, 0.5, levels=1, compression="zlib")
    jobs = cohort_jobs.find([str(slide)], None, None)
    settings = cohort.Settings(min_tissue=0.02)
    assert cohort.run(jobs, slide_model(predictor, SIZE * 0.5), settings, tmp_path / "out") == 0
    tiles = pd.read_parquet(tmp_path / "out" / "slide" / "tiles.parquet")
    cut = [picture[y : y + SIZE, x : x + SIZE] for x, y in tiles[["minx", "miny"]].to_numpy()]
    np.testing.assert_allclose(tiles[PROBABILITIES].to_numpy(), predictor.predict(cut), atol=1e-6)
    assert tiles["stain_normalised"].tolist() == [int(predictor.input.of(tile)[1]) for tile in cut]
    (row,) = pd.read_csv(tmp_path / "out" / "slides.csv").to_dict("records")
    assert row["tiles_not_normalised"] == (tiles["stain_normalised"] == 0).sum() > 0
    assert f"{row['tiles_not_normalised']} of {len(tiles)} tiles have too little tissue" in row["warnings"]


def test_an_interrupted_run_keeps_its_numbers(
    tmp_path: pathlib.Path, run: pathlib.Path, images: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = loop.train_batches

    def interrupted(*args: object, **kwargs: object) -> Iterator[object]:
        for number, batch in enumerate(batches(*args, **kwargs)):
            if number == 3:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    config = config_of(images, data__augment__macenko_jitter=0.2)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_batches", interrupted)
        assert not loop.train_and_evaluate(config, tmp_path / "run")

    def refit(*_: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(stains, "fit", refit)
    assert loop.train_and_evaluate(config, tmp_path / "run")
    assert_same_run(run, tmp_path / "run")


def test_programs_that_would_not_normalise_get_no_model(tmp_path: pathlib.Path, run: pathlib.Path) -> None:
    for to in ("hf", "torchscript"):
        with pytest.raises(RunError, match=rf"--to {to}: .*Use --to onnx or stablehlo"):
            export.export(run, tmp_path / to, ExportSpec(to))
        assert not (tmp_path / to).exists()


def test_a_program_for_normalised_pixels_comes_with_the_numbers(
    tmp_path: pathlib.Path, run: pathlib.Path, images: pathlib.Path, predictor: Predictor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out, raw = tmp_path / "out", pixels_of(images, "SOB_B_A-14-901-100-001")
    export.export(run, out, ExportSpec("stablehlo"), [raw])
    readme = (out / "README.md").read_text()
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "StainNormalizer" in code]
    names = {"image": resize(raw, SIZE)}
    monkeypatch.chdir(out)
    exec(code, names)
    np.testing.assert_array_equal(names["image"], predictor.input.of(raw)[0])
    assert names["enough_tissue"] is True
    export.export(run, tmp_path / "weights", ExportSpec("safetensors"))
    stored = json.loads((tmp_path / "weights" / "config.json").read_text())["stain"]
    assert StainNormalizer.from_json(stored) == predictor.input.stain


def test_a_reference_image_sets_the_colours(
    tmp_path: pathlib.Path, images: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = images / "SOB_M_DC-14-911-100-001.png"
    monkeypatch.chdir(images)
    opened = open_trainer(config_of(images, data__stain__reference=reference.name))
    assert opened.stain is not None
    assert opened.config.data.stain.reference == opened.stain["reference"] == str(reference)
    made, _, _ = stain.fit("macenko", [resize(pixels_of(images, reference.stem), SIZE)])
    assert StainNormalizer.from_json(opened.stain) == made


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reference": "absent.png"}, r"absent\.png: no reference .*No such file.*: name an image with tissue"),
        ({"reference": "SOB_B_A-14-901-100-004.png"}, "no reference for stain normalisation .*10% of tissue"),
        ({"method": "none", "reference": "a.png"}, r"reference=.*a\.png has no effect with data\.stain\.method=none"),
        ({"method": "vahadane"}, r"data\.stain\.method='vahadane' is not one of none, macenko, reinhard"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    images: pathlib.Path, fields: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    config = config_of(images)
    config.data.stain.update(fields)
    with pytest.raises(RunError, match=message):
        open_trainer(config)


def test_training_images_without_tissue_are_refused(tmp_path: pathlib.Path, images: pathlib.Path) -> None:
    for path in images.glob("*-004.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(RunError, match=r"none of the \d+ images has 10% of tissue.*data\.stain\.method=none"):
        open_trainer(config_of(tmp_path, train__batch_size=4, evaluation__batch_size=4))


def test_weights_of_others_need_a_reference(tmp_path: pathlib.Path, images: pathlib.Path) -> None:
    words = ["embed", "--model", "vit_s16", "--weights", "random", images, "--output", tmp_path / "a.npz"]
    done = histojax(*words, "--stain", "macenko")
    assert "--stain macenko with --weights needs a reference image: give --stain_reference FILE" in done.stderr
    done = histojax("embed", tmp_path / "run", images, "--output", tmp_path / "a.npz", "--stain", "macenko")
    assert "--stain" in done.stderr
    assert done.returncode == 1
