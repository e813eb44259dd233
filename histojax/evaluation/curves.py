"""ROC and precision-recall curves, and their reduction to few points for plotting."""

from typing import NamedTuple

import numpy as np

from histojax.evaluation import metrics
from histojax.evaluation.metrics import Array


class Curve(NamedTuple):
    """One point per threshold, from the highest score down. The first point predicts no image as positive.

    Attributes:
      x: (t + 1,).
      y: (t + 1,).
      thresholds: the lowest score that counts as positive, (t + 1,); the first is infinite.
    """

    x: Array
    y: Array
    thresholds: Array


def roc(scores: Array, positives: Array) -> Curve | None:
    """Compute the ROC curve: true positive rate over false positive rate.

    Args:
      scores: (n,).
      positives: whether each image is positive, (n,).

    Returns:
      The curve; None where all images are positive or all are negative.
    """
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
    """Compute the precision-recall curve: precision over recall.

    Precision is 1 where nothing is predicted, as in scikit-learn. The points are steps and must not be joined by
    straight lines: the area under the steps is the average precision.

    Args:
      scores: (n,).
      positives: whether each image is positive, (n,).

    Returns:
      The curve; None where no image is positive.
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
    """Keep at most `points` points of a curve: both ends, and others about evenly spaced along it."""
    if len(curve.x) <= points:
        return curve
    length = np.append(0.0, np.cumsum(np.abs(np.diff(curve.x)) + np.abs(np.diff(curve.y))))
    kept = np.searchsorted(length, np.linspace(0, length[-1], points - 1))
    kept = np.unique(np.append(np.minimum(kept, len(length) - 1), len(length) - 1))
    return Curve(curve.x[kept], curve.y[kept], curve.thresholds[kept])


def _thresholds(scores: Array) -> Array:
    return np.append(np.inf, np.unique(np.asarray(scores, np.float64))[::-1])
