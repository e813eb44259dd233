"""`histojax protocols`: several protocols, folds that survive a kill, and metrics counted by hand."""

import csv
import json
import logging
import math
import pathlib
import signal
import statistics
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from data_pipelines.errors import DataError
from data_pipelines.official_folds import read_folds
from data_pipelines.splits import SIDES
from data_pipelines.synthetic.generator import SyntheticSpec, generate
from histojax.core.errors import RunError
from histojax.evaluation import predictions
from histojax.studies import protocols, transfer
from histojax.studies.protocols_table import table
from tests.helpers import tiny_config
from tests.helpers.warm_start import run_until

CONFIG = "tests/helpers/tiny_config.py"
HISTOJAX = [sys.executable, "-m", "histojax", "protocols", "--config", CONFIG]
CASES = (2, 2, 2, 2, 3, 2, 2, 2)
# Fields that make a fold a matter of seconds.
SMALL = {"train.epochs": 1, "train.ema_decay": 0.0, "train.mixup": 0.0, "train.cutmix": 0.0, "model.options.depth": 1}


def _root(folder: pathlib.Path) -> pathlib.Path:
    spec = SyntheticSpec(cases_per_subtype=CASES, images_per_patient=2, magnifications=("40X", "100X"))
    return generate(folder / "images", spec)


def _files(workdir: pathlib.Path) -> dict[pathlib.Path, int]:
    return {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if "checkpoints" in path.parts}


def _hand_counts(rows: pd.DataFrame) -> dict[str, float]:
    """The four metrics by their definitions, image by image."""
    correct, total, patients = {"benign": 0, "malignant": 0}, {"benign": 0, "malignant": 0}, {}
    for _, row in rows.iterrows():
        predicted = "benign" if row["prob_benign"] >= row["prob_malignant"] else "malignant"
        total[row["label"]] += 1
        correct[row["label"]] += predicted == row["label"]
        patients.setdefault(row["patient_id"], []).append(predicted == row["label"])
    recalls = [correct[name] / total[name] for name in total]
    return {
        "accuracy": sum(correct.values()) / len(rows),
        "balanced_accuracy": sum(recalls) / 2,
        "gmean": math.sqrt(recalls[0] * recalls[1]),
        "patient_recognition_rate": statistics.mean(statistics.mean(hits) for hits in patients.values()),
    }


