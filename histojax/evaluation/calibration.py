"""Calibration: reliability diagrams, calibration scores, and temperature scaling.

Temperature scaling (Guo et al. 2017) divides logits by T, which is fitted to the log loss of validation images and
then applied to others. It preserves the order of scores, so it changes neither the predicted class nor any AUROC.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from histojax.evaluation import bootstrap, metrics, summary_blocks
from histojax.evaluation.metrics import Array

BINS = 15
# Limits of a temperature. Validation images without an error would drive it to 0.
LOWEST, HIGHEST = 0.05, 20.0
_EPS = float(np.finfo(np.float64).tiny)


def softmax_at(probabilities: Array, temperature: float) -> Array:
    """Scale the probabilities (n, k) of exclusive classes: divide their logits by the temperature."""
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), _EPS)) / temperature
    terms = np.exp(logits - logits.max(1, keepdims=True))
    scaled: Array = terms / terms.sum(1, keepdims=True)
    return scaled


def sigmoid_at(probabilities: Array, temperature: float) -> Array:
    """Scale the probabilities (n,) of one independent label: divide their logits by the temperature."""
    probabilities = np.asarray(probabilities, np.float64)
    return softmax_at(np.stack([1 - probabilities, probabilities], axis=1), temperature)[:, 1]


def at_temperatures(probabilities: Array, temperatures: Sequence[float]) -> Array:
    """Scale probabilities (n, k): exclusive classes by one temperature, or each of k labels by its own.

    Raises:
      ValueError: another number of temperatures.
    """
    if len(temperatures) == 1 < np.shape(probabilities)[1]:
        return softmax_at(probabilities, temperatures[0])
    columns = zip(np.asarray(probabilities).T, temperatures, strict=True)
    return np.stack([sigmoid_at(column, temperature) for column, temperature in columns], axis=1)


def fit_temperature(true: Array, probabilities: Array, weights: Array | None = None) -> float:
    """Fit the temperature in [LOWEST, HIGHEST] with the least log loss.

    The loss is convex in 1/T, so its slope has one zero, which is found by bisection.

    Args:
      true: class indices, (n,).
      probabilities: (n, k).
      weights: of each image in the loss, (n,), such as `bootstrap.equal_weights` gives; None: all count the same.
    """
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), _EPS))
    true_logits = logits[np.arange(len(logits)), np.asarray(true)]

    def slope(inverse: float) -> float:
        """Derivative of the loss with respect to 1/T."""
        terms = (softmax_at(probabilities, 1 / inverse) * logits).sum(1) - true_logits
        return float(terms.mean() if weights is None else weights @ terms / weights.sum())

    low, high = 1 / HIGHEST, 1 / LOWEST
    if slope(low) >= 0:
        return HIGHEST
    if slope(high) <= 0:
        return LOWEST
    for _ in range(60):
        middle = np.sqrt(low * high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(1 / np.sqrt(low * high))


def equal_mass_edges(scores: Array) -> Array:
    """Return the ends of BINS bins that hold about equally many scores, (b + 1,).

    Equal scores share a bin, so that bins may be empty. As scikit-learn's `calibration_curve(strategy="quantile")` has
    them, but from 0 to 1.
    """
    inner = np.quantile(np.asarray(scores, np.float64), np.linspace(0, 1, BINS + 1)[1:-1])
    return np.concatenate([[0.0], inner, [1.0]])


def reliability(
    rows: pd.DataFrame, scores: Array, outcomes: Array, *, edges: Array | None = None, **options: int
) -> list[dict[str, Any]]:
    """Compute a reliability diagram: how often the outcome occurred at each predicted probability.

    Args:
      rows: rows of the table, (n,); their patients, slides or source images are resampled.
      scores: probabilities, (n,).
      outcomes: whether the outcome occurred, boolean, (n,).
      edges: ends of the bins; None: BINS bins of equal width.
      **options: `n_resamples` and `seed` of the bootstrap.

    Returns:
      One dict per bin that holds images: `low` and `high` (its ends), `n_images`, `mean_probability`, and `share`
      (the estimated fraction of images with the outcome).
    """
    _, unit, n_units = summary_blocks.resampled_units(rows)
    scores = np.asarray(scores, np.float64)
    edges = np.linspace(0, 1, BINS + 1) if edges is None else edges
    in_bin = _in_bins(scores, edges)
    counts = bootstrap.unit_sums(in_bin, unit, n_units)
    occurred = bootstrap.unit_sums(in_bin * np.asarray(outcomes, bool)[:, None], unit, n_units)
    used = np.flatnonzero(counts.sum(0))

    def statistic(weights: Array) -> dict[int, Array]:
        fractions = metrics.divide(weights @ occurred[:, used], weights @ counts[:, used])
        return {int(b): fractions[:, i] for i, b in enumerate(used)}

    estimates = bootstrap.intervals(statistic, n_units, **options)
    for b in np.flatnonzero((counts > 0).sum(0) == 1):  # one patient only: its spread cannot be seen
        estimates[int(b)] |= {"low": None, "high": None}
    sums = in_bin.T @ scores
    return [
        {
            "low": float(edges[b]),
            "high": float(edges[b + 1]),
            "n_images": int(counts[:, b].sum()),
            "mean_probability": float(sums[b] / counts[:, b].sum()),
            "share": estimates[int(b)],
        }
        for b in used
    ]


def scores_of_classes(
    rows: pd.DataFrame, true: Array, probabilities: Array, positive: int | None, **options: int
) -> dict[str, bootstrap.Estimate]:
    """Estimate how well the probabilities of exclusive classes are calibrated.

    Args:
      rows: rows of the table, (n,).
      true: class indices, (n,).
      probabilities: (n, k).
      positive: index of the positive class of two, else None.
      **options: `n_resamples` and `seed` of the bootstrap.

    Returns:
      `ece`, `brier` and `log_loss` as `results.summarise` defines them; `ece_adaptive`, the same ECE in bins of equal
      mass (Nixon et al. 2019); `ece_classwise`, the mean over the classes of the ECE of each class's probability (Kull
      et al. 2019); and the parts of the Brier score, as `_brier_parts` has them.
    """
    probabilities = np.asarray(probabilities, np.float64)
    is_class = np.eye(probabilities.shape[1])[np.asarray(true)]
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == np.asarray(true)
    by_class = [_bin_terms(p, y) for p, y in zip(probabilities.T, is_class.T, strict=True)]
    terms = {
        "ece": metrics.calibration_terms(true, probabilities, BINS),
        "brier": metrics.brier_terms(true, probabilities, positive)[:, None],
        "log_loss": metrics.log_loss_terms(true, probabilities)[:, None],
        "ece_adaptive": _bin_terms(confidence, correct, equal_mass_edges(confidence)),
        "classes": np.concatenate(by_class, axis=1),
    }
    return _scores(rows, terms, list(range(len(by_class))) if positive is None else [positive], **options)


def scores_of_label(
    rows: pd.DataFrame, labels: Array, probabilities: Array, **options: int
) -> dict[str, bootstrap.Estimate]:
    """Estimate how well the probability of one independent label is calibrated.

    Args:
      rows: rows of the table, (n,).
      labels: whether each image carries the label, (n,).
      probabilities: of the label, (n,).
      **options: `n_resamples` and `seed` of the bootstrap.

    Returns:
      As `scores_of_classes` does, without `ece_classwise`. Each ECE is that of the label's probability, not of the
      likelier answer.
    """
    labels, probabilities = np.asarray(labels, bool), np.asarray(probabilities, np.float64)
    both = np.stack([1 - probabilities, probabilities], axis=1)
    terms = {
        "ece": np.eye(BINS)[metrics.calibration_bins(probabilities, BINS)] * (labels - probabilities)[:, None],
        "brier": (probabilities - labels)[:, None] ** 2,
        "log_loss": metrics.log_loss_terms(labels.astype(int), both)[:, None],
        "ece_adaptive": _bin_terms(probabilities, labels, equal_mass_edges(probabilities)),
        "classes": _bin_terms(probabilities, labels),
    }
    found = _scores(rows, terms, [0], **options)
    del found["ece_classwise"]  # of one label it is the ECE
    return found


def _in_bins(scores: Array, edges: Array) -> Array:
    """Mark the bin of each score, (n, b): open below and closed above, as in `metrics.calibration_bins`."""
    return np.eye(len(edges) - 1)[np.searchsorted(edges[1:-1], scores, side="left")]


def _bin_terms(scores: Array, outcomes: Array, edges: Array | None = None) -> Array:
    """Place 1, the score and the outcome of each image in the columns of its bin, (n, 3b); bins of equal width."""
    in_bin = _in_bins(scores, np.linspace(0, 1, BINS + 1) if edges is None else edges)
    return np.concatenate([in_bin, in_bin * scores[:, None], in_bin * outcomes[:, None]], axis=1)


def _scores(rows: pd.DataFrame, terms: dict[str, Array], parts: Sequence[int], **options: int) -> dict[str, Any]:
    """Estimate the scores.

    Args:
      rows: rows of the table, (n,).
      terms: name -> terms of each image, (n, c); `ece_adaptive` and, for each class, `classes` from `_bin_terms`.
      parts: classes whose Brier scores add up to `brier`.
      **options: `n_resamples` and `seed` of the bootstrap.
    """
    _, unit, n_units = summary_blocks.resampled_units(rows)
    ends = np.cumsum([part.shape[1] for part in terms.values()])
    sums = bootstrap.unit_sums(np.column_stack([*terms.values(), np.ones(len(rows))]), unit, n_units)

    def statistic(weights: Array) -> dict[str, Array]:
        weighted = weights @ sums
        part, total = dict(zip(terms, np.split(weighted, ends, axis=1), strict=False)), weighted[:, -1]
        classes = part["classes"].reshape(len(weighted), -1, 3, BINS)
        count, score, outcome = np.moveaxis(classes, 2, 0)
        _, mass_score, mass_outcome = np.split(part["ece_adaptive"], 3, axis=1)
        brier = metrics.divide(part["brier"][:, 0], total)
        return {
            "ece": metrics.ece_from_sums(part["ece"], total),
            "brier": brier,
            "log_loss": metrics.divide(part["log_loss"][:, 0], total),
            "ece_adaptive": metrics.ece_from_sums(mass_outcome - mass_score, total),
            "ece_classwise": metrics.ece_from_sums(
                (outcome - score).reshape(len(weighted), -1), total * score.shape[1]
            ),
        } | _brier_parts(count[:, parts], score[:, parts], outcome[:, parts], brier)

    return bootstrap.intervals(statistic, n_units, n_rows=sums.shape[1], **options)


def _brier_parts(count: Array, score: Array, outcome: Array, brier: Array) -> dict[str, Array]:
    """Divide the Brier score into reliability - resolution + uncertainty (Murphy 1973), summed over classes.

    The forecasts of a bin are replaced by their mean, so a fourth part remains: `brier_within_bins`, what they vary
    within the bins (Stephenson et al. 2008). Brier score = reliability - resolution + uncertainty + within bins.

    Args:
      count: images of each class's bins, (r, k, b).
      score: sums of their probabilities.
      outcome: those of the class.
      brier: Brier score, (r,).
    """
    total = count.sum(-1, keepdims=True)
    share = metrics.divide(count, total)
    mean = metrics.divide(score, count, undefined=0.0)
    observed = metrics.divide(outcome, count, undefined=0.0)
    base = metrics.divide(outcome.sum(-1, keepdims=True), total)
    parts = {
        "brier_reliability": (share * (mean - observed) ** 2).sum((1, 2)),
        "brier_resolution": (share * (observed - base) ** 2).sum((1, 2)),
        "brier_uncertainty": (base * (1 - base)).sum((1, 2)),
    }
    binned = parts["brier_reliability"] - parts["brier_resolution"] + parts["brier_uncertainty"]
    return parts | {"brier_within_bins": brier - binned}
