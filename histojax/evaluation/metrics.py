"""Metrics as equations on arrays: pure functions of numpy, weighted, batched over leading axes.

Alphabet: n images, k classes, t distinct scores, g groups (patients or cases); `...` are leading axes, such
as the resamples of a bootstrap. A weight is how often an image counts: 0 is as if it were not there, 2 as if
it stood there twice. What cannot be defined (a class without a true example, no weight at all) is nan, never
0 or 1.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def divide(numerator: Array, denominator: Array, undefined: float = np.nan) -> Array:
    """Quotient; `undefined` where the denominator is 0, without numpy's warning."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    out = np.full(numerator.shape, undefined)
    return np.divide(numerator, denominator, out=out, where=denominator != 0)


def weighted_mean(values: Array, weights: Array | None = None) -> Array:
    """Mean of values (n,) under weights (..., n) -> (...); nan where all weights are 0."""
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    return divide(weights @ np.asarray(values, np.float64), weights.sum(-1))


# --- From confusion matrices (..., k, k) [true, predicted] --------------------------------------------------


def confusion_matrix(true: Array, predicted: Array, n_classes: int, weights: Array | None = None) -> Array:
    """Weighted counts (..., k, k) [true, predicted] of class indices (n,), (n,) under weights (..., n)."""
    cell = np.asarray(true, np.int64) * n_classes + np.asarray(predicted, np.int64)
    weights = np.ones(len(cell)) if weights is None else np.asarray(weights, np.float64)
    counts = np.zeros((n_classes * n_classes, *weights.shape[:-1]))
    np.add.at(counts, cell, np.moveaxis(weights, -1, 0))
    return np.moveaxis(counts, 0, -1).reshape(*weights.shape[:-1], n_classes, n_classes)


def _true_positives(confusion: Array) -> Array:
    return np.diagonal(np.asarray(confusion, np.float64), axis1=-2, axis2=-1)


def support(confusion: Array) -> Array:
    """Weight of the true examples of each class, (..., k)."""
    return np.asarray(confusion, np.float64).sum(-1)


def accuracy(confusion: Array) -> Array:
    """Share of images classified right, (...)."""
    return divide(_true_positives(confusion).sum(-1), support(confusion).sum(-1))


def recall(confusion: Array) -> Array:
    """Recall of each class, (..., k); nan for an absent class."""
    return divide(_true_positives(confusion), support(confusion))


def precision(confusion: Array) -> Array:
    """Precision of each class, (..., k).

    nan for a class without a true example; 0 for a class that is there and never predicted, as scikit-learn's
    `zero_division=0`.
    """
    predicted = np.asarray(confusion, np.float64).sum(-2)
    return np.where(support(confusion) > 0, divide(_true_positives(confusion), predicted, undefined=0.0), np.nan)


def f1(confusion: Array) -> Array:
    """F1 of each class, 2·TP / (true + predicted), (..., k); nan and 0 where `precision` is."""
    true = support(confusion)
    total = true + np.asarray(confusion, np.float64).sum(-2)
    return np.where(true > 0, divide(2 * _true_positives(confusion), total), np.nan)


def specificity(confusion: Array) -> Array:
    """Specificity of each class against the rest, (..., k); nan where there is no rest."""
    true = support(confusion)
    predicted = np.asarray(confusion, np.float64).sum(-2)
    negatives = true.sum(-1, keepdims=True) - true
    return divide(negatives - predicted + _true_positives(confusion), negatives)


def macro(per_class: Array) -> Array:
    """Unweighted mean over the classes (..., k) -> (...); nan as soon as one class is nan."""
    return np.asarray(per_class).mean(-1)


def balanced_accuracy(confusion: Array) -> Array:
    """Mean of the recalls, (...); nan if a class is absent (scikit-learn leaves such a class out)."""
    return macro(recall(confusion))


def gmean(confusion: Array) -> Array:
    """Geometric mean of the recalls, (...); nan if a class is absent.

    Equals imbalanced-learn's `geometric_mean_score(true, predicted)` (its default, `average="multiclass"`).
    """
    return np.prod(recall(confusion), axis=-1) ** (1 / np.shape(confusion)[-1])


def iba(confusion: Array, positive: int | None = None, alpha: float = 0.1) -> Array:
    """Index of balanced accuracy, (1 + α·(TPR − TNR)) · TPR · TNR, (...); nan if a class is absent.

    Two classes: the formula for `positive` (None: the second). More: the formula for each class against the
    rest, averaged by support. García, Sánchez and Mollineda 2012. The same in imbalanced-learn:

    * two classes: `make_index_balanced_accuracy(alpha=0.1, squared=True)(geometric_mean_score)(true,
      predicted, average="binary", pos_label=positive)`;
    * more: `classification_report_imbalanced(true, predicted, alpha=0.1, output_dict=True)["avg_iba"]`.

    Not that wrapper with its default average (it takes the dominance TPR − TNR from macro means, which is 0
    for two classes), nor with `average="weighted"` (it averages TPR and TNR before the product).
    """
    tpr, tnr, true = recall(confusion), specificity(confusion), support(confusion)
    per_class = (1 + alpha * (tpr - tnr)) * tpr * tnr
    if true.shape[-1] == 2:
        return per_class[..., 1 if positive is None else positive]
    return divide((per_class * true).sum(-1), true.sum(-1))