@pytest.mark.slow
def test_folds_survive_a_kill_and_stand_in_one_table(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    root, workdir = _root(tmp_path), tmp_path / "runs"
    fields = SMALL | {"data.root": str(root), "data.magnification": "100X", "optimizer.learning_rate": 0.1}
    words = [*HISTOJAX, f"--workdir={workdir}", "--folds=2", "--protocols=image_with_copies,case", "--transfer"]
    words += [f"--config.{key}={value}" for key, value in fields.items()]
    second = workdir / "image_with_copies-100X" / "fold_1" / "metrics.jsonl"
    code, error = run_until(words, lambda: second.is_file() and second.stat().st_size > 0, signal.SIGKILL)
    assert code == -signal.SIGKILL, error
    before = json.loads((workdir / "protocols.json").read_text())
    assert [(row["n_folds"], row["n_folds_wanted"]) for row in before["rows"]] == [(1, 2)]
    first = _files(workdir / "image_with_copies-100X" / "fold_0")
    assert first

    # Resume in this process; the command above was the smoke test of the program.
    config = tiny_config.get_config()
    config.update_from_flattened_dict(fields)
    planned = protocols.plans(config, ["image_with_copies", "case"], [], 2)
    with caplog.at_level(logging.INFO):
        text = protocols.measure(planned, workdir, with_transfer=True)
    assert text is not None
    assert "image_with_copies-100X/fold_0 (1 of 2): already finished" in caplog.text
    assert "image_with_copies-100X/fold_1 (2 of 2): already finished" not in caplog.text
    assert _files(workdir / "image_with_copies-100X" / "fold_0") == first, "a finished fold is not trained again"
    study = json.loads((workdir / "protocols.json").read_text())
    assert [row["protocol"] for row in study["rows"]] == ["image_with_copies", "case"]
    for row in study["rows"]:
        _check_row(workdir, row)
    assert study["rows"][1]["protocol_id"].startswith("case_deduplicated-v1-")
    _check_csv(workdir, study["rows"])
    _check_transfer(workdir, study)
    assert f"100X (case) {study['transfer']['cells'][0]['accuracy']['value']:.3f}" in " ".join(text.split())
    assert "split_hash" not in capsys.readouterr().out, "the runs' own tables are not repeated"

    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert protocols.measure(planned, workdir, with_transfer=True) == text
    assert caplog.text.count("already finished") == 4


def _check_row(workdir: pathlib.Path, row: dict[str, Any]) -> None:
    """The metrics of a row are those counted by hand from the predictions of its folds."""
    folds = []
    for name, split_hash in zip(row["runs"], row["split_hashes"], strict=True):
        table = predictions.read(workdir / name / "predictions")
        folds.append(table[table["split"] == "test"])
        results = json.loads((workdir / name / "results.json").read_text())
        assert (results["protocol_id"], results["split_hash"]) == (row["protocol_id"], split_hash)
        sides = pd.read_csv(workdir / name / "split.csv", na_filter=False)
        assert set(sides["protocol"]) == {row["protocol_id"]}
    assert not set(folds[0]["image_id"]) & set(folds[1]["image_id"])
    by_fold, pooled = [_hand_counts(rows) for rows in folds], _hand_counts(pd.concat(folds))
    assert set(row["figures"]) == set(pooled)
    for name, figure in row["figures"].items():
        values = [one[name] for one in by_fold]
        assert figure["folds"] == pytest.approx(values)
        assert figure["mean"] == pytest.approx(sum(values) / 2)
        assert figure["sd"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
        assert figure["pooled"]["value"] == pytest.approx(pooled[name])
        assert figure["pooled"]["low"] <= figure["pooled"]["value"] <= figure["pooled"]["high"]
    assert (row["n_images"], row["resampled"]) == (sum(map(len, folds)), "patient")
    assert row["published"] == [], "synthetic images are not compared with published results"
    if row["protocol"] == "case":
        assert not set(folds[0]["case_id"]) & set(folds[1]["case_id"])


def _check_csv(workdir: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    with open(workdir / "protocols.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["protocol_id"] for line in lines] == [row["protocol_id"] for row in rows]
    for line, row in zip(lines, rows, strict=True):
        assert float(line["gmean_mean"]) == pytest.approx(row["figures"]["gmean"]["mean"])
        assert float(line["accuracy_high"]) == pytest.approx(row["figures"]["accuracy"]["pooled"]["high"])


def _check_transfer(workdir: pathlib.Path, study: dict[str, Any]) -> None:
    """Each model predicts its own test cases only; at its own magnification the predictions are those of the run."""
    cells = {cell["tested_at"]: cell for cell in study["transfer"]["cells"]}
    assert set(cells) == {"40X", "100X", "200X", "400X"}
    assert (cells["200X"]["n_images"], cells["200X"]["accuracy"]) == (0, None)
    assert cells["100X"]["accuracy"] == study["rows"][1]["figures"]["accuracy"]["pooled"]
    pooled = []
    for name in study["rows"][1]["runs"]:
        found = predictions.read(workdir / name / "transfer")
        sides = pd.read_csv(workdir / name / "split.csv", na_filter=False)
        trained_on = set(sides[sides["split"].isin(SIDES[:2])]["case_id"])
        assert not trained_on & set(found["case_id"])
        assert set(found["case_id"]) == set(sides[sides["split"] == "test"]["case_id"])
        pooled.append(found[found["magnification"] == "40X"])
    assert cells["40X"]["n_images"] == sum(map(len, pooled)) > 0
    want = _hand_counts(pd.concat(pooled))
    for figure in ("accuracy", "gmean"):
        assert cells["40X"][figure]["value"] == pytest.approx(want[figure])


def test_folds_are_written_for_other_programs(tmp_path: pathlib.Path) -> None:
    root = _root(tmp_path)
    config = tiny_config.get_config()
    config.data.root = str(root)
    planned = protocols.plans(config, ["patient_deduplicated"], ["40X", "100X"], 3)
    paths = protocols.write_folds(planned, tmp_path / "folds")
    assert paths == [tmp_path / "folds" / f"dsfold{n}.txt" for n in (1, 2, 3)]
    folds = [read_folds(tmp_path / "folds", n) for n in (1, 2, 3)]
    images = {path.stem for path in root.rglob("*.png")}
    assert all(set(sides) == images for sides in folds)
    tested = [name for sides in folds for name, side in sides.items() if side == "test"]
    assert sorted(tested) == sorted(images)
    with pytest.raises(RunError, match="--write_folds writes one protocol"):
        protocols.write_folds(protocols.plans(config, ["image", "case"], [], 3), tmp_path / "folds")


def test_the_plan_has_every_fold_and_each_in_its_own_folder() -> None:
    config = tiny_config.get_config()
    names = ["image_deduplicated", "case", "eva", "case"]
    found = protocols.plans(config, names, ["40X", "200X"], 3)
    assert [(plan.name, plan.kind, plan.config.data.magnification, len(plan.runs)) for plan in found] == [
        ("image_deduplicated", "image", "40X", 3),
        ("image_deduplicated", "image", "200X", 3),
        ("case", "case", "40X", 3),
        ("case", "case", "200X", 3),
        ("eva", "listed", "40X", 1),
    ]
    folders = [name for plan in found for name in plan.runs]
    assert len(set(folders)) == len(folders) == 13
    one = found[3].runs["case-200X/fold_2"].data
    assert (one.split.protocol, one.split.kfolds, one.split.fold, one.magnification) == ("case", 3, 2, "200X")
    assert (found[4].config.data.task, found[4].config.data.split.kfolds) == ("subtype", 0)
    assert config.data.split.kfolds == 0, "the given config is not changed"
    config.data.split.folds_dir = "folds"
    (official,) = protocols.plans(config, ["folds_with_copies"], [], 3)
    assert [(run.data.split.fold, run.data.split.kfolds) for run in official.runs.values()] == [
        (fold, 0) for fold in (1, 2, 3, 4, 5)
    ]
    (hold_out,) = protocols.plans(config, ["patient"], [], 0)
    assert [(run.data.split.kfolds, run.data.split.fold) for run in hold_out.runs.values()] == [(0, 0)]


def _table(image_id: list[str], patient: list[str], correct: list[bool]) -> pd.DataFrame:
    p = np.where(correct, 0.2, 0.9)  # probability of malignant for benign images
    return predictions.make_table(
        image_id,
        ["benign"] * len(p),
        np.stack([1 - p, p], 1),
        ["benign", "malignant"],
        split="test",
        patient_id=patient,
    )


def test_an_image_that_two_folds_test_is_two_rows_of_one_patient() -> None:
    one, other = _table(["a", "b"], ["p", "q"], [True, True]), _table(["b", "c"], ["q", "r"], [False, True])
    pooled = predictions.pool_folds([one, other])
    assert sorted(pooled["image_id"]) == ["fold 0: a", "fold 0: b", "fold 1: b", "fold 1: c"]
    assert pooled["patient_id"].tolist() == ["p", "q", "q", "r"]
    apart = predictions.pool_folds([one.iloc[:1], other])
    assert apart["image_id"].tolist() == ["a", "b", "c"]
    elsewhere = other.assign(split="val")
    assert predictions.pool_folds([one, elsewhere])["image_id"].tolist() == ["a", "b"]


def test_the_tables_show_what_is_undefined_unfinished_and_published() -> None:
    figure = {"mean": 0.5, "sd": 0.25, "folds": [0.25, 0.75], "pooled": {"value": 0.5, "low": 0.4, "high": 0.625}}
    reported = {"model": "M", "source": "S", "protocol": "unstated", "metric": "accuracy", "value": 0.9, "sd": 0.01}
    row = {"protocol": "image", "protocol_id": "image_deduplicated-v1-x", "magnification": "40X", "model": "vit"}
    row |= {"pretrained": "none", "data": "images", "n_folds": 2, "n_folds_wanted": 5, "n_images": 40, "n_patients": 7}
    row |= {"resampled": "patient", "majority_baseline": {"accuracy": 0.7}, "published": [reported], "warnings": ["w"]}
    undefined = {"mean": 0.5, "sd": None, "folds": [0.5, None], "pooled": {"value": None, "low": None, "high": None}}
    row["figures"] = {"accuracy": figure, "balanced_accuracy": undefined, "gmean": undefined}
    lines = table([row]).splitlines()
    line = next(line for line in lines if line.startswith("image "))
    assert line.split("  ")[0] == "image"
    for words in ("2 of 5", "40/7", "0.500 ± 0.250", "[0.400, 0.625]", "0.500 (1 undefined)", "0.900 ± 0.010 [a]"):
        assert words in line
    assert "[a] M: accuracy, unstated; S" in lines
    assert "warning: w (image 40X)" in lines
    cells = [
        {"protocol": "case", "trained_at": "40X", "tested_at": "40X", "n_images": 4, "n_patients": 2}
        | {"accuracy": figure["pooled"], "gmean": undefined["pooled"]},
        {"protocol": "case", "trained_at": "40X", "tested_at": "100X", "n_images": 0, "n_patients": 0}
        | {"accuracy": None, "gmean": None},
    ]
    shown = " ".join(transfer.table({"trained_at": ["40X"], "tested_at": ["40X", "100X"], "cells": cells}).split())
    assert "40X (case) 0.500 [0.400, 0.625] no image" in shown
    assert "40X (case) nan no image" in shown
    assert "40X to 40X 4/2" in shown


def test_bad_plans_are_refused() -> None:
    config = tiny_config.get_config()
    with pytest.raises(DataError, match="protocol='images' is not one of"):
        protocols.plans(config, ["images"], [], 2)
    with pytest.raises(RunError, match="--folds=1: give 2 or more"):
        protocols.plans(config, ["image"], [], 1)
    with pytest.raises(DataError, match="folds_dir is empty"):
        protocols.plans(config, ["folds"], [], 2)
    with pytest.raises(RunError, match="one class per image"):
        protocols.plans(tiny_config.get_config("ldcsf"), ["image"], [], 2)
    with pytest.raises(RunError, match="--transfer needs BreakHis and a case-disjoint protocol"):
        transfer.matrix([], pathlib.Path())
