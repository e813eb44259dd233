"""Curves of a score: receiver operating characteristic and precision-recall, with few points for a picture."""

from typing import NamedTuple

import numpy as np

from histojax.evaluation import metrics
from histojax.evaluation.metrics import Array


class Curve(NamedTuple):
    """A point a threshold, from the highest score down; the first says no to every image.

    Attributes:
      x, y: (t + 1,).
      thresholds: (t + 1,), the lowest score that counts as positive; the first is infinite.
    """

    x: Array
    y: Array
    thresholds: Array


def roc(scores: Array, positives: Array) -> Curve | None:
    """False positive rate and true positive rate of scores (n,); None without a positive or without a negative."""
    positives = np.asarray(positives, bool)
    if positives.all() or not positives.any():
        return None
    true_positives, false_positives = metrics.threshold_counts(scores, positives)
    return Curve(
        np.append(0.0, false_positives / false_positives[-1]),
        np.append(0.0, true_positives / true_positives[-1]),
        _thresholds(scores),
    )


def precision_recall(scores: Array, positives: Array) -> Curve | None:
    """Recall and precision of scores (n,); None without a positive.

    Precision is 1 where nothing is predicted, as scikit-learn has it. The points are steps, not to be joined by
    straight lines: the area under the steps is the average precision.
    """
    positives = np.asarray(positives, bool)
    if not positives.any():
        return None
    true_positives, false_positives = metrics.threshold_counts(scores, positives)
    return Curve(
        np.append(0.0, true_positives / true_positives[-1]),
        np.append(1.0, true_positives / (true_positives + false_positives)),
        _thresholds(scores),
    )


def thinned(curve: Curve, points: int = 200) -> Curve:
    """At most `points` of a curve's points, both ends among them, about evenly spaced along it."""
    if len(curve.x) <= points:
        return curve
    way = np.append(0.0, np.cumsum(np.abs(np.diff(curve.x)) + np.abs(np.diff(curve.y))))
    kept = np.searchsorted(way, np.linspace(0, way[-1], points - 1))
    kept = np.unique(np.append(np.minimum(kept, len(way) - 1), len(way) - 1))
    return Curve(curve.x[kept], curve.y[kept], curve.thresholds[kept])


def _thresholds(scores: Array) -> Array:
    return np.append(np.inf, np.unique(np.asarray(scores, np.float64))[::-1])
