"""The verdict of a report: its sentence, its colour and its four figures."""

import pytest

from histojax.evaluation import predictions
from histojax.evaluation.report import report_json, sources
from histojax.evaluation.report.verdict import verdict
from tests.helpers.prediction_tables import class_table, labels_table, with_validation


@pytest.fixture
def source(tmp_path):
    predictions.write(with_validation(), tmp_path / "t")
    return report_json.describe([sources.read(tmp_path / "t.csv")], report_json.ReportSpec(resamples=20))["sources"][0]


def with_accuracy(source, low, high, baseline=0.6):
    block = source["splits"]["test"]
    block["image"]["accuracy"] = {"value": 0.7, "low": low, "high": high}
    block["majority_baseline"] |= {"class": "malignant", "accuracy": baseline}
    return verdict(source)


@pytest.mark.parametrize(
    ("low", "high", "tone", "sentence"),
    [
        (0.65, 0.75, "clean", "Better than always answering “malignant”, which is right for 60.0 % of the images."),
        (0.55, 0.75, "open", "Not clearly better than always answering “malignant”, which is right for 60.0 %"),
        (0.4, 0.5, "leak", "Worse than always answering “malignant”"),
        (None, None, "open", "Accuracy above the 60.0 % of always answering “malignant”, but without an interval."),
    ],
)
def test_accuracy_beside_a_constant_answer(source, low, high, tone, sentence):
    found = with_accuracy(source, low, high)
    assert found["tone"] == tone
    assert found["sentences"][0].startswith(sentence)
    assert [figure["key"] for figure in found["figures"]] == [
        "accuracy", "balanced_accuracy", "auroc", "patient recognition_rate",
    ]  # fmt: skip
    assert found["figures"][0]["note"] == "always malignant: 0.600"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda s: s["facts"].update(synthetic=True),
            "The images are synthetic: the results say nothing about tissue.",
        ),
        (lambda s: s["sides"]["shared"].update(patient_id=2, case_id=1), "Optimistic: 2 patients and 1 cases are on"),
        (lambda s: s.update(audit={"leaks": ["one"]}), "Optimistic: the audit found leaks."),
        (lambda s: s["splits"]["test"].update(n_patients=3), "Rough: the test has only 3 patients."),
    ],
)
def test_a_good_figure_with_a_reservation_is_not_green(source, change, sentence):
    assert with_accuracy(source, 0.65, 0.75)["sentences"][1:] == []
    change(source)
    found = with_accuracy(source, 0.65, 0.75)
    assert found["tone"] == "open"
    assert found["sentences"][1].startswith(sentence)


def test_labels_are_named_by_their_verdicts(tmp_path):
    predictions.write(labels_table(), tmp_path / "t")
    source = report_json.describe([sources.read(tmp_path / "t.csv")], report_json.ReportSpec(resamples=20))["sources"][
        0
    ]
    for name, (low, high) in {"tumor": (0.7, 0.8), "stroma": (0.9, 0.95), "fat": (0.1, 0.2)}.items():
        label = source["splits"]["test"]["labels"][name]
        label["accuracy"], label["baseline"] = {"value": low, "low": low, "high": high}, {"accuracy": 0.75}
    found = verdict(source)
    assert found["tone"] == "leak"
    assert found["sentences"] == [
        "Better than one answer for all images: stroma.",
        "Not clearly better than one answer for all images: tumor.",
        "Worse than one answer for all images: fat.",
    ]
    assert found["figures"][0]["key"] == "mean_average_precision"


def test_without_patients_the_fourth_figure_is_gmean(tmp_path):
    predictions.write(class_table().assign(patient_id=""), tmp_path / "t")
    source = report_json.describe([sources.read(tmp_path / "t.csv")], report_json.ReportSpec(resamples=0))["sources"][0]
    assert verdict(source)["figures"][3]["key"] == "gmean"
