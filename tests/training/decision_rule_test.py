"""The decision rule of several labels: confusion counts per patient, slide or source image."""

import types

import numpy as np

from data_pipelines.records import Record, Records
from histojax.evaluation import calibration
from histojax.training.decision_rule import fit_decision_rule
from histojax.training.evaluate import EvalOutput

CLASSES = ("tumor", "stroma")
LABELS = np.array([[1, 0], [1, 1], [0, 1], [0, 0], [1, 1], [0, 1]], np.float32)
PROBABILITIES = np.array([[0.9, 0.2], [0.8, 0.7], [0.7, 0.9], [0.1, 0.1], [0.2, 0.8], [0.3, 0.9]], np.float32)


def fit(temperature: str = "images", **ids: list[str]):
    """The decision rule of six validation images with these patient_id, slide_id or source_id."""
    columns = [dict(zip(ids, values, strict=True)) for values in zip(*ids.values(), strict=True)] or [{}] * 6
    blank = dict.fromkeys(("label", "subtype", "patient_id", "case_id", "magnification", "pixel_hash"), "")
    records = Records(Record(**blank | {"image_id": str(i)} | row) for i, row in enumerate(columns))
    dataset = types.SimpleNamespace(labels=LABELS, records=records, classes=CLASSES, multilabel=True)
    return fit_decision_rule(EvalOutput(PROBABILITIES, {}), dataset, np.arange(6), "fixed", temperature)


def test_counts_per_source_add_up_to_the_confusion() -> None:
    rule = fit(source_id=["a", "b", "a", "b", "c", "a"])
    assert rule["confusion"]["tumor"] == [2, 1, 1, 2]
    # Rows for a (images 0, 2, 5), b (1, 3) and c (4): tn, fp, fn, tp.
    assert rule["confusion_by_unit"]["tumor"] == [[1, 1, 0, 1], [1, 0, 0, 1], [0, 0, 1, 0]]
    for name in CLASSES:
        assert np.sum(rule["confusion_by_unit"][name], axis=0).tolist() == rule["confusion"][name]


def test_a_patient_comes_before_a_source() -> None:
    rule = fit(patient_id=["p", "p", "p", "q", "q", "q"], source_id=list("abcdef"))
    assert len(rule["confusion_by_unit"]["stroma"]) == 2


def test_images_that_share_no_unit_have_no_rows() -> None:
    rule = fit()
    assert rule["confusion_by_unit"] is None
    assert rule["confusion"]["stroma"] == [2, 0, 0, 4]


def test_a_temperature_may_count_patients_the_same() -> None:
    patients = ["p", "q", "q", "q", "q", "q"]  # tumor: right in the only image of p, wrong in one of q
    images, same = (fit(temperature=one, patient_id=patients)["temperatures"] for one in ("images", "patients"))
    weights = np.array([1, 0.2, 0.2, 0.2, 0.2, 0.2])
    for i, temperature in enumerate(same):
        both = np.stack([1 - PROBABILITIES[:, i], PROBABILITIES[:, i]], 1)
        assert temperature == calibration.fit_temperature(LABELS[:, i].astype(int), both, weights)
    assert same[0] != images[0]
