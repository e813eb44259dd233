"""Metrics of one's own stand beside ours, with the same intervals over patients."""

import json
import math

import numpy as np
import pytest

from histojax.core.errors import RunError
from histojax.evaluation import own_metrics, results, terminal
from histojax.evaluation.own_metrics import Metric
from tests.helpers.prediction_tables import class_table, labels_table


def accuracy(truth, probabilities, groups):
    return (probabilities.argmax(1) == truth).mean()


def recognition_rate(truth, probabilities, groups):
    right = np.bincount(groups, probabilities.argmax(1) == truth) / np.bincount(groups)
    return right.mean()


def test_the_intervals_are_those_of_our_metrics():
    own = [Metric("share_right", accuracy), Metric("patients", recognition_rate)]
    table = class_table(k=3, n=90, n_patients=12)
    block = results.summarise(table, n_resamples=100, seed=5, own=own)["test"]
    ours = results.summarise(table, n_resamples=100, seed=5)["test"]
    # A patient drawn twice counts as two patients.
    for name, equal in (
        ("share_right", block["image"]["accuracy"]),
        ("patients", block["patient"]["recognition_rate"]),
    ):
        assert block["image"][name] == pytest.approx(equal), name
        assert equal["low"] < equal["high"]
    for name in ("share_right", "patients"):
        del block["image"][name]
    assert block == ours


def test_groups_are_patients_else_images():
    seen = []

    def groups_of(truth, probabilities, groups):
        seen.append((len(truth), np.bincount(groups)))
        return len(np.unique(groups))

    table = class_table(n=20, n_patients=5)
    block = results.summarise(table, n_resamples=4, own=[Metric("n", groups_of)])["test"]
    assert block["image"]["n"] == {"value": 5, "low": 5, "high": 5}  # one of each patient drawn
    assert all(n == 20 and (sizes == 4).all() for n, sizes in seen[1:5])
    results.summarise(table.assign(patient_id="", case_id=""), n_resamples=0, own=[Metric("n", groups_of)])
    assert (seen[-1][1] == 1).all()


def test_several_labels():
    def hamming(truth, probabilities, groups):
        assert truth.dtype == bool
        assert truth.shape == probabilities.shape
        return (truth != (probabilities >= 0.5)).mean()

    block = results.summarise(labels_table(), n_resamples=50, own=[Metric("share_wrong", hamming)])["test"]
    assert block["image"]["share_wrong"] == pytest.approx(block["image"]["hamming_loss"])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_undefined(value):
    splits = results.summarise(class_table(), n_resamples=20, own=[Metric("odd", lambda *_: value)])
    assert splits["test"]["image"]["odd"] == {"value": None, "low": None, "high": None}
    summary = json.loads(json.dumps({"splits": splits, "own_metrics": {"odd": "lab.odd"}}, allow_nan=False))
    assert ["odd", "nan"] in [line.split() for line in terminal.table(summary).splitlines()]
    assert terminal.headline(summary).splitlines()[-2].split() == ["odd", "nan"]


def test_resamples_on_which_it_is_undefined_are_left_out_and_counted():
    values = iter([0.5, math.nan, 0.25, 0.75, math.nan])
    block = results.summarise(class_table(), n_resamples=4, own=[Metric("some", lambda *_: next(values))])["test"]
    assert block["image"]["some"] == {"value": 0.5, "low": pytest.approx(0.2625), "high": 0.7375, "undefined": 0.5}


def test_our_names_are_taken(monkeypatch):
    monkeypatch.setattr(own_metrics.REGISTRY, "items", {})
    tables = (class_table(), class_table(k=3, n_patients=12), labels_table())
    blocks = [results.summarise(table, n_resamples=0)["test"] for table in tables]
    ours = {name for block in blocks for level in ("image", "patient", "case") for name in block.get(level, {})}
    assert len(ours) > 20
    for name in ours:
        with pytest.raises(ValueError, match=f"a metric named '{name}' is already registered"):
            own_metrics.register(Metric(name, accuracy))


def test_a_metric_that_fails_on_one_class_is_found_before_training(monkeypatch):
    def needs_both(truth, probabilities, groups):
        return sum(probabilities[truth == 1, 1]) / sum(truth == 1)

    def as_labels(truth, probabilities, groups):
        return float(truth.shape == probabilities.shape)

    monkeypatch.setattr(own_metrics.REGISTRY, "items", {})
    own_metrics.register(Metric("needs_both", needs_both))
    own_metrics.register(Metric("as_labels", as_labels))
    own_metrics.check(["as_labels"], 3, True)
    with pytest.raises(
        RunError, match=r"evaluation\.metrics: needs_both: .*needs_both failed: .*RuntimeWarning: invalid"
    ):
        own_metrics.check(["needs_both"], 2, False)
