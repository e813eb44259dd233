"""Predictions come in order and once each, whatever was killed in between; the table can be evaluated."""

import json
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from data_pipelines.pixels import resize
from data_pipelines.stain import StainNormalizer
from histojax.core.errors import RunError
from histojax.evaluation import predictions
from histojax.evaluation.novelty import COLUMNS
from histojax.inference.predict import prediction_run, prediction_table
from histojax.inference.predict.image_reader import ImageReader
from histojax.inference.predict.images import ImageRef, find
from histojax.inference.predict.thresholds import combine_thresholds
from tests.conftest import ROOT, WriteImages
from tests.helpers.colour_model import ColourModel
from tests.helpers.novelty_scorer import DarknessScorer

NAMES = [f"{i:03}.png" for i in range(22)]
PROBABILITIES = ["prob_red", "prob_green", "prob_blue"]


@pytest.fixture
def folder(tmp_path: pathlib.Path, write_images: WriteImages) -> pathlib.Path:
    """22 files, of which 003 and 009 are not images."""
    write_images(tmp_path / "images", NAMES)
    (tmp_path / "images" / "003.png").write_text("no image")
    (tmp_path / "images" / "009.png").write_text("")
    return tmp_path / "images"


def refs_of(folder: pathlib.Path) -> list[ImageRef]:
    return find([str(folder)])


def predict(folder: pathlib.Path, *models: ColourModel, output: str = "out.csv", **options: Any) -> pathlib.Path:
    models = models or (ColourModel(),)
    path = folder.parent / output
    thresholds = combine_thresholds(models)
    prediction_run.run(refs_of(folder), models, path, thresholds=thresholds, **options)
    return path


def expected(folder: pathlib.Path, model: ColourModel) -> np.ndarray:
    with ImageReader() as reader:
        images = [reader.read(ref) for ref in refs_of(folder) if ref.path[-7:] not in ("003.png", "009.png")]
    return model.probabilities(np.stack([resize(image, model.image_size) for image in images]))


class Killed(ColourModel):
    """Breaks off after some batches."""

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for number, rows in enumerate(super().stream(batches)):
            if number == 3:
                raise KeyboardInterrupt
            yield rows


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_row_per_image_and_a_reason_per_unreadable_file(folder: pathlib.Path, suffix: str) -> None:
    output = predict(folder, output=f"out.{suffix}")
    table = pd.read_csv(output) if suffix == "csv" else pd.read_parquet(output)
    assert table["image_id"].tolist() == [f"{folder}/{n}" for n in NAMES if n not in ("003.png", "009.png")]
    np.testing.assert_array_equal(table[PROBABILITIES].to_numpy(np.float32), expected(folder, ColourModel()))
    most_probable = table[PROBABILITIES].to_numpy().argmax(1)
    assert table["predicted"].tolist() == [("red", "green", "blue")[i] for i in most_probable]
    failed = pd.read_csv(prediction_table.failures_path(output))
    assert failed["image_id"].tolist() == [f"{folder}/003.png", f"{folder}/009.png"]
    assert failed["reason"].tolist()[1] == "empty file"
    assert sorted(p.name for p in folder.parent.iterdir()) == sorted(["images", "out.failed.csv", output.name])


@pytest.mark.parametrize("lost", [1, 5])
def test_a_resumed_run_predicts_only_the_rest_and_writes_the_same_table(folder: pathlib.Path, lost: int) -> None:
    undisturbed = predict(folder, output="one.csv")
    with pytest.raises(KeyboardInterrupt):
        predict(folder, Killed(), output="two.csv")
    partial = folder.parent / "two.csv.partial"
    lines = partial.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 3 * 4
    partial.write_bytes(b"".join(lines)[:-lost])  # killed within a line: its batch is predicted again
    model = ColourModel()
    again = predict(folder, model, output="two.csv")
    assert model.num_predicted == 22 - 8
    assert again.read_bytes() == undisturbed.read_bytes()
    assert (folder.parent / "two.failed.csv").read_bytes() == (folder.parent / "one.failed.csv").read_bytes()


