"""`histojax robustness` on a run of seconds: only test images, one bootstrap, resumable, and paired."""

import csv
import json
import pathlib
import shutil

import numpy as np
import pandas as pd
import pytest

from histojax.core.errors import RunError
from histojax.evaluation import results, summary_blocks
from histojax.studies.robustness import curves, predicted, shifts, study, table
from histojax.studies.robustness.study import Measured
from tests.helpers.command import histojax
from tests.helpers.prediction_tables import class_table

CHOSEN = "brightness,stain_crc,defocus"
FLAGS = ("--shifts", CHOSEN, "--resamples", "50", "--batch_size", "8", "--threads", "2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A small ViT on forty synthetic images, whose stains it normalises, with its robustness."""
    folder = tmp_path_factory.mktemp("robustness") / "run"
    config = ("--config", "tests/helpers/quick_run.py", "--config.data.stain.method=reinhard")
    done = histojax("train", *config, "--workdir", str(folder))
    assert done.returncode == 0, done.stderr
    done = histojax("robustness", str(folder), *FLAGS)
    assert done.returncode == 0, done.stderr
    (folder / "robustness" / "stdout.txt").write_text(done.stdout)
    return folder


def files(folder: pathlib.Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found.pop("stdout.txt", None)
    return found


def test_test_images_and_only_those_are_measured(run: pathlib.Path) -> None:
    content = json.loads((run / "robustness" / "robustness.json").read_text())
    (found,), saved = content["runs"], pd.read_parquet(run / "predictions.parquet")
    test = saved[saved["split"] == "test"]
    assert found["n_images"] == len(test) < len(saved)
    for path in (run / "robustness" / "predictions").rglob("*.parquet"):
        assert set(pd.read_parquet(path)["image_id"]) == set(test["image_id"]), path
    block = json.loads((run / "results.json").read_text())["splits"]["test"]["image"]
    for name in curves.METRICS:
        assert found["unshifted"][name]["value"] == pytest.approx(block[name]["value"], abs=1e-5), name
    assert [shift["name"] for shift in found["shifts"]] == ["stain_crc", "brightness", "defocus"]
    assert not any("differ from" in note for note in found["notes"])
    assert any("µm per pixel of the images is unknown" in note for note in found["notes"])
    assert found["shifts"][2]["unit"].startswith("pixels of the input")


def test_headline_table_csv_and_curves(run: pathlib.Path) -> None:
    folder = run / "robustness"
    lines = (folder / "stdout.txt").read_text().splitlines()
    assert lines[0].startswith("== run: vit, case-disjoint")
    assert lines[1].startswith("balanced accuracy ")
    assert any(line.startswith("stains of CRC-VAL-HE-7K ") for line in lines)
    with open(folder / "robustness.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    (found,) = json.loads((folder / "robustness.json").read_text())["runs"]
    num_metrics = len(curves.METRICS)
    assert len(rows) == num_metrics * (1 + sum(len(shift["strengths"]) + 1 for shift in found["shifts"]))
    (one,) = [r for r in rows if (r["shift"], r["label"], r["metric"]) == ("brightness", "+20 %", "auroc")]
    assert float(one["value"]) == found["shifts"][1]["strengths"][-1]["metrics"]["auroc"]["value"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert b"balanced accuracy" in (folder / "curves.svg").read_bytes()


def test_a_killed_command_resumes_with_the_same_bytes(
    run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, count = predicted._write, 0

    def killed(*arguments: object) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(predicted, "_write", killed)
    done = histojax("robustness", str(run), *FLAGS, "--output", str(tmp_path))
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "interrupted: rerun the same command to resume")
    kept = files(tmp_path)
    assert len([name for name in kept if name.endswith(".parquet")]) == 3
    assert "robustness.json" not in kept
    done = histojax("robustness", str(run), *FLAGS, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert count - 4 == len([name for name in files(tmp_path) if name.endswith(".parquet")]) - 3
    assert files(tmp_path) == files(run / "robustness")


def test_two_runs_are_compared_in_a_folder_of_their_own(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    copy, output = shutil.copytree(run, tmp_path / "copy"), tmp_path / "out"
    done = histojax("robustness", str(run), str(copy), *FLAGS, "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert "images predicted" not in done.stderr  # both had their predictions
    assert "== copy − run" in done.stdout
    content = json.loads((output / "robustness.json").read_text())
    assert [one["name"] for one in content["runs"]] == ["run", "copy"]
    (pair,) = content["comparisons"]
    assert pair["n_images"] == content["runs"][0]["n_images"]
    assert pair["mean"]["accuracy"]["value"] == pair["mean"]["accuracy"]["low"] == 0.0  # the same model
    assert (output / "curves_auroc.png").is_file()
    assert not (output / "predictions").exists()


def test_other_settings_are_refused(run: pathlib.Path) -> None:
    done = histojax("robustness", str(run), *FLAGS, "--mpp", "0.5")
    assert done.returncode == 1
    assert "unshifted.parquet was written with different settings:" in done.stderr
    assert "mpp: saved None, now 0.5" in done.stderr
    assert "or overwrite the results with --redo" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either RUN …, or --features FILE …"),
        (["RUN", "--features", "x.parquet"], "give either RUN"),
        (["RUN", "RUN"], "several runs: name the folder of the comparison with --output=PATH"),
        (["RUN", "RUN", "--output", "x"], "the same run was given twice"),
        (["/nowhere"], "/nowhere: no results.json: name the work directory of a run that is finished"),
        (["RUN", "--k", "3"], "--k: has an effect only with --features"),
        (["--features", "x.parquet", "--redo"], "--redo: has an effect only with RUN"),
        (["--features", "x.parquet"], "--features needs --confounder=COLUMN"),
        (["RUN", "--shifts", "jepg"], "did you mean 'jpeg'"),
        (["RUN", "--data_root", "/nowhere"], "/nowhere: no such file or folder"),
    ],
)
def test_what_cannot_be_measured(run: pathlib.Path, words: list[str], message: str) -> None:
    arguments = [str(run) if word == "RUN" else word for word in words]
    done = histojax("robustness", *arguments)
    assert done.returncode == 1
    assert message in done.stderr


# ---- The figures, from tables of predictions -----------------------------------------------------------------------

SHIFTS = shifts.choose(shifts.catalogue(microns=True, image_size=64), ["stain_crc", "stain_cmu1", "brightness"])
CLASSES = ["benign", "malignant"]


def tables(seed: int = 0) -> dict[str, list[pd.DataFrame]]:
    """Predictions of 120 images of ten patients; the stronger the shift, the less they know."""
    base = class_table(seed=seed).assign(pixel_hash="00", unchanged=False)
    rng = np.random.default_rng(seed + 1)
    found = {}
    for shift in SHIFTS:
        steps = []
        for x in shift.strengths:
            if x == 0:
                steps.append(base)
                continue
            weight = min(1.0, abs(x) * (4 if shift.kind != "stain" else 1))
            p = (1 - weight) * base["prob_malignant"] + weight * rng.random(len(base))
            steps.append(base.assign(prob_malignant=p, prob_benign=1 - p))
        found[shift.name] = steps
    return found


def measured(seed: int = 0, name: str = "a") -> Measured:
    facts = {"name": name, "bootstrap": {"n_resamples": 200, "seed": 0}}
    one = Measured(facts, list(SHIFTS), tables(seed), CLASSES, "malignant")
    facts |= study._figures(one)
    return one


def test_every_figure_by_another_way() -> None:
    one = measured()
    described = {shift["name"]: shift for shift in one.facts["shifts"]}
    for shift in SHIFTS:
        values = []
        for i, rows in enumerate(one.tables[shift.name]):
            block = results.summarise(rows, positive="malignant", n_resamples=200, seed=0)["test"]["image"]
            found = described[shift.name]["strengths"][i]["metrics"]
            assert found["auroc"] == block["auroc"]  # the interval as well
            assert {name: found[name]["value"] for name in curves.METRICS} == pytest.approx(
                {name: block[name]["value"] for name in curves.METRICS}
            )
            values.append(block["gmean"]["value"])
        area = np.trapezoid(values, shift.strengths) / (shift.strengths[-1] - shift.strengths[0])
        mean, change = (described[shift.name][key]["gmean"] for key in ("mean", "change"))
        assert mean["value"] == pytest.approx(area)
        assert change["value"] == pytest.approx(area - values[shift.strengths.index(0)])
        worst = described[shift.name]["worst"]["gmean"]
        assert worst["value"] == min(values)
        assert worst["label"] == shift.labels[int(np.argmin(values))]
        assert described[shift.name]["worst"]["ece"]["value"] == max(
            step["metrics"]["ece"]["value"] for step in described[shift.name]["strengths"]
        )
    stains = np.mean([described[name]["mean"]["auroc"]["value"] for name in ("stain_crc", "stain_cmu1")])
    expected = (stains + described["brightness"]["mean"]["auroc"]["value"]) / 2
    assert one.facts["mean"]["auroc"]["value"] == pytest.approx(expected)  # sources together count as one kind


def test_a_change_is_paired() -> None:
    """Patients are drawn together at all strengths: where nothing changes, the change has no spread."""
    one = measured()
    for shift in one.facts["shifts"]:
        at_zero = next(step for step in shift["strengths"] if step["strength"] == 0)
        assert at_zero["changes"]["auroc"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        assert at_zero["metrics"]["accuracy"]["low"] < at_zero["metrics"]["accuracy"]["high"]


@pytest.mark.parametrize("strengths", [(0, 1, 2), (0, 0.5, 2), (-0.2, 0, 0.1)])
def test_a_constant_curve_is_its_own_mean(strengths: tuple[float, ...]) -> None:
    weights = curves.area_weights(strengths)
    assert weights.sum() == pytest.approx(1)
    assert weights @ np.array(strengths) == pytest.approx((strengths[0] + strengths[-1]) / 2)


def test_runs_are_compared_on_the_same_images() -> None:
    first, second = measured(0, "a"), measured(0, "b")
    for name, steps in tables(5).items():  # another model: other predictions of the same images
        for rows, other in zip(second.tables[name], steps, strict=True):
            rows[["prob_benign", "prob_malignant"]] = other[["prob_benign", "prob_malignant"]].to_numpy()
    gone = second.tables["stain_crc"][0]["image_id"][3]
    only = {id(t): t[t["image_id"] != gone].reset_index(drop=True) for steps in second.tables.values() for t in steps}
    for name in second.tables:
        second.tables[name] = [only[id(t)] for t in second.tables[name]]
    pair = study.compare(first, second, n_resamples=100, seed=0)
    assert (pair["n_images"], pair["resampled"], pair["left_out"], pair["refused"]) == (119, "patient", [], "")
    step = pair["shifts"][0]["strengths"][2]["metrics"]["accuracy"]
    rows = [one.tables[pair["shifts"][0]["name"]][2] for one in (first, second)]
    a, b = (r[r["image_id"] != gone] for r in rows)
    accuracies = [float(((t["prob_malignant"] > 0.5) == (t["label"] == "malignant")).mean()) for t in (a, b)]
    assert step["value"] == pytest.approx(accuracies[1] - accuracies[0])
    assert step["low"] <= step["value"] <= step["high"]
    text = table.text({"runs": [], "comparisons": [pair]})
    assert text.startswith("== b − a\n119 images that both tested")


def test_other_pixels_or_shifts_are_not_compared() -> None:
    first, second = measured(0, "a"), measured(0, "b")
    for steps in second.tables.values():
        for rows in steps:
            rows["pixel_hash"] = "11"
    assert study.compare(first, second, n_resamples=0, seed=0)["refused"] == "the runs share no test image"
    other = shifts.catalogue(microns=False, image_size=32)["defocus"]
    second.shifts[:] = [other]
    assert "no shift was measured in the same way" in study.compare(first, second, n_resamples=0, seed=0)["refused"]


def test_runs_of_other_classes_are_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metas = {"a": {"classes": ["x", "y"]}, "b": {"classes": ["x", "z"]}}
    for name in metas:
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text("{}")
    monkeypatch.setattr(study.checkpoint, "find", lambda path: path)
    monkeypatch.setattr(study.checkpoint, "read_meta", lambda path: metas[path.name])
    with pytest.raises(RunError, match=r"a has the classes x, y, .*b x, z: only runs of the same classes"):
        study.check([tmp_path / "a", tmp_path / "b"])


def test_a_class_of_one_patient_has_no_interval() -> None:
    one = tables()
    for steps in one.values():
        for rows in {id(t): t for t in steps}.values():
            rows["patient_id"] = np.where(rows["label"] == "benign", "p0", rows["patient_id"])
    _, unit, n_units = summary_blocks.resampled_units(one["brightness"][0])
    statistic, members, *_ = curves.curve_statistic(one, SHIFTS, CLASSES, "malignant")
    estimates = curves.estimate(statistic, members, unit, n_units, n_resamples=50, seed=0)
    assert estimates[curves.MEAN, "brightness", "auroc"]["low"] is None
    assert estimates[curves.MEAN, "brightness", "accuracy"]["low"] is not None
