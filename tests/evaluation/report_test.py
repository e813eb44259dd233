import csv
import io
import json

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk

from histojax.core.errors import RunError
from histojax.evaluation import multilabel, predictions, results
from histojax.evaluation.report import inputs, parts, report
from tests.evaluation.results_test import random_df

SPEC = report.Spec(resamples=40, seed=1)


def with_validation(k=2):
    """120 test images of ten (two classes) or twelve patients, 60 validation images of others; a case is a class's."""
    n_patients = {2: 10, 3: 12, 4: 12}[k]
    test, val = random_df(k=k, n_patients=n_patients), random_df(k=k, n_patients=n_patients, n=60, seed=7, split="val")
    for table in (test, val):
        table["case_id"] = [f"c{int(patient[1:]) % (2 * k)}" for patient in table["patient_id"]]
    for name in ("image_id", "patient_id", "case_id"):
        val[name] = "v" + val[name]
    return predictions.normalise(pd.concat([test, val]))


def labels_table(n=160, seed=0):
    rng = np.random.default_rng(seed)
    there = rng.random((n, 3)) < [0.5, 0.3, 0.1]
    p = 1 / (1 + np.exp(-(rng.normal(size=(n, 3)) + 2 * there - 1)))
    return predictions.make_table(
        [f"t{i:03d}" for i in range(n)], there.astype(int), p, ["tumor", "stroma", "fat"],
        split=["val" if i % 4 == 0 else "test" for i in range(n)],
        patient_id=[f"{'v' if i % 4 == 0 else 'p'}{i % 16}" for i in range(n)],
    )  # fmt: skip


def described(table, tmp_path, spec=SPEC, **options):
    predictions.write(table, tmp_path / "predictions")
    source = inputs.read(tmp_path / "predictions.csv", **options)
    found = report.describe([source], spec)
    json.dumps(found, allow_nan=False)
    return found["sources"][0]


@pytest.mark.parametrize("k", [2, 3])
def test_figures_are_those_of_the_summary(k, tmp_path):
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


def test_patients_are_judged_by_their_mean_probabilities(tmp_path):
    table = with_validation()
    # One patient has images of both classes: no answer is right for it.
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
    there, p = (val["label"] == "malignant").to_numpy()[:, None], val[["prob_malignant"]].to_numpy()
    for rule in ("youden", "f1"):
        found = described(table, tmp_path, rule=rule)
        cut = multilabel.choose_thresholds(there, p, rule)[0]
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
    assert "No validation rows" in alone["notes"][-1]


def test_thresholds_are_not_out_of_fold_on_validation_images(tmp_path):
    table = with_validation()
    note = "The thresholds were chosen on split 'val' itself"
    spec = report.Spec(split="val", resamples=0)
    assert any(note in text for text in described(table, tmp_path, spec)["notes"])
    assert not any(note in text for text in described(table, tmp_path, spec, thresholds={"malignant": 0.5})["notes"])


@pytest.mark.parametrize("content", ['{"accuracy": 1, "splits": [1], "protocol": 1}', '{"splits": {}, "data": "here"}'])
def test_another_programs_folder_is_a_table(content, tmp_path):
    predictions.write(with_validation(), tmp_path / "predictions")
    (tmp_path / "results.json").write_text(content)
    (tmp_path / "config.json").write_text("no JSON at all")
    source = inputs.read(tmp_path)
    assert not source.is_run
    assert report.describe([source], SPEC)["sources"][0]["facts"]["protocol"] is None
    (tmp_path / "results.json").write_text('{"protocol": "p", "splits": {}}')
    with pytest.raises(RunError, match=r"config\.json: damaged"):
        inputs.read(tmp_path)


