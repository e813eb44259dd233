import numpy as np
import pytest
import sklearn.metrics as sk

from histojax.evaluation import curves, metrics


def scored(n=500, seed=0, digits=2):
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.3
    return rng.beta(1 + labels, 2 - labels).round(digits), labels  # rounding makes ties


@pytest.mark.parametrize("digits", [1, 2, 9])
def test_equal_scikit_learn(digits):
    scores, labels = scored(digits=digits)
    found = curves.roc(scores, labels)
    x, y, thresholds = sk.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose([found.x, found.y, found.thresholds], [x, y, thresholds], rtol=1e-12)
    found = curves.precision_recall(scores, labels)
    precision, recall, thresholds = sk.precision_recall_curve(labels, scores)
    # scikit-learn goes the other way, and has no threshold for the point that predicts nothing.
    np.testing.assert_allclose([found.x, found.y], [recall[::-1], precision[::-1]], rtol=1e-12)
    np.testing.assert_allclose(found.thresholds[1:], thresholds[::-1])


def test_undefined_curves_are_none():
    scores = np.array([0.1, 0.7])
    assert curves.roc(scores, np.array([True, True])) is None
    assert curves.roc(scores, np.array([False, False])) is None
    assert curves.precision_recall(scores, np.array([False, False])) is None
    assert curves.precision_recall(scores, np.array([True, True])).y.tolist() == [1, 1, 1]


def test_thinned_keeps_ends_and_shape():
    scores, labels = scored(20_000, digits=9)
    whole = curves.roc(scores, labels)
    few = curves.thinned(whole)
    assert len(few.x) <= 200 < len(whole.x)
    assert (few.x[0], few.y[0], few.x[-1], few.y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(few.y, few.x) == pytest.approx(float(metrics.auroc(scores, labels)), abs=2e-3)
    assert np.abs(np.interp(whole.x, few.x, few.y) - whole.y).max() < 0.02
    short = curves.roc(scores[:50], labels[:50])
    assert curves.thinned(short) is short