def test_a_killed_process_resumes_where_it_stopped(folder: pathlib.Path) -> None:
    undisturbed = predict(folder, output="one.csv")
    program = """
        import pathlib, sys, time
        from histojax.inference.predict import prediction_run
        from histojax.inference.predict.images import find
        from tests.helpers.colour_model import ColourModel
        class Slow(ColourModel):
            def probabilities(self, images):
                time.sleep(0.3)
                return super().probabilities(images)
        prediction_run.run(find([sys.argv[1]]), [Slow()], pathlib.Path(sys.argv[2]), thresholds=None)
    """
    output = folder.parent / "two.csv"
    partial = folder.parent / "two.csv.partial"
    words = [sys.executable, "-c", textwrap.dedent(program), str(folder), str(output)]
    with subprocess.Popen(words, cwd=ROOT) as process:
        deadline = time.monotonic() + 60
        while not partial.exists() or partial.read_bytes().count(b"\n") < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(RunError, match="another process is writing this file"):
            predict(folder, output="two.csv")
        process.send_signal(signal.SIGKILL)
    assert not output.exists()
    model = ColourModel()
    predict(folder, model, output="two.csv")
    assert model.num_predicted < 22
    assert output.read_bytes() == undisturbed.read_bytes()


def test_a_partial_table_of_other_settings_is_rejected(folder: pathlib.Path, write_images: WriteImages) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict(folder, Killed())
    for options, model, words in (
        ({"dihedral": True}, ColourModel(), "tta: saved 'none', now 'dihedral'"),
        ({}, ColourModel(batch_size=2), "batch_size: saved 4, now 2"),
        ({}, ColourModel(weight=2.0), "runs: "),
    ):
        with pytest.raises(RunError, match=words):
            predict(folder, model, **options)
    write_images(folder, ["100.png"])
    with pytest.raises(RunError, match=r"files: .*\n  images: saved 22, now 23\n.*--redo"):
        predict(folder)
    model = ColourModel()
    table = pd.read_csv(predict(folder, model, redo=True))
    assert (model.num_predicted, len(table)) == (23, 21)


def test_an_existing_table_is_kept_without_redo(folder: pathlib.Path) -> None:
    output = predict(folder)
    before = output.read_bytes()
    with pytest.raises(RunError, match="already exists"):
        predict(folder)
    assert output.read_bytes() == before
    (folder / "003.png").unlink()
    (folder / "009.png").unlink()
    predict(folder, redo=True)
    assert not (folder.parent / "out.failed.csv").exists()  # nothing failed this time
    (folder.parent / "x.csv.partial").write_text("[1]\n")
    with pytest.raises(RunError, match="not the results of an interrupted command"):
        predict(folder, output="x.csv")
    with pytest.raises(RunError, match=r"not a file name that ends in \.csv or \.parquet"):
        predict(folder, output="x.txt")


def test_the_mean_over_eight_views_and_several_models(folder: pathlib.Path) -> None:
    one, other = ColourModel(labels=True), ColourModel(labels=True, weight=3.0, image_size=16)
    other.thresholds = {"red": 0.4, "green": 0.4, "blue": 0.2}
    table = pd.read_csv(predict(folder, one, other))
    means = (expected(folder, one).astype(np.float64) + expected(folder, other)) / 2
    np.testing.assert_array_equal(table[PROBABILITIES].to_numpy(), means)
    for name, threshold in (("red", (0.2 + 0.4) / 2), ("green", 0.4), ("blue", 0.4)):
        predicted = table[f"predicted_{name}"].tolist()
        assert predicted == (table[f"prob_{name}"] >= threshold).astype(int).tolist()
        assert set(predicted) <= {0, 1}
    # The mean over all views differs from the prediction for the image alone.
    with ImageReader() as reader:
        image = resize(reader.read(refs_of(folder)[0]), 8)
    views = [
        np.rot90(picture, turns)
        for picture in (image, image[:, ::-1])
        for turns in range(4)
    ]  # fmt: skip
    table = pd.read_csv(predict(folder, one, output="tta.csv", dihedral=True))
    mean = one.probabilities(np.stack(views)).astype(np.float64).mean(0)
    np.testing.assert_allclose(table[PROBABILITIES].to_numpy()[0], mean, atol=1e-7)
    assert np.abs(one.probabilities(image[None])[0] - mean).max() > 1e-4


def test_calibration_moves_probabilities_and_thresholds_together(folder: pathlib.Path) -> None:
    with pytest.raises(RunError, match=r"--calibrated: run 1 has no temperature"):
        combine_thresholds([ColourModel()], calibrated=True)
    for model, temperatures in ((ColourModel(), [2.0]), (ColourModel(labels=True), [2.0, 0.5, 3.0])):
        model.temperatures = temperatures
        tables = []
        for calibrated in (False, True):
            output = folder.parent / f"{calibrated}{len(temperatures)}.csv"
            thresholds = combine_thresholds([model], calibrated=calibrated)
            prediction_run.run(refs_of(folder), [model], output, thresholds=thresholds, calibrated=calibrated)
            tables.append(pd.read_csv(output))
        raw, moved = (table[PROBABILITIES].to_numpy() for table in tables)
        logits = (np.log(raw) if len(temperatures) == 1 else np.log(raw / (1 - raw))) / temperatures
        expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        if len(temperatures) > 1:
            expected = 1 / (1 + np.exp(-logits))
        np.testing.assert_allclose(moved, expected, rtol=1e-9)
        for column in [name for name in tables[0] if name.startswith("predicted")]:
            assert tables[0][column].tolist() == tables[1][column].tolist()
    # With two classes, each run's temperature also moves its locked threshold.
    warm, warmer = ColourModel(), ColourModel()
    for model, temperature in ((warm, 2.0), (warmer, 1.0)):
        model.classes, model.decision, model.temperatures = ("cold", "warm"), {"warm": 0.2}, [temperature]
    at_two = 0.2**0.5 / (0.2**0.5 + 0.8**0.5)
    found = combine_thresholds([warm, warmer], calibrated=True)
    assert found == {"warm": pytest.approx((at_two + 0.2) / 2)}


