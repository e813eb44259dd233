"""Selective accuracy against a calculation by hand and by a loop over images."""

import numpy as np
import pytest

from histojax.evaluation import predictions, results, selective
from tests.helpers.prediction_tables import class_table


def rows_of(patients):
    p = np.full((len(patients), 2), 0.5)
    names = [f"i{i}" for i in range(len(patients))]
    return predictions.make_table(names, [0] * len(patients), p, ["x", "y"], split="test", patient_id=patients)


def test_by_hand():
    # Right, right, wrong, right, from the most confident down: accuracies 1, 1, 2/3, 3/4.
    found = selective.curve(
        rows_of(list("abab")), np.array([0.6, 0.9, 0.8, 0.7]), np.array([1, 1, 1, 0]), n_resamples=0
    )
    at = {point["fraction"]: point for point in found["points"]}
    assert at[0.5]["accuracy"]["value"] == 1
    assert at[0.75]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert at[1.0]["accuracy"]["value"] == 0.75
    assert [at[f]["confidence"] for f in (0.25, 0.3, 1.0)] == [0.9, 0.8, 0.6]
    assert found["area"]["value"] == pytest.approx((1 + 1 + 2 / 3 + 3 / 4) / 4)


def test_images_of_the_same_confidence_are_answered_together():
    found = selective.curve(
        rows_of(list("abcd")), np.array([0.9, 0.8, 0.8, 0.7]), np.array([0, 1, 0, 1]), n_resamples=0
    )
    assert found["area"]["value"] == pytest.approx((0 + 2 * 1 / 3 + 2 / 4) / 4)
    assert {point["fraction"]: point["accuracy"]["value"] for point in found["points"]}[0.5] == pytest.approx(1 / 3)


def test_intervals_are_over_patients():
    table = class_table(k=3, n=120, n_patients=12)
    true, p = results.arrays(table, predictions.class_names(table))
    confidence, correct = p.max(1), p.argmax(1) == true
    found = selective.curve(table, confidence, correct, n_resamples=300, seed=2)
    rng, areas = np.random.default_rng(2), []
    patients, unit = np.unique(table["patient_id"], return_inverse=True)
    for drawn in rng.integers(0, len(patients), (300, len(patients))):
        rows = np.concatenate([np.flatnonzero(unit == one) for one in drawn])
        rows = rows[np.argsort(-confidence[rows], kind="stable")]
        # Copies of an image have the same confidence, so they are answered together.
        ends = np.append(np.flatnonzero(np.diff(confidence[rows])), len(rows) - 1)
        accuracy = np.cumsum(correct[rows])[ends] / (ends + 1)
        areas.append((np.diff(ends, prepend=-1) * accuracy).sum() / len(rows))
    assert (found["area"]["low"], found["area"]["high"]) == pytest.approx(tuple(np.quantile(areas, [0.025, 0.975])))
    last = found["points"][-1]["accuracy"]
    summary = results.summarise(table, n_resamples=300, seed=2)["test"]["image"]["accuracy"]
    assert last == pytest.approx(summary)


def test_many_steps_are_joined(monkeypatch):
    rng = np.random.default_rng(0)
    table = class_table(k=2, n=400)
    confidence = rng.permutation(np.linspace(0.5, 1, 400))
    correct = rng.random(400) < confidence
    exact = selective.curve(table, confidence, correct, n_resamples=0)
    monkeypatch.setattr(selective, "MAX_STEPS", 100)
    joined = selective.curve(table, confidence, correct, n_resamples=0)
    assert joined["area"]["value"] != exact["area"]["value"]
    assert joined["area"]["value"] == pytest.approx(exact["area"]["value"], abs=5e-3)
    assert joined["points"] == exact["points"]  # every fraction ends one of the hundred steps
