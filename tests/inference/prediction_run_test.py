"""Answers come in order, once, whatever was killed in between; the table is one that can be evaluated."""

import json
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import pytest

from data_pipelines.pixels import resize
from histojax.core.errors import RunError
from histojax.evaluation import predictions
from histojax.inference.predict import pixels, prediction_run, prediction_table
from histojax.inference.predict.images import ImageRef, find
from tests.conftest import ROOT, WriteImages
from tests.helpers.colour_model import ColourModel

NAMES = [f"{i:03}.png" for i in range(22)]
PROBABILITIES = ["prob_red", "prob_green", "prob_blue"]


@pytest.fixture
def folder(tmp_path: pathlib.Path, write_images: WriteImages) -> pathlib.Path:
    """22 images, of which 003 and 009 are none."""
    write_images(tmp_path / "images", NAMES)
    (tmp_path / "images" / "003.png").write_text("no image")
    (tmp_path / "images" / "009.png").write_text("")
    return tmp_path / "images"


def refs_of(folder: pathlib.Path) -> list[ImageRef]:
    return find([str(folder)])


def ask(folder: pathlib.Path, *models: ColourModel, output: str = "out.csv", **options: bool) -> pathlib.Path:
    models = models or (ColourModel(),)
    path = folder.parent / output
    cuts = prediction_run.thresholds_of(models)
    prediction_run.run(refs_of(folder), models, path, thresholds=cuts, **options)
    return path


def wanted(folder: pathlib.Path, model: ColourModel) -> np.ndarray:
    with pixels.Reader() as reader:
        images = [reader.read(ref) for ref in refs_of(folder) if ref.path[-7:] not in ("003.png", "009.png")]
    return model.say(np.stack([resize(image, model.image_size) for image in images]))


class Killed(ColourModel):
    """Breaks off after some batches."""

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for number, rows in enumerate(super().stream(batches)):
            if number == 3:
                raise KeyboardInterrupt
            yield rows


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_row_an_image_and_the_others_with_the_reason(folder: pathlib.Path, suffix: str) -> None:
    output = ask(folder, output=f"out.{suffix}")
    table = pd.read_csv(output) if suffix == "csv" else pd.read_parquet(output)
    assert table["image_id"].tolist() == [f"{folder}/{n}" for n in NAMES if n not in ("003.png", "009.png")]
    np.testing.assert_array_equal(table[PROBABILITIES].to_numpy(np.float32), wanted(folder, ColourModel()))
    said = table[PROBABILITIES].to_numpy().argmax(1)
    assert table["predicted"].tolist() == [("red", "green", "blue")[i] for i in said]
    failed = pd.read_csv(prediction_table.failures_of(output))
    assert failed["image_id"].tolist() == [f"{folder}/003.png", f"{folder}/009.png"]
    assert failed["reason"].tolist()[1] == "empty file"
    assert sorted(p.name for p in folder.parent.iterdir()) == sorted(["images", "out.failed.csv", output.name])


@pytest.mark.parametrize("lost", [1, 5])
def test_what_was_read_is_not_read_again_and_the_table_is_the_same(folder: pathlib.Path, lost: int) -> None:
    undisturbed = ask(folder, output="one.csv")
    with pytest.raises(KeyboardInterrupt):
        ask(folder, Killed(), output="two.csv")
    partial = folder.parent / "two.csv.partial"
    lines = partial.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 3 * 4
    partial.write_bytes(b"".join(lines)[:-lost])  # killed within a line: its batch is asked again
    model = ColourModel()
    again = ask(folder, model, output="two.csv")
    assert model.asked == 22 - 8
    assert again.read_bytes() == undisturbed.read_bytes()
    assert (folder.parent / "two.failed.csv").read_bytes() == (folder.parent / "one.failed.csv").read_bytes()