def test_thresholds_are_the_runs_or_given() -> None:
    one, other = ColourModel(labels=True), ColourModel(labels=True)
    other.thresholds = {"red": 0.4, "green": 0.4, "blue": 0.2}
    thresholds = combine_thresholds([one, other])
    assert thresholds == pytest.approx({"red": 0.3, "green": 0.4, "blue": 0.4})
    assert combine_thresholds([one], "0.5,red=0.1") == {"red": 0.1, "green": 0.5, "blue": 0.5}
    assert combine_thresholds([ColourModel()]) is None
    warm, warmer = ColourModel(), ColourModel()
    for model, threshold in ((warm, 0.4), (warmer, 0.3)):
        model.classes, model.decision = ("cold", "warm"), {"warm": threshold}
    assert combine_thresholds([warm, warmer]) == {"warm": pytest.approx(0.35)}
    assert combine_thresholds([warm], "cold=0.9") == {"cold": 0.9}
    assert combine_thresholds([warm], "0.6") == {"warm": 0.6}
    with pytest.raises(RunError, match=r"--threshold=hot=0\.9: unknown name 'hot'; the names are cold, warm"):
        combine_thresholds([warm], "hot=0.9")
    warmer.decision = None  # an older version trained it: there is no mean of one half
    assert combine_thresholds([warm, warmer]) is None
    for wrong in ("x", "1.1", "nan", "pink=0.5", "red=", ","):
        with pytest.raises(RunError, match=r"is not a threshold; give NAME=0\.4|unknown name 'pink'"):
            combine_thresholds([one], wrong)
    with pytest.raises(RunError, match="one of 3 classes per image"):
        combine_thresholds([ColourModel()], "0.5")
    foreign = ColourModel(labels=True)
    foreign.classes = ("red", "blue", "green")
    for second in (foreign, ColourModel()):
        with pytest.raises(RunError, match="the runs predict different things: labels red, green, blue in run 1"):
            combine_thresholds([one, second])


def test_a_list_with_labels_gives_a_table_that_can_be_evaluated(
    tmp_path: pathlib.Path, write_images: WriteImages
) -> None:
    bare = "SOB_B_A-14-22549AB-100-001.png"
    write_images(tmp_path, [bare, "2.png"])
    (tmp_path / "list.csv").write_text(f"path,patient_id,label,stain\n{bare},,red,HE\n2.png,007,blue,\n")
    refs = find([str(tmp_path / "list.csv")])
    for suffix in ("csv", "parquet"):
        output = tmp_path / f"out.{suffix}"
        prediction_run.run(refs, [ColourModel()], output, thresholds=None)
        table = predictions.read(output)
        assert table["patient_id"].tolist() == ["SOB_B_A_14-22549AB", "007"]
        assert table["magnification"].tolist() == ["100X", ""]
        assert table["label"].tolist() == ["red", "blue"]
        assert table["stain"].fillna("").tolist() == ["HE", ""]
        assert predictions.class_names(table) == ["red", "green", "blue"]
    (tmp_path / "list.csv").write_text(f"path,label_red,label_green,label_blue\n{bare},1,0,0\n2.png,0,1,1\n")
    refs = find([str(tmp_path / "list.csv")])
    models = [ColourModel(labels=True)]
    for suffix in ("csv", "parquet"):
        output = tmp_path / f"out.{suffix}"
        prediction_run.run(refs, models, output, thresholds=models[0].thresholds, redo=True)
        table = predictions.read(output)
        assert predictions.is_multilabel(table)
        assert table["label_blue"].tolist() == [0, 1]