def test_several_labels(tmp_path):
    table = labels_table()
    found = described(table, tmp_path)
    rows = table[table["split"] == "test"]
    assert list(found["levels"]) == ["image"]
    assert [entry["of"] for entry in found["decisions"]] == ["tumor", "stroma", "fat"]
    # The figures of the summary are those at the chosen thresholds.
    for entry in found["decisions"]:
        assert entry["points"][1]["f1"] == found["splits"]["test"]["labels"][entry["of"]]["f1"]
    there = rows[[f"label_{name}" for name in found["classes"]]].to_numpy()
    assert found["coexistence"]["pairs"]["true"] == (there.T @ there).tolist()
    assert sum(row["true"] for row in found["coexistence"]["sets"]) == len(rows)
    said = rows[[f"prob_{name}" for name in found["classes"]]].to_numpy() >= list(found["thresholds"].values())
    assert sum(row["both"] for row in found["coexistence"]["sets"]) == (said == there).all(1).sum()
    assert found["worst"]["n_errors"] == (said != there).any(1).sum()
    assert found["patients"]["rows"][0]["share_right"] == pytest.approx(
        pd.Series((said == there).mean(1)).groupby(rows["patient_id"].to_numpy()).mean().min()
    )


def test_worst_errors_and_patients(tmp_path):
    table = with_validation()
    table.loc[table["image_id"] == "i0000", ["prob_benign", "prob_malignant"]] = [0.001, 0.999]
    table.loc[table["image_id"] == "i0001", ["prob_benign", "prob_malignant"]] = [0.99, 0.01]
    found = described(table, tmp_path, report.Spec(resamples=0, worst=3))
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
    some = described(rows.iloc[:40], tmp_path, report.Spec(resamples=0))
    assert all(row["few"] for row in some["patients"]["rows"])
    assert some["patients"]["n_few"] == 10


def test_sides_tell_who_stands_on_several(tmp_path):
    table = with_validation()
    assert described(table, tmp_path)["sides"]["shared"] == {"patient_id": 0, "case_id": 0}
    table.loc[table["patient_id"] == "vp03", "patient_id"] = "p03"
    found = described(table, tmp_path)["sides"]
    assert found["shared"] == {"patient_id": 1, "case_id": 0}
    assert found["sides"]["val"] == {
        "n_images": 60, "patient_id": 10, "case_id": 4, "labels": {"benign": 30, "malignant": 30},
    }  # fmt: skip


def test_large_tables_get_fewer_resamples_and_are_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_RANKED", 60_000)
    found = described(with_validation(), tmp_path, report.Spec())
    assert found["bootstrap"]["n_resamples"] == 333
    assert found["notes"][0].startswith("333 resamples instead of 2000")
    assert described(with_validation(), tmp_path, report.Spec(resamples=2000))["bootstrap"]["n_resamples"] == 2000


def test_every_figure_stands_in_the_long_table(tmp_path):
    for name in "ab":
        predictions.write(with_validation(), tmp_path / name)
    sources = [inputs.read(tmp_path / f"{name}.csv") for name in "ab"]
    found = report.describe(sources, SPEC)
    rows = list(csv.DictReader(io.StringIO(report.metrics_csv(found))))
    assert tuple(rows[0]) == report.COLUMNS
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
    assert parts.table_hash(table) == parts.table_hash(table.sample(frac=1, random_state=0))
    other = table.copy()
    other.loc[3, ["prob_benign", "prob_malignant"]] = [0.5, 0.5]
    assert parts.table_hash(table) != parts.table_hash(other)


@pytest.mark.parametrize(
    ("options", "spec", "message"),
    [
        ({"thresholds": {"benign": 0.4}}, SPEC, "--threshold of benign: .*thresholds are those of malignant"),
        ({"positive": "tumor"}, SPEC, "--positive=tumor: the classes of .* are benign, malignant"),
        ({}, report.Spec(split="train"), "no split 'train'; its table has test, val"),
    ],
)
def test_mistakes_are_told(options, spec, message, tmp_path):
    with pytest.raises(RunError, match=message):
        described(with_validation(), tmp_path, spec, **options)


def test_which_split_is_meant(tmp_path):
    table = random_df(split=["a", "b"] * 60)
    with pytest.raises(RunError, match="say with --split which one"):
        described(table, tmp_path)
    assert described(table, tmp_path, report.Spec(split="b", resamples=0))["split"] == "b"
    assert described(random_df(split="predicted"), tmp_path, report.Spec(resamples=0))["split"] == "predicted"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"image_id,label\nx,y\n", "column 'patient_id', 'magnification', 'split' missing"),
        ("a.csv", b"", "no table of predictions"),
        ("a.parquet", b"PAR1 nothing", "no table of predictions"),
        ("b.csv", None, "no such work directory or table"),
    ],
)
def test_what_is_no_table_is_told(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=message):
        inputs.read(tmp_path / name)