def test_a_process_that_is_killed_goes_on_where_it_was(folder: pathlib.Path) -> None:
    undisturbed = ask(folder, output="one.csv")
    program = """
        import pathlib, sys, time
        from histojax.inference import prediction_run
        from histojax.inference.images import find
        from tests.helpers.colour_model import ColourModel
        class Slow(ColourModel):
            def say(self, images):
                time.sleep(0.3)
                return super().say(images)
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
        with pytest.raises(RunError, match="another process is writing it"):
            ask(folder, output="two.csv")
        process.send_signal(signal.SIGKILL)
    assert not output.exists()
    model = ColourModel()
    ask(folder, model, output="two.csv")
    assert model.asked < 22
    assert output.read_bytes() == undisturbed.read_bytes()


def test_another_question_is_not_mixed_with_the_one_begun(folder: pathlib.Path, write_images: WriteImages) -> None:
    with pytest.raises(KeyboardInterrupt):
        ask(folder, Killed())
    for options, model, words in (
        ({"dihedral": True}, ColourModel(), "tta: 'none' there, 'dihedral' here"),
        ({}, ColourModel(batch_size=2), "batch_size: 4 there, 2 here"),
        ({}, ColourModel(weight=2.0), "runs: "),
    ):
        with pytest.raises(RunError, match=words):
            ask(folder, model, **options)
    write_images(folder, ["100.png"])
    with pytest.raises(RunError, match=r"files: .*\n  images: 22 there, 23 here\n.*--redo"):
        ask(folder)
    model = ColourModel()
    table = pd.read_csv(ask(folder, model, redo=True))
    assert (model.asked, len(table)) == (23, 21)


def test_a_table_that_is_there_is_kept_unless_told(folder: pathlib.Path) -> None:
    output = ask(folder)
    before = output.read_bytes()
    with pytest.raises(RunError, match="is there already"):
        ask(folder)
    assert output.read_bytes() == before
    (folder / "003.png").unlink()
    (folder / "009.png").unlink()
    ask(folder, redo=True)
    assert not (folder.parent / "out.failed.csv").exists()  # nothing failed this time
    (folder.parent / "x.csv.partial").write_text("[1]\n")
    with pytest.raises(RunError, match="not written by histojax predict"):
        ask(folder, output="x.csv")
    with pytest.raises(RunError, match=r"no file that ends in \.csv or \.parquet"):
        ask(folder, output="x.txt")


def test_the_mean_over_eight_views_and_several_models(folder: pathlib.Path) -> None:
    one, other = ColourModel(labels=True), ColourModel(labels=True, weight=3.0, image_size=16)
    other.thresholds = {"red": 0.4, "green": 0.4, "blue": 0.2}
    table = pd.read_csv(ask(folder, one, other))
    means = (wanted(folder, one).astype(np.float64) + wanted(folder, other)) / 2
    np.testing.assert_array_equal(table[PROBABILITIES].to_numpy(), means)
    for name, cut in (("red", (0.2 + 0.4) / 2), ("green", 0.4), ("blue", 0.4)):
        there = table[f"predicted_{name}"].tolist()
        assert there == (table[f"prob_{name}"] >= cut).astype(int).tolist()
        assert set(there) <= {0, 1}
    # What a turned image is answered is what the image itself is, and not without turning.
    with pixels.Reader() as reader:
        image = resize(reader.read(refs_of(folder)[0]), 8)
    views = [
        np.rot90(picture, turns)
        for picture in (image, image[:, ::-1])
        for turns in range(4)
    ]  # fmt: skip
    table = pd.read_csv(ask(folder, one, output="tta.csv", dihedral=True))
    mean = one.say(np.stack(views)).astype(np.float64).mean(0)
    np.testing.assert_allclose(table[PROBABILITIES].to_numpy()[0], mean, atol=1e-7)
    assert np.abs(one.say(image[None])[0] - mean).max() > 1e-4


def test_calibration_moves_probabilities_and_thresholds_together(folder: pathlib.Path) -> None:
    with pytest.raises(RunError, match=r"--calibrated: run 1 has no temperature"):
        prediction_run.thresholds_of([ColourModel()], calibrated=True)
    for model, temperatures in ((ColourModel(), [2.0]), (ColourModel(labels=True), [2.0, 0.5, 3.0])):
        model.temperatures = temperatures
        tables = []
        for calibrated in (False, True):
            output = folder.parent / f"{calibrated}{len(temperatures)}.csv"
            cuts = prediction_run.thresholds_of([model], calibrated=calibrated)
            prediction_run.run(refs_of(folder), [model], output, thresholds=cuts, calibrated=calibrated)
            tables.append(pd.read_csv(output))
        raw, moved = (table[PROBABILITIES].to_numpy() for table in tables)
        logits = (np.log(raw) if len(temperatures) == 1 else np.log(raw / (1 - raw))) / temperatures
        expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        if len(temperatures) > 1:
            expected = 1 / (1 + np.exp(-logits))
        np.testing.assert_allclose(moved, expected, rtol=1e-9)
        for column in [name for name in tables[0] if name.startswith("predicted")]:
            assert tables[0][column].tolist() == tables[1][column].tolist()
    # Of two classes the locked threshold, too; of several runs each by its own temperature.
    warm, warmer = ColourModel(), ColourModel()
    for model, temperature in ((warm, 2.0), (warmer, 1.0)):
        model.classes, model.decision, model.temperatures = ("cold", "warm"), {"warm": 0.2}, [temperature]
    at_two = 0.2**0.5 / (0.2**0.5 + 0.8**0.5)
    found = prediction_run.thresholds_of([warm, warmer], calibrated=True)
    assert found == {"warm": pytest.approx((at_two + 0.2) / 2)}


def test_thresholds_are_the_runs_or_given() -> None:
    one, other = ColourModel(labels=True), ColourModel(labels=True)
    other.thresholds = {"red": 0.4, "green": 0.4, "blue": 0.2}
    cuts = prediction_run.thresholds_of([one, other])
    assert cuts == pytest.approx({"red": 0.3, "green": 0.4, "blue": 0.4})
    assert prediction_run.thresholds_of([one], "0.5,red=0.1") == {"red": 0.1, "green": 0.5, "blue": 0.5}
    assert prediction_run.thresholds_of([ColourModel()]) is None
    warm, warmer = ColourModel(), ColourModel()
    for model, cut in ((warm, 0.4), (warmer, 0.3)):
        model.classes, model.decision = ("cold", "warm"), {"warm": cut}
    assert prediction_run.thresholds_of([warm, warmer]) == {"warm": pytest.approx(0.35)}
    assert prediction_run.thresholds_of([warm], "cold=0.9") == {"cold": 0.9}
    assert prediction_run.thresholds_of([warm], "0.6") == {"warm": 0.6}
    with pytest.raises(RunError, match=r"--threshold=hot=0\.9: one class an image is predicted \(cold, warm\)"):
        prediction_run.thresholds_of([warm], "hot=0.9")
    warmer.decision = None  # of an older version: half a mean is none
    assert prediction_run.thresholds_of([warm, warmer]) is None
    for wrong in ("x", "1.1", "nan", "pink=0.5", "red=", ","):
        with pytest.raises(RunError, match="give 0 … 1 for all labels, or LABEL="):
            prediction_run.thresholds_of([one], wrong)
    with pytest.raises(RunError, match="one class an image is predicted"):
        prediction_run.thresholds_of([ColourModel()], "0.5")
    foreign = ColourModel(labels=True)
    foreign.classes = ("red", "blue", "green")
    for second in (foreign, ColourModel()):
        with pytest.raises(RunError, match="runs of different questions: labels red, green, blue in run 1"):
            prediction_run.thresholds_of([one, second])


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
        output = ask(tmp_path / "images", output=f"out.{suffix}")
        table = pd.read_csv(output) if suffix == "csv" else pd.read_parquet(output)
        assert table["image_id"].tolist() == found


def test_all_of_a_table_may_fail(tmp_path: pathlib.Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_text("no image")
    for suffix in ("csv", "parquet"):
        output = ask(tmp_path / "images", output=f"out.{suffix}")
        table = pd.read_csv(output) if suffix == "csv" else pd.read_parquet(output)
        assert list(table.columns[:4]) == ["image_id", "patient_id", "magnification", "split"]
        assert len(table) == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    write_images(tmp_path / "images", [f"{i}.png" for i in range(200)])
    rows = "".join(f"images/{i % 200}.png,{i}\n" for i in range(12000))
    (tmp_path / "many.csv").write_text("path,image_id\n" + rows)
    (tmp_path / "few.csv").write_text("path,image_id\n" + "".join(rows.splitlines(keepends=True)[:2000]))
    program = """
        import json, pathlib, sys
        from histojax.bench.contestant import memory_peak
        from histojax.inference import prediction_run
        from histojax.inference.images import find
        from tests.helpers.colour_model import ColourModel
        model = ColourModel(batch_size=32, image_size=224)
        prediction_run.run(find([sys.argv[1]]), [model], pathlib.Path(sys.argv[2]), thresholds=None)
        print(json.dumps(memory_peak()))
    """
    peaks = []
    for name in ("few", "many"):
        words = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / f"{name}.csv")]
        done = subprocess.run(
            [*words, str(tmp_path / f"{name}-out.parquet")], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        peaks.append(json.loads(done.stdout) / 2**20)
    assert len(pd.read_parquet(tmp_path / "many-out.parquet")) == 12000
    # 10,000 more images, of which 1.5 GB of pixels were asked: names and places of them, about 1 kB each.
    assert peaks[1] - peaks[0] < 40, peaks
    print(f"peak RSS: {peaks[0]:.0f} MiB at 2,000 images, {peaks[1]:.0f} MiB at 12,000")
