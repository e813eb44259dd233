import csv
import dataclasses
import io
import json

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk

from histojax.core.errors import RunError
from histojax.core.split_hash import split_hash
from histojax.evaluation import predictions, results, thresholds
from histojax.evaluation.report import metrics_csv, report_json, section_provenance, sources
from tests.helpers.prediction_tables import (
    class_table,
    labels_table,
    with_faultless_validation,
    with_validation,
)

SPEC = report_json.ReportSpec(resamples=40, seed=1)


def described(table, tmp_path, spec=SPEC, **options):
    predictions.write(table, tmp_path / "predictions")
    source = sources.read(tmp_path / "predictions.csv", **options)
    found = report_json.describe([source], spec)
    json.dumps(found, allow_nan=False)
    return found["sources"][0]


@pytest.mark.parametrize("k", [2, 3])
def test_metrics_equal_those_of_the_summary(k, tmp_path):
    table = with_validation(k)
    found = described(table, tmp_path)
    positive = "malignant" if k == 2 else None
    assert found["splits"] == results.summarise(table, positive=positive, n_resamples=40, seed=1)
    assert (found["split"], found["positive"], found["kind"]) == ("test", positive, "classes")
    assert found["levels"]["image"]["figures"]["auroc"] == found["splits"]["test"]["image"]["auroc"]
    assert list(found["levels"]) == ["image", "patient", "case"]
    assert list(found["by"]) == ["magnification"]
    state = found["calibration"][0]["before"]["scores"]
    assert {key: state[key] for key in ("ece", "brier")} == {
        key: pytest.approx(found["splits"]["test"]["image"][key]) for key in ("ece", "brier")
    }


def test_patients_are_classified_by_their_mean_probabilities(tmp_path):
    table = with_validation()
    # One patient has images of both classes, so no prediction is correct for it.
    table.loc[table["patient_id"] == "p00", "label"] = ["benign", "malignant"] * 6
    found = described(table, tmp_path)
    rows = table[table["split"] == "test"]
    means = rows.groupby("patient_id")[["prob_malignant"]].mean()
    truth = rows.groupby("patient_id")["label"].agg(lambda x: "" if x.nunique() > 1 else x.iloc[0])
    means, truth = means[truth != ""]["prob_malignant"], truth[truth != ""] == "malignant"
    level = found["levels"]["patient"]
    assert level["n"] == 9
    assert level["figures"]["auroc"]["value"] == pytest.approx(sk.roc_auc_score(truth, means))
    assert level["figures"]["accuracy"]["value"] == pytest.approx(sk.accuracy_score(truth, means > 0.5))
    assert level["confusion_matrix"] == sk.confusion_matrix(truth, means > 0.5).tolist()
    assert level["figures"]["recognition_rate"] == found["splits"]["test"]["patient"]["recognition_rate"]
    assert any("1 of 10 patients have images of several classes" in note for note in found["notes"])


def test_thresholds_come_from_validation_images_or_are_given(tmp_path):
    table = with_validation()
    val = table[table["split"] == "val"]
    labels, p = (val["label"] == "malignant").to_numpy()[:, None], val[["prob_malignant"]].to_numpy()
    for rule in ("youden", "f1"):
        found = described(table, tmp_path, rule=rule)
        cut = thresholds.choose_thresholds(labels, p, rule)[0]
        assert found["thresholds"] == {"malignant": pytest.approx(cut)}
        assert "on 60 validation images" in found["threshold_origin"]
    half, locked = found["decisions"][0]["points"]
    rows = table[table["split"] == "test"]
    sick = rows["label"] == "malignant"
    assert half["f1"]["value"] == pytest.approx(sk.f1_score(sick, rows["prob_malignant"] >= 0.5))
    assert locked["f1"]["value"] == pytest.approx(sk.f1_score(sick, rows["prob_malignant"] >= cut))
    given = described(table, tmp_path, thresholds={"malignant": 0.25})
    assert (given["thresholds"], given["threshold_origin"]) == ({"malignant": 0.25}, "--threshold")
    alone = described(rows, tmp_path)
    assert alone["thresholds"] is None
    assert alone["calibration"][0]["after"] is None
    assert "no validation rows" in alone["notes"][-1]


def test_a_note_says_where_thresholds_fit_the_reported_split(tmp_path):
    table = with_validation()
    note = "The thresholds were chosen on split 'val' itself"
    spec = report_json.ReportSpec(split="val", resamples=0)
    assert any(note in text for text in described(table, tmp_path, spec)["notes"])
    assert not any(note in text for text in described(table, tmp_path, spec, thresholds={"malignant": 0.5})["notes"])