def test_names_of_any_kind_survive_the_table(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    names = ["a\nb.png", "a\rb.png", "<script>alert(1)</script>".replace("/", "") + ".png", "q\",'.png", "=1+1.png"]
    write_images(tmp_path / "images", names)
    found = sorted(f"{tmp_path}/images/{name}" for name in names)
    for suffix in ("csv", "parquet"):
        output = predict(tmp_path / "images", output=f"out.{suffix}")
        table = pd.read_csv(output) if suffix == "csv" else pd.read_parquet(output)
        assert table["image_id"].tolist() == found


def test_all_of_a_table_may_fail(tmp_path: pathlib.Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_text("no image")
    for suffix in ("csv", "parquet"):
        output = predict(tmp_path / "images", output=f"out.{suffix}")
        table = pd.read_csv(output) if suffix == "csv" else pd.read_parquet(output)
        assert list(table.columns[:4]) == ["image_id", "patient_id", "magnification", "split"]
        assert len(table) == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    write_images(tmp_path / "images", [f"{i}.png" for i in range(50)])
    rows = [f"images/{i % 50}.png,{i}\n" for i in range(4000)]
    (tmp_path / "many.csv").write_text("path,image_id\n" + "".join(rows))
    (tmp_path / "few.csv").write_text("path,image_id\n" + "".join(rows[:2000]))
    # Both in one process: its peak is that of the few images first, and may hardly rise with the many.
    program = """
        import json, pathlib, sys
        from histojax.cli.bench.worker import memory_peak
        from histojax.inference.predict import prediction_run
        from histojax.inference.predict.images import find
        from tests.helpers.colour_model import ColourModel
        peaks, folder = [], pathlib.Path(sys.argv[1])
        for name in ("few", "many"):
            model = ColourModel(batch_size=32, image_size=224)
            refs = find([str(folder / f"{name}.csv")])
            prediction_run.run(refs, [model], folder / f"{name}-out.parquet", thresholds=None)
            peaks.append(memory_peak())
        print(json.dumps(peaks))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    few, many = (peak / 2**20 for peak in json.loads(done.stdout))
    assert len(pd.read_parquet(tmp_path / "many-out.parquet")) == 4000
    # 2,000 more images have 300 MB of pixels; their names and paths take about 1 kB each.
    # Below 2,000 images the heap still grows.
    assert many - few < 40, (few, many)
    print(f"peak RSS: {few:.0f} MiB at 2,000 images, {many:.0f} MiB at 4,000")


def test_a_resumed_run_also_has_the_same_novelty_of_every_image(folder: pathlib.Path) -> None:
    plain = predict(folder, output="plain.csv")
    undisturbed = predict(folder, output="one.csv", novelty=DarknessScorer())
    with pytest.raises(KeyboardInterrupt):
        predict(folder, Killed(), output="two.csv", novelty=DarknessScorer())
    with pytest.raises(RunError, match="novelty: saved 'dark', now 'other'"):
        predict(folder, output="two.csv", novelty=DarknessScorer("other"))
    assert predict(folder, output="two.csv", novelty=DarknessScorer()).read_bytes() == undisturbed.read_bytes()
    table = pd.read_csv(undisturbed, keep_default_na=False)
    pd.testing.assert_frame_equal(table.drop(columns=list(COLUMNS)), pd.read_csv(plain, keep_default_na=False))
    with ImageReader() as reader:
        images = [reader.read(ref) for ref in refs_of(folder) if ref.image_id in set(table["image_id"])]
    dark = [1 - resize(image, 8).mean() / 255 for image in images]
    np.testing.assert_allclose(table["novelty"], dark)
    turned = predict(folder, output="turned.csv", novelty=DarknessScorer(), dihedral=True)
    assert pd.read_csv(turned)["novelty"].tolist() == table["novelty"].tolist()


def test_each_model_sees_the_colours_that_it_was_trained_on(folder: pathlib.Path) -> None:
    white = np.full((8, 8, 3), 255, np.uint8)
    cv2.imwrite(str(folder / "007.png"), white)
    normalizer = StainNormalizer("reinhard", (70.0, 10.0, -5.0, 12.0, 6.0, 5.0))
    models = [ColourModel(), ColourModel(stain=normalizer, weight=2)]
    table = pd.read_csv(predict(folder, *models))
    with ImageReader() as reader:
        read = [resize(reader.read(ref), 8) for ref in refs_of(folder) if ref.path[-7:] not in ("003.png", "009.png")]
    stained = np.stack([normalizer.apply(image)[0] for image in read])
    both = (models[0].probabilities(np.stack(read)), models[1].probabilities(stained))
    np.testing.assert_allclose(table[PROBABILITIES].to_numpy(), np.mean(both, axis=0), rtol=1e-6)
    assert table["stain_normalised"].tolist() == [int(image.min() < 255) for image in read]
    assert "stain_normalised" not in pd.read_csv(predict(folder, models[0], output="other.csv"))
