"""What a report says of answers with a reservation: selective accuracy, and the coverage of prediction sets."""

import re

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk

from histojax.evaluation import calibration, conformal, predictions, results
from histojax.evaluation.report import plots, report_html, report_json, sources
from tests.helpers.prediction_tables import class_table, labels_table, with_validation

SPEC = report_json.ReportSpec(resamples=20, seed=1)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """Plots take seconds, and the tests of the page draw them."""
    for name in ("curves_svgs", "reliability_svgs", "training_svgs"):
        monkeypatch.setattr(plots, name, lambda _: [])


def described(table, tmp_path):
    predictions.write(table, tmp_path / "predictions")
    found = report_json.describe([sources.read(tmp_path / "predictions.parquet")], SPEC)
    page = report_html.render(found, [({}, "")], "1.0")
    return found["sources"][0], " ".join(re.sub(r"<[^>]*>", " ", page).split())


def test_selective_accuracy_and_sets_of_classes(tmp_path):
    table = with_validation(3)
    table = table[(table["patient_id"] != "p00") | (table["image_id"] == "i0000")]  # one image, others ten
    source, page = described(table, tmp_path)
    (entry,) = source["selective"]
    accuracy = source["splits"]["test"]["image"]["accuracy"]
    assert entry["points"][-1]["accuracy"]["value"] == accuracy["value"]
    val, test = (table[table["split"] == side] for side in ("val", "test"))
    rule = conformal.fit(val, 0.9)
    sets = source["prediction_sets"]
    assert (sets["n_units"], sets["least"]) == (12, rule.described())
    true, p = results.arrays(test, source["classes"])
    held = rule.held(p)[""]
    covered = pd.Series(held[np.arange(len(true)), true]).groupby(test["patient_id"].to_numpy()).mean()
    (images,) = sets["entries"]
    assert images["coverage"]["value"] == pytest.approx(covered.mean())
    assert [images[key] for key in ("one", "several", "none")] == pytest.approx(
        [(held.sum(1) == 1).mean(), (held.sum(1) > 1).mean(), (held.sum(1) == 0).mean()]
    )
    assert "fitted on validation images of 12 patients, as histojax predict --sets 0.9 does" in page
    assert f"images {images['coverage']['value']:.3f} [" in page
    assert f"50 % {entry['points'][9]['accuracy']['value']:.3f} [" in page
    assert f"Area {entry['area']['value']:.3f} [" in page


def test_each_label_has_a_curve_and_sets(tmp_path):
    table = labels_table(400)
    table["patient_id"] = [f"{side}{i % 40}" for i, side in enumerate(table["split"])]
    source, page = described(table, tmp_path)
    assert [entry["of"] for entry in source["selective"]] == ["tumor", "stroma", "fat"]
    test = table[table["split"] == "test"]
    for entry, sets in zip(source["selective"], source["prediction_sets"]["entries"], strict=True):
        carried = test[f"label_{entry['of']}"] == 1
        expected = sk.accuracy_score(carried, test[f"prob_{entry['of']}"] >= 0.5)
        assert entry["points"][-1]["accuracy"]["value"] == pytest.approx(expected)
        assert f"{entry['of']} {sets['coverage']['value']:.3f} [" in page


def test_sets_that_cannot_be_given(tmp_path):
    val = class_table(n=40, n_patients=8, split="val", seed=1)
    val[["image_id", "patient_id"]] = "v" + val[["image_id", "patient_id"]]
    source, page = described(pd.concat([class_table(), val]), tmp_path)
    assert "at least 9 patients, and there are 8" in source["prediction_sets"]["refused"]
    assert f"None: {source['prediction_sets']['refused']}." in page
    source, page = described(class_table(), tmp_path)
    assert source["prediction_sets"] is None
    assert "Sets that should hold" not in page


def test_the_bins_are_listed(tmp_path):
    table = with_validation(3)
    source, page = described(table, tmp_path)
    state = source["calibration"][0]["before"]
    test = table[table["split"] == "test"]
    true, p = results.arrays(test, source["classes"])
    assert sum(one["n_images"] for one in state["adaptive_bins"]) == len(true)
    eces = [part["ece"] for part in state["classwise"]]
    assert np.mean(eces) == pytest.approx(state["scores"]["ece_classwise"]["value"])
    for part in state["classwise"]:
        assert f"{part['class']}, equal width: ECE {part['ece']:.3f}" in page
    first = state["adaptive_bins"][0]
    ends = calibration.equal_mass_edges(p.max(1))
    assert (
        f"0.000 – {ends[1]:.3f} {first['n_images']} {first['mean_probability']:.3f} {first['share']['value']:.3f}"
        in page
    )


def test_a_run_may_fit_temperatures_by_patient(tmp_path):
    table = with_validation(3)
    few = table[(table["split"] == "test") | (table["patient_id"] != "vp00") | (table["image_id"] == "vi0000")]
    predictions.write(few, tmp_path / "predictions")
    source = sources.read(tmp_path / "predictions.parquet")
    found = {}
    for counted in ("images", "patients"):
        source.config.clear()
        source.config.update({"train": {"temperature": counted}})
        (entry,) = report_json.describe([source], SPEC)["sources"][0]["calibration"]
        assert entry["temperature_weights"] == counted
        found[counted] = entry["temperature"]
    val = few[few["split"] == "val"]
    weights = (1 / val.groupby("patient_id")["image_id"].transform("count")).to_numpy()
    assert found["patients"] == calibration.fit_temperature(*results.arrays(val, source.classes), weights)
    assert found["patients"] != found["images"]