@pytest.mark.parametrize("content", ['{"accuracy": 1, "splits": [1], "protocol": 1}', '{"splits": {}, "data": "here"}'])
def test_a_folder_of_another_program_is_read_as_a_table(content, tmp_path):
    predictions.write(with_validation(), tmp_path / "predictions")
    (tmp_path / "results.json").write_text(content)
    (tmp_path / "config.json").write_text("no JSON at all")
    source = sources.read(tmp_path)
    assert not source.is_run
    assert report_json.describe([source], SPEC)["sources"][0]["facts"]["protocol"] is None
    (tmp_path / "results.json").write_text('{"protocol": "p", "splits": {}}')
    with pytest.raises(RunError, match=r"config\.json: damaged"):
        sources.read(tmp_path)


def test_several_labels(tmp_path):
    table = labels_table()
    found = described(table, tmp_path)
    rows = table[table["split"] == "test"]
    assert list(found["levels"]) == ["image"]
    assert [entry["of"] for entry in found["decisions"]] == ["tumor", "stroma", "fat"]
    # The figures of the summary are those at the chosen thresholds.
    for entry in found["decisions"]:
        assert entry["points"][1]["f1"] == found["splits"]["test"]["labels"][entry["of"]]["f1"]
    labels = rows[[f"label_{name}" for name in found["classes"]]].to_numpy()
    assert found["coexistence"]["pairs"]["true"] == (labels.T @ labels).tolist()
    assert sum(row["true"] for row in found["coexistence"]["sets"]) == len(rows)
    predicted = rows[[f"prob_{name}" for name in found["classes"]]].to_numpy() >= list(found["thresholds"].values())
    assert sum(row["both"] for row in found["coexistence"]["sets"]) == (predicted == labels).all(1).sum()
    assert found["worst"]["n_errors"] == (predicted != labels).any(1).sum()
    assert found["patients"]["rows"][0]["share_right"] == pytest.approx(
        pd.Series((predicted == labels).mean(1)).groupby(rows["patient_id"].to_numpy()).mean().min()
    )


def test_a_probability_on_the_threshold_is_an_answer_for_the_label(tmp_path):
    labels, p = np.array([[1, 0], [1, 0], [0, 1]]), np.array([[0.4, 0.1], [0.7, 0.6], [0.2, 0.6]])
    table = predictions.make_table(list("abc"), labels, p, ["tumor", "stroma"], split="test", patient_id=list("ppq"))
    spec = report_json.ReportSpec(resamples=0)
    found = described(table, tmp_path, spec, thresholds={"tumor": 0.4, "stroma": 0.6})
    assert [row["image_id"] for row in found["worst"]["rows"]] == ["b"]  # its stroma only
    assert found["coexistence"]["pairs"]["predicted"] == [[2, 1], [1, 2]]
    assert {row["id"]: row["share_right"] for row in found["patients"]["rows"]} == {"p": 0.75, "q": 1}


def test_worst_errors_and_patients(tmp_path):
    table = with_validation()
    table.loc[table["image_id"] == "i0000", ["prob_benign", "prob_malignant"]] = [0.001, 0.999]
    table.loc[table["image_id"] == "i0001", ["prob_benign", "prob_malignant"]] = [0.99, 0.01]
    found = described(table, tmp_path, report_json.ReportSpec(resamples=0, worst=3))
    assert [row["image_id"] for row in found["worst"]["rows"][:2]] == ["i0000", "i0001"]
    assert (found["worst"]["rows"][0]["truth"], found["worst"]["rows"][0]["said"]) == ("benign", "malignant")
    assert len(found["worst"]["rows"]) == 3
    rows = table[table["split"] == "test"]
    hit = (rows["prob_malignant"] > 0.5) == (rows["label"] == "malignant")
    share = hit.groupby(rows["patient_id"]).mean()
    listed = {row["id"]: row["share_right"] for row in found["patients"]["rows"]}
    assert listed == pytest.approx(share.to_dict())
    assert list(listed.values()) == sorted(listed.values())
    assert not any(row["few"] for row in found["patients"]["rows"])
    some = described(rows.iloc[:40], tmp_path, report_json.ReportSpec(resamples=0))
    assert all(row["few"] for row in some["patients"]["rows"])
    assert some["patients"]["n_few"] == 10


def test_patients_on_several_sides_are_counted(tmp_path):
    table = with_validation()
    assert described(table, tmp_path)["sides"]["shared"] == {"patient_id": 0, "case_id": 0}
    table.loc[table["patient_id"] == "vp03", "patient_id"] = "p03"
    found = described(table, tmp_path)["sides"]
    assert found["shared"] == {"patient_id": 1, "case_id": 0}
    assert found["sides"]["val"] == {
        "n_images": 60, "patient_id": 10, "case_id": 4, "labels": {"benign": 30, "malignant": 30},
    }  # fmt: skip


@pytest.mark.parametrize("make", [with_validation, labels_table])
def test_a_temperature_that_makes_the_ece_worse_is_named(make, tmp_path):
    table = make()
    usual = described(table, tmp_path)
    assert not any(entry["raises_ece"] for entry in usual["calibration"])
    assert not any("worse" in note for note in usual["notes"])
    found = described(with_faultless_validation(table), tmp_path)
    worse = [entry for entry in found["calibration"] if entry["raises_ece"]]
    notes = [note for note in found["notes"] if "makes the ECE of these images worse" in note]
    assert len(notes) == 1  # two classes share their temperature, and of the labels one is worse
    ece = [worse[0][state]["scores"]["ece"]["value"] for state in ("before", "after")]
    assert "{:.3f} as predicted, {:.3f} with it".format(*ece) in notes[0]


