"""`histojax crossval`: each image out of fold once, thresholds chosen on all of them for the final model."""

import json
import logging
import pathlib

import numpy as np
import pandas as pd
import pytest

from data_pipelines.errors import DataError
from data_pipelines.split_spec import SplitSpec
from data_pipelines.synthetic.generator import SyntheticSpec, generate
from histojax.core.errors import RunError
from histojax.evaluation import predictions, thresholds
from histojax.studies import crossval
from histojax.training import checkpoint
from tests.helpers import tiny_config

FOLDS = 2


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, dict, str]:
    folder = tmp_path_factory.mktemp("crossval")
    spec = SyntheticSpec(cases_per_subtype=(2, 2, 2, 2, 3, 2, 2, 2), images_per_patient=2, magnifications=("100X",))
    config = tiny_config.get_config("mini")
    config.data.root, config.train.epochs = str(generate(folder / "images", spec)), 2
    runs = crossval.plan(config, FOLDS)
    text = crossval.measure(runs, folder / "runs")
    assert text is not None
    return folder / "runs", runs, text


@pytest.mark.slow
def test_each_image_is_predicted_once_by_a_model_that_did_not_see_its_case(study) -> None:
    workdir, runs, _ = study
    assert list(runs) == ["fold_0", "fold_1", "final"]
    table = predictions.read(workdir / "out_of_fold")
    sides = {name: pd.read_csv(workdir / name / "split.csv", na_filter=False) for name in runs}
    used = sides["final"][sides["final"]["split"] == "train"]["image_id"]
    assert sorted(table["image_id"]) == sorted(used)
    assert not (sides["final"]["split"] == "val").any()
    for name in ("fold_0", "fold_1"):
        rows = sides[name]
        cases = {side: set(rows[rows["split"] == side]["case_id"]) for side in ("train", "val", "test")}
        assert not cases["train"] & cases["val"]
        assert cases["test"] == set(sides["final"][sides["final"]["split"] == "test"]["case_id"])
        own = predictions.read(workdir / name / "predictions")
        own = own[own["split"] == "val"].set_index("image_id")["prob_malignant"]
        assert len(own)
        found = table.set_index("image_id")["prob_malignant"].loc[own.index]
        np.testing.assert_array_equal(found, own)


def test_the_final_model_has_the_threshold_chosen_out_of_fold(study) -> None:
    workdir, _, text = study
    table = predictions.read(workdir / "out_of_fold")
    is_malignant = (table["label"] == "malignant").to_numpy()[:, None]
    (expected,) = thresholds.choose_thresholds(is_malignant, table[["prob_malignant"]].to_numpy(np.float32), "youden")
    meta = checkpoint.read_meta(checkpoint.find(workdir / "final"))
    assert meta["decision"] == {"class": "malignant", "threshold": pytest.approx(expected), "rule": "youden"}
    assert meta["temperatures"][0] > 0
    results = json.loads((workdir / "final" / "results.json").read_text())
    assert results["thresholds"] == {"malignant": pytest.approx(expected)}
    assert list(results["splits"]) == ["test"]
    summary = json.loads((workdir / "crossval.json").read_text())
    block = summary["splits"]["out_of_fold"]
    assert block["n_images"] == len(table)
    hits = (table["prob_malignant"] > 0.5) == (table["label"] == "malignant")
    assert block["image"]["accuracy"]["value"] == pytest.approx(hits.mean())
    assert summary["decision_rule"]["decision"]["threshold"] == pytest.approx(expected)
    assert f"out_of_fold: {len(table)} images" in text
    assert f"test: {results['splits']['test']['n_images']} images" in text


def test_study_runs_are_not_trained_again(study, caplog: pytest.LogCaptureFixture) -> None:
    workdir, runs, text = study
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("checkpoints/**/*")}
    with caplog.at_level(logging.INFO):
        assert crossval.measure(runs, workdir) == text
    assert caplog.text.count("already finished") == FOLDS + 1
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("checkpoints/**/*")} == before


def test_what_cannot_be_planned_is_refused() -> None:
    config = tiny_config.get_config("mini")
    with pytest.raises(RunError, match=r"--folds=1: give 2 or more"):
        crossval.plan(config, 1)
    config.train.early_stopping = 3
    with pytest.raises(RunError, match=r"train\.early_stopping=3: the final run has no validation images"):
        crossval.plan(config, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"val_folds": 1}, "val_folds=1 is not 0 or at least 2"),
        ({"val_folds": 3, "val_fold": 3}, r"val_fold=3 is not in 0 … 2"),
        ({"val_fold": 1}, "val_fold=1 needs val_folds"),
        (
            {"protocol": "listed", "test_patients": ("a",), "val_patients": ("b",), "val_folds": 2},
            "val_folds excludes a protocol that lists its validation patients",
        ),
    ],
)
def test_fields_of_validation_folds_are_checked(fields: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        SplitSpec(**fields)