# --- From the order of scores: counts at thresholds ---------------------------------------------------------


class Ranking:
    """Images in the order of their scores, sorted once for any number of resamples.

    Args:
      scores: (n,).
      positives: boolean, (n,).
      unit: what carries the weight of each image, (n,); None: the image itself.
    """

    def __init__(self, scores: Array, positives: Array, unit: Array | None = None):
        scores = np.asarray(scores)
        order = np.argsort(-scores, kind="stable")
        # Equal scores share a threshold, so ties are exact.
        last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
        self._last = last if len(last) < len(order) else slice(None)
        self._unit = order if unit is None else np.asarray(unit)[order]
        self._positive = np.asarray(positives, bool)[order]

    def counts(self, weights: Array) -> tuple[Array, Array]:
        """True and false positives at each distinct score, highest first: weights (..., g) -> (..., t), (..., t)."""
        ordered = np.asarray(weights, np.float64)[..., self._unit]
        at_or_above = np.cumsum(ordered, axis=-1)[..., self._last]
        ordered *= self._positive
        true_positives = np.cumsum(ordered, axis=-1, out=ordered)[..., self._last]
        # A weight that is no integer may leave -1e-17 where there is no negative.
        return true_positives, np.maximum(at_or_above - true_positives, 0.0)


def threshold_counts(scores: Array, positives: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """True and false positives at each distinct score, from the highest down, (..., t) and (..., t).

    scores (n,), positives (n,) boolean, weights (..., n).
    """
    return Ranking(scores, positives).counts(np.ones(len(scores)) if weights is None else weights)


def auroc_from_counts(true_positives: Array, false_positives: Array) -> Array:
    """Area under the ROC curve by trapezoids (a tie counts half) from counts (..., t) -> (...).

    nan where there is no positive or no negative.
    """
    steps = np.diff(false_positives, axis=-1, prepend=0.0)
    # Twice the mean height of a step is its two ends; the first starts at 0.
    ends = true_positives.copy()
    ends[..., 1:] += true_positives[..., :-1]
    area = 0.5 * np.einsum("...t,...t->...", steps, ends)
    return divide(area, true_positives[..., -1] * false_positives[..., -1])


def average_precision_from_counts(true_positives: Array, false_positives: Array) -> Array:
    """Average precision Σ (Rᵢ − Rᵢ₋₁)·Pᵢ from counts (..., t) -> (...).

    scikit-learn's steps, no interpolation; nan where there is no positive.
    """
    at_or_above = true_positives + false_positives
    precisions = divide(true_positives, at_or_above, undefined=0.0)
    gains = np.diff(true_positives, axis=-1, prepend=0.0)
    return divide(np.einsum("...t,...t->...", gains, precisions), true_positives[..., -1])


def auroc(scores: Array, positives: Array, weights: Array | None = None) -> Array:
    """Area under the ROC curve of scores (n,) for boolean positives (n,) under weights (..., n) -> (...)."""
    return auroc_from_counts(*threshold_counts(scores, positives, weights))


def average_precision(scores: Array, positives: Array, weights: Array | None = None) -> Array:
    """Average precision of scores (n,) for boolean positives (n,) under weights (..., n) -> (...)."""
    return average_precision_from_counts(*threshold_counts(scores, positives, weights))


# --- From probabilities (n, k): a term for each image, whose weighted mean is the metric --------------------


def brier_terms(true: Array, probabilities: Array, positive: int | None = None) -> Array:
    """Squared error of each image, (n,): (p_positive − y)² for two classes, Σₖ (pₖ − yₖ)² for more.

    As scikit-learn's `brier_score_loss`: in [0, 1] for two classes, in [0, 2] for more.
    """
    true, probabilities = np.asarray(true), np.asarray(probabilities, np.float64)
    if probabilities.shape[1] == 2:
        column = 1 if positive is None else positive
        return (probabilities[:, column] - (true == column)) ** 2
    return ((probabilities - np.eye(probabilities.shape[1])[true]) ** 2).sum(1)


def log_loss_terms(true: Array, probabilities: Array) -> Array:
    """−log of the probability of the true class, (n,), clipped to [ε, 1 − ε] of float64."""
    probabilities = np.asarray(probabilities, np.float64)
    eps = np.finfo(np.float64).eps
    return -np.log(np.clip(probabilities[np.arange(len(probabilities)), np.asarray(true)], eps, 1 - eps))


def calibration_bins(confidence: Array, n_bins: int = 15) -> Array:
    """The bin of each probability (n,): equal-width, open below and closed above, (i/m, (i+1)/m]; 0 is in the first."""
    edges = np.linspace(0, 1, n_bins + 1)
    return np.clip(np.searchsorted(edges, np.asarray(confidence), side="left") - 1, 0, n_bins - 1)


def calibration_terms(true: Array, probabilities: Array, n_bins: int = 15) -> Array:
    """Right (1 or 0) minus confidence of each image, in the column of its bin, (n, n_bins).

    The confidence is the highest probability.
    """
    probabilities = np.asarray(probabilities, np.float64)
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == np.asarray(true)
    terms = np.zeros((len(confidence), n_bins))
    terms[np.arange(len(confidence)), calibration_bins(confidence, n_bins)] = right - confidence
    return terms


def ece_from_sums(bin_sums: Array, total: Array) -> Array:
    """Expected calibration error Σ_b |Σ w·(right − confidence)| / Σ w from weighted bin sums (..., b)."""
    return divide(np.abs(bin_sums).sum(-1), total)


def brier(true: Array, probabilities: Array, weights: Array | None = None, positive: int | None = None) -> Array:
    """Brier score of probabilities (n, k) under weights (..., n) -> (...); see `brier_terms`."""
    return weighted_mean(brier_terms(true, probabilities, positive), weights)


def log_loss(true: Array, probabilities: Array, weights: Array | None = None) -> Array:
    """Cross-entropy in nats of probabilities (n, k) under weights (..., n) -> (...)."""
    return weighted_mean(log_loss_terms(true, probabilities), weights)


def ece(true: Array, probabilities: Array, weights: Array | None = None, n_bins: int = 15) -> Array:
    """Expected calibration error (Guo et al. 2017) under weights (..., n); see `calibration_terms`."""
    weights = np.ones(len(probabilities)) if weights is None else np.asarray(weights, np.float64)
    return ece_from_sums(weights @ calibration_terms(true, probabilities, n_bins), weights.sum(-1))


# --- From groups: patients or cases -------------------------------------------------------------------------


class GroupScores(NamedTuple):
    """What is known of each patient (or case): arrays over g groups."""

    n_images: Array  # (g,)
    label: Array  # (g,) class index; -1 where the images of the group carry several labels
    share_right: Array  # (g,) share of the group's images classified right
    majority: Array  # (g,) class with the most votes of the group's images
    mean_probability: Array  # (g, k)


def group_scores(true: Array, probabilities: Array, group: Array, n_groups: int) -> GroupScores:
    """Scores of each group from class indices (n,), probabilities (n, k) and group indices (n,).

    An image votes for its most probable class. A tie of votes goes to that tied class whose mean probability
    over the group's images is the highest, and then to the first. Every group has at least one image.
    """
    true, probabilities = np.asarray(true), np.asarray(probabilities, np.float64)
    n_classes = probabilities.shape[1]
    predicted = probabilities.argmax(1)
    n_images = np.bincount(group, minlength=n_groups)
    labels, votes, summed = (np.zeros((n_groups, n_classes)) for _ in range(3))
    np.add.at(labels, (group, true), 1)
    np.add.at(votes, (group, predicted), 1)
    np.add.at(summed, group, probabilities)
    mean_probability = summed / n_images[:, None]
    tied = votes == votes.max(1, keepdims=True)
    return GroupScores(
        n_images=n_images,
        label=np.where((labels > 0).sum(1) == 1, labels.argmax(1), -1),
        share_right=np.bincount(group, weights=predicted == true, minlength=n_groups) / n_images,
        majority=np.where(tied, mean_probability, -1.0).argmax(1),
        mean_probability=mean_probability,
    )


def recognition_rate(scores: GroupScores, weights: Array | None = None) -> Array:
    """Mean over groups of the share of a group's images classified right, weights (..., g) -> (...).

    Spanhol et al. 2016 (BreakHis), "patient recognition rate".
    """
    return weighted_mean(scores.share_right, weights)


def _over_labelled(scores: GroupScores, predicted: Array, weights: Array | None) -> Array:
    """Accuracy over groups that have one label: a group with several has no right answer."""
    weights = np.ones(len(predicted)) if weights is None else np.asarray(weights, np.float64)
    return weighted_mean(predicted == scores.label, weights * (scores.label >= 0))


def majority_accuracy(scores: GroupScores, weights: Array | None = None) -> Array:
    """Share of groups whose majority vote is right, (...); groups of several labels are left out."""
    return _over_labelled(scores, scores.majority, weights)


def mean_probability_accuracy(scores: GroupScores, weights: Array | None = None) -> Array:
    """Share of groups whose class of highest mean probability is right, (...); left out as above."""
    return _over_labelled(scores, scores.mean_probability.argmax(1), weights)