@pytest.mark.parametrize("group_by", ["", "case_id", "source_id"])
def test_a_split_file_is_compared_with_the_hash_of_the_results(group_by, tmp_path):
    predictions.write(with_validation(), tmp_path / "predictions")
    split = pd.DataFrame({"image_id": ["a", "b", "c"], "split": ["train", "test", ""], "label": ["x", "y", "x"]})
    digest = split_hash(group_by, [("c", ""), ("a", "train"), ("b", "test")])
    source = dataclasses.replace(
        sources.read(tmp_path / "predictions.csv"), results={"split_hash": digest}, split=split
    )
    assert section_provenance.damaged_split(source) == []
    changed = split.assign(split=["test", "test", ""])
    for rows in (split[:2], changed):
        notes = report_json.describe([dataclasses.replace(source, split=rows)], SPEC)["sources"][0]["notes"]
        assert f"split.csv is not the split of these results: its rows do not hash to {digest}" in notes[-1]
    assert section_provenance.damaged_split(dataclasses.replace(source, results={})) == []


def test_large_tables_get_fewer_resamples_and_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(report_json, "_MAX_RANKED", 60_000)
    found = described(with_validation(), tmp_path, report_json.ReportSpec())
    assert found["bootstrap"]["n_resamples"] == 333
    assert found["notes"][0].startswith("The bootstrap has 333 resamples instead of 2000")
    assert (
        described(with_validation(), tmp_path, report_json.ReportSpec(resamples=2000))["bootstrap"]["n_resamples"]
        == 2000
    )


def test_every_metric_is_in_the_long_table(tmp_path):
    for name in "ab":
        predictions.write(with_validation(), tmp_path / name)
    models = [sources.read(tmp_path / f"{name}.csv") for name in "ab"]
    found = report_json.describe(models, SPEC)
    rows = list(csv.DictReader(io.StringIO(metrics_csv.metrics_csv(found))))
    assert tuple(rows[0]) == metrics_csv.COLUMNS
    table = {(row["source"], row["split"], row["level"], row["metric"]): row for row in rows}
    assert len(table) == len(rows)
    block = found["sources"][0]["splits"]["val"]["image"]["gmean"]
    row = table["a", "val", "image", "gmean"]
    assert [float(row[key]) for key in ("value", "low", "high")] == [block[key] for key in ("value", "low", "high")]
    for key in (
        ("a", "test", "patient", "auroc"),
        ("b", "test", "case", "recognition_rate"),
        ("b", "test", "image", "recall[benign]"),
        ("a", "test", "image", "accuracy[magnification 40]"),
        ("b - a", "test", "image", "accuracy"),
    ):
        assert key in table, key
    assert any("temperature" in key[3] for key in table)
    assert any(key[3].startswith("f1[malignant >= ") for key in table)
    assert table["b - a", "test", "image", "auroc"]["value"] == "0.0"


def test_the_hash_of_a_table_is_of_its_content():
    table = with_validation()
    assert section_provenance.table_hash(table) == section_provenance.table_hash(table.sample(frac=1, random_state=0))
    other = table.copy()
    other.loc[3, ["prob_benign", "prob_malignant"]] = [0.5, 0.5]
    assert section_provenance.table_hash(table) != section_provenance.table_hash(other)


@pytest.mark.parametrize(
    ("options", "spec", "message"),
    [
        ({"thresholds": {"benign": 0.4}}, SPEC, "--threshold for benign: .*it has thresholds for malignant"),
        ({"positive": "tumor"}, SPEC, "--positive=tumor: the classes of .* are benign, malignant"),
        ({}, report_json.ReportSpec(split="train"), "no split 'train'; its table has test, val"),
    ],
)
def test_bad_options_are_refused(options, spec, message, tmp_path):
    with pytest.raises(RunError, match=message):
        described(with_validation(), tmp_path, spec, **options)


def test_the_reported_split(tmp_path):
    table = class_table(split=["a", "b"] * 60)
    with pytest.raises(RunError, match="choose one with --split"):
        described(table, tmp_path)
    assert described(table, tmp_path, report_json.ReportSpec(split="b", resamples=0))["split"] == "b"
    assert (
        described(class_table(split="predicted"), tmp_path, report_json.ReportSpec(resamples=0))["split"] == "predicted"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"image_id,label\nx,y\n", "column 'patient_id', 'magnification', 'split' missing"),
        ("a.csv", b"", "not a table of predictions"),
        ("a.parquet", b"PAR1 nothing", "not a table of predictions"),
        ("b.csv", None, "no such work directory or table"),
    ],
)
def test_a_file_that_is_not_a_table_is_refused(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=message):
        sources.read(tmp_path / name)
