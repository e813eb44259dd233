"""Metrics as equations on arrays: pure numpy functions, weighted and batched over leading axes.

Shapes: n images, k classes, t distinct scores, b bins, g resampled units; `*r` are leading axes, such as
the resamples of a bootstrap. A weight is the number of times that an image counts: an image of weight 0 is ignored,
an image of weight 2 counts twice. An undefined metric (a class without a true example, no weight at all) is nan,
never 0 or 1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num, Shaped
from numpy.typing import NDArray

Array = NDArray[Any]


def divide(numerator: Array | float, denominator: Array | float, undefined: float = np.nan) -> Float[np.ndarray, "..."]:
    """Divide elementwise, without numpy's warning on a zero denominator.

    Args:
      numerator: any shape.
      denominator: any shape that broadcasts with it.
      undefined: the result where the denominator is 0.

    Returns:
      The quotient in the broadcast shape.
    """
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    out: Array = np.full(numerator.shape, undefined)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out


def weighted_mean(
    values: Shaped[np.ndarray, " n"], weights: Num[np.ndarray, "*r n"] | None = None
) -> Float[np.ndarray, "*r"]:
    """Weighted mean of values; nan where all weights are 0."""
    weights = float_weights(weights, len(values))
    return divide(weights @ np.asarray(values, np.float64), weights.sum(-1))


def float_weights(weights: Num[np.ndarray, "*r n"] | None, n: int) -> Float[np.ndarray, "*r n"]:
    """Return the weights as float64; 1 for each of n images where none are given."""
    return np.ones(n) if weights is None else np.asarray(weights, np.float64)


# --- From confusion matrices [..., true, predicted] ---------------------------------------------------------


def confusion_matrix(
    true: Shaped[np.ndarray, " n"],
    predicted: Shaped[np.ndarray, " n"],
    n_classes: int,
    weights: Num[np.ndarray, "*r n"] | None = None,
) -> Float[np.ndarray, "*r k k"]:
    """Count images by true and predicted class.

    Args:
      true: class index of each image.
      predicted: class index of each image.
      n_classes: number of classes, k.
      weights: weight of each image; None: 1 each.

    Returns:
      Weighted counts, indexed [..., true, predicted].
    """
    cell = np.asarray(true, np.int64) * n_classes + np.asarray(predicted, np.int64)
    weights = float_weights(weights, len(cell))
    counts = np.zeros((n_classes * n_classes, *weights.shape[:-1]))
    np.add.at(counts, cell, np.moveaxis(weights, -1, 0))
    return np.moveaxis(counts, 0, -1).reshape(*weights.shape[:-1], n_classes, n_classes)


def _true_positives(confusion: Num[np.ndarray, "*r k k"]) -> Float[np.ndarray, "*r k"]:
    return np.diagonal(np.asarray(confusion, np.float64), axis1=-2, axis2=-1)


def support(confusion: Num[np.ndarray, "*r k k"]) -> Float[np.ndarray, "*r k"]:
    """Weight of the true examples of each class."""
    weight: Array = np.asarray(confusion, np.float64).sum(-1)
    return weight


def accuracy(confusion: Num[np.ndarray, "*r k k"]) -> Float[np.ndarray, "*r"]:
    """Fraction of images that are classified correctly."""
    return divide(_true_positives(confusion).sum(-1), support(confusion).sum(-1))


def recall(confusion: Num[np.ndarray, "*r k k"]) -> Float[np.ndarray, "*r k"]:
    """Recall of each class; nan for an absent class."""
    return divide(_true_positives(confusion), support(confusion))


def precision(confusion: Num[np.ndarray, "*r k k"]) -> Float[np.ndarray, "*r k"]:
    """Precision of each class.

    nan for a class without a true example. 0 for a class that has true examples and is never predicted, as with
    scikit-learn's `zero_division=0`.
    """
    predicted = np.asarray(confusion, np.float64).sum(-2)
    return np.where(support(confusion) > 0, divide(_true_positives(confusion), predicted, undefined=0.0), np.nan)


def f1(confusion: Num[np.ndarray, "*r k k"]) -> Float[np.ndarray, "*r k"]:
    """F1 of each class, 2·TP / (true + predicted); nan and 0 in the same cases as `precision`."""
    true = support(confusion)
    total = true + np.asarray(confusion, np.float64).sum(-2)
    return np.where(true > 0, divide(2 * _true_positives(confusion), total), np.nan)


def specificity(confusion: Num[np.ndarray, "*r k k"]) -> Float[np.ndarray, "*r k"]:
    """Specificity of each class against the rest; nan where there is no image of another class."""
    true = support(confusion)
    predicted = np.asarray(confusion, np.float64).sum(-2)
    negatives = true.sum(-1, keepdims=True) - true
    return divide(negatives - predicted + _true_positives(confusion), negatives)


def macro(per_class: Num[np.ndarray, "*r k"]) -> Float[np.ndarray, "*r"]:
    """Unweighted mean over the classes; nan if any class is nan."""
    return np.asarray(np.asarray(per_class).mean(-1))


def balanced_accuracy(confusion: Num[np.ndarray, "*r k k"]) -> Float[np.ndarray, "*r"]:
    """Mean recall over the classes; nan if a class is absent (scikit-learn skips an absent class)."""
    return macro(recall(confusion))


def gmean(confusion: Num[np.ndarray, "*r k k"]) -> Float[np.ndarray, "*r"]:
    """Geometric mean of the recalls; nan if a class is absent.

    Equals imbalanced-learn's `geometric_mean_score(true, predicted)` with its default, `average="multiclass"`.
    """
    return np.asarray(np.prod(recall(confusion), axis=-1) ** (1 / np.shape(confusion)[-1]))


def iba(
    confusion: Num[np.ndarray, "*r k k"], positive: int | None = None, alpha: float = 0.1
) -> Float[np.ndarray, "*r"]:
    """Index of balanced accuracy, (1 + α·(TPR − TNR)) · TPR · TNR; nan if a class is absent.

    With two classes the formula is applied to `positive`. With more it is applied to each class against the rest and
    averaged by support. García, Sánchez and Mollineda 2012. imbalanced-learn gives the same with:

    * two classes: `make_index_balanced_accuracy(alpha=0.1, squared=True)(geometric_mean_score)(true,
      predicted, average="binary", pos_label=positive)`;
    * more: `classification_report_imbalanced(true, predicted, alpha=0.1, output_dict=True)["avg_iba"]`.

    That wrapper differs with its default average (it takes the dominance TPR − TNR from macro means, which is 0
    for two classes) and with `average="weighted"` (it averages TPR and TNR before it multiplies them).

    Args:
      confusion: counts, indexed [..., true, predicted].
      positive: index of the positive class of two; None: 1.
      alpha: weight of the dominance TPR − TNR.
    """
    tpr, tnr, true = recall(confusion), specificity(confusion), support(confusion)
    per_class = (1 + alpha * (tpr - tnr)) * tpr * tnr
    if true.shape[-1] == 2:
        return np.asarray(per_class[..., 1 if positive is None else positive])
    return divide((per_class * true).sum(-1), true.sum(-1))


# --- From the order of scores: counts at thresholds ---------------------------------------------------------


class Ranking:
    """Images ordered by their scores. The sort is done once and serves any number of resamples.

    Args:
      scores: score of each image, (n,).
      positives: whether each image is positive, (n,).
      unit: index of the resampled unit of each image, (n,); None: each image is its own unit.
    """

    def __init__(
        self,
        scores: Num[np.ndarray, " n"],
        positives: Shaped[np.ndarray, " n"],
        unit: Int[np.ndarray, " n"] | None = None,
    ):
        scores = np.asarray(scores)
        order = np.argsort(-scores, kind="stable")
        # Equal scores share a threshold, so ties are exact.
        last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
        self._last = last if len(last) < len(order) else slice(None)
        self._unit = order if unit is None else np.asarray(unit)[order]
        self._positive = np.asarray(positives, bool)[order]

    def counts(self, weights: Num[np.ndarray, "*r g"]) -> tuple[Float[np.ndarray, "*r t"], Float[np.ndarray, "*r t"]]:
        """Count true and false positives at each distinct score, highest first, from the weights of the units."""
        ordered = np.asarray(weights, np.float64)[..., self._unit]
        at_or_above = np.cumsum(ordered, axis=-1)[..., self._last]
        ordered *= self._positive
        true_positives = np.cumsum(ordered, axis=-1, out=ordered)[..., self._last]
        # A weight that is not an integer may leave -1e-17 where there is no negative.
        return true_positives, np.maximum(at_or_above - true_positives, 0.0)


def threshold_counts(
    scores: Num[np.ndarray, " n"],
    positives: Shaped[np.ndarray, " n"],
    weights: Num[np.ndarray, "*r n"] | None = None,
) -> tuple[Float[np.ndarray, "*r t"], Float[np.ndarray, "*r t"]]:
    """Count true and false positives at each distinct score, from the highest down."""
    return Ranking(scores, positives).counts(np.ones(len(scores)) if weights is None else weights)


def auroc_from_counts(
    true_positives: Float[np.ndarray, "*r t"], false_positives: Float[np.ndarray, "*r t"]
) -> Float[np.ndarray, "*r"]:
    """Area under the ROC curve by trapezoids, so that a tie counts half.

    nan where there is no positive or no negative.
    """
    steps = np.diff(false_positives, axis=-1, prepend=0.0)
    # Twice the mean height of a step is the sum of its two ends; the first step starts at 0.
    ends = true_positives.copy()
    ends[..., 1:] += true_positives[..., :-1]
    area = 0.5 * np.einsum("...t,...t->...", steps, ends)
    return divide(area, true_positives[..., -1] * false_positives[..., -1])


def average_precision_from_counts(
    true_positives: Float[np.ndarray, "*r t"], false_positives: Float[np.ndarray, "*r t"]
) -> Float[np.ndarray, "*r"]:
    """Average precision Σ (Rᵢ − Rᵢ₋₁)·Pᵢ, with scikit-learn's steps and no interpolation.

    nan where there is no positive.
    """
    at_or_above = true_positives + false_positives
    precisions = divide(true_positives, at_or_above, undefined=0.0)
    gains = np.diff(true_positives, axis=-1, prepend=0.0)
    return divide(np.einsum("...t,...t->...", gains, precisions), true_positives[..., -1])


def auroc(
    scores: Num[np.ndarray, " n"],
    positives: Shaped[np.ndarray, " n"],
    weights: Num[np.ndarray, "*r n"] | None = None,
) -> Float[np.ndarray, "*r"]:
    """Area under the ROC curve; see `auroc_from_counts`."""
    return auroc_from_counts(*threshold_counts(scores, positives, weights))


def average_precision(
    scores: Num[np.ndarray, " n"],
    positives: Shaped[np.ndarray, " n"],
    weights: Num[np.ndarray, "*r n"] | None = None,
) -> Float[np.ndarray, "*r"]:
    """Average precision; see `average_precision_from_counts`."""
    return average_precision_from_counts(*threshold_counts(scores, positives, weights))


def ranking_metrics(
    rankings: Sequence[Ranking], weights: Num[np.ndarray, "*r g"]
) -> dict[str, Float[np.ndarray, "*r c"]]:
    """Compute `auroc` and `average_precision` of c rankings under the weights of their units."""
    areas, averages = [], []
    for ranking in rankings:
        counts = ranking.counts(weights)
        areas.append(auroc_from_counts(*counts))
        averages.append(average_precision_from_counts(*counts))
    return {"auroc": np.stack(areas, -1), "average_precision": np.stack(averages, -1)}


# --- From probabilities (n, k): one term per image, whose weighted mean is the metric ------------------------


def brier_terms(
    true: Shaped[np.ndarray, " n"], probabilities: Num[np.ndarray, "n k"], positive: int | None = None
) -> Float[np.ndarray, " n"]:
    """Squared error of each image: (p_positive − y)² for two classes, Σₖ (pₖ − yₖ)² for more.

    As scikit-learn's `brier_score_loss`: in [0, 1] for two classes, in [0, 2] for more.
    """
    true, probabilities = np.asarray(true), np.asarray(probabilities, np.float64)
    if probabilities.shape[1] == 2:
        column = 1 if positive is None else positive
        terms: Array = (probabilities[:, column] - (true == column)) ** 2
    else:
        terms = ((probabilities - np.eye(probabilities.shape[1])[true]) ** 2).sum(1)
    return terms


def log_loss_terms(true: Shaped[np.ndarray, " n"], probabilities: Num[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """−log of the probability of the true class, in nats. The probability is clipped to [ε, 1 − ε] of float64."""
    probabilities = np.asarray(probabilities, np.float64)
    eps = np.finfo(np.float64).eps
    of_true = probabilities[np.arange(len(probabilities)), np.asarray(true)]
    loss: Array = -np.log(np.clip(of_true, eps, 1 - eps))
    return loss


def calibration_bins(confidence: Num[np.ndarray, " n"], n_bins: int = 15) -> Int[np.ndarray, " n"]:
    """Bin index of each probability.

    Bins have equal width, are open below and closed above: (i/m, (i+1)/m]. 0 belongs to the first.
    """
    edges = np.linspace(0, 1, n_bins + 1)
    return np.clip(np.searchsorted(edges, np.asarray(confidence), side="left") - 1, 0, n_bins - 1)


def calibration_terms(
    true: Shaped[np.ndarray, " n"], probabilities: Num[np.ndarray, "n k"], n_bins: int = 15
) -> Float[np.ndarray, "n b"]:
    """Correctness (1 or 0) minus confidence of each image, placed in the column of its bin.

    The confidence is the highest probability.
    """
    probabilities = np.asarray(probabilities, np.float64)
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == np.asarray(true)
    terms = np.zeros((len(confidence), n_bins))
    terms[np.arange(len(confidence)), calibration_bins(confidence, n_bins)] = correct - confidence
    return terms


def ece_from_sums(bin_sums: Float[np.ndarray, "*r b"], total: Num[np.ndarray, "*r"] | float) -> Float[np.ndarray, "*r"]:
    """Expected calibration error Σ_b |Σ w·(correct − confidence)| / Σ w, from the weighted sums of the bins."""
    return divide(np.abs(bin_sums).sum(-1), total)


def brier(
    true: Shaped[np.ndarray, " n"],
    probabilities: Num[np.ndarray, "n k"],
    weights: Num[np.ndarray, "*r n"] | None = None,
    positive: int | None = None,
) -> Float[np.ndarray, "*r"]:
    """Brier score; see `brier_terms`."""
    return weighted_mean(brier_terms(true, probabilities, positive), weights)


def log_loss(
    true: Shaped[np.ndarray, " n"],
    probabilities: Num[np.ndarray, "n k"],
    weights: Num[np.ndarray, "*r n"] | None = None,
) -> Float[np.ndarray, "*r"]:
    """Cross-entropy in nats; see `log_loss_terms`."""
    return weighted_mean(log_loss_terms(true, probabilities), weights)


def ece(
    true: Shaped[np.ndarray, " n"],
    probabilities: Num[np.ndarray, "n k"],
    weights: Num[np.ndarray, "*r n"] | None = None,
    n_bins: int = 15,
) -> Float[np.ndarray, "*r"]:
    """Expected calibration error (Guo et al. 2017); see `calibration_terms`."""
    weights = float_weights(weights, len(probabilities))
    return ece_from_sums(weights @ calibration_terms(true, probabilities, n_bins), weights.sum(-1))
