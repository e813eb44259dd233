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


def fit_temperature(true: Array, probabilities: Array) -> float:
    """Fit the temperature in [LOWEST, HIGHEST] with the least log loss.

    The loss is convex in 1/T, so its slope has one zero, which is found by bisection.

    Args:
      true: class indices, (n,).
      probabilities: (n, k).
    """
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), _EPS))
    true_logits = logits[np.arange(len(logits)), np.asarray(true)]

    def slope(inverse: float) -> float:
        """Derivative of the loss with respect to 1/T."""
        return float(((softmax_at(probabilities, 1 / inverse) * logits).sum(1) - true_logits).mean())

    low, high = 1 / HIGHEST, 1 / LOWEST
    if slope(low) >= 0:
        return HIGHEST
    if slope(high) <= 0:
        return LOWEST
    for _ in range(60):
        middle = np.sqrt(low * high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(1 / np.sqrt(low * high))


def reliability(rows: pd.DataFrame, scores: Array, outcomes: Array, **options: int) -> list[dict[str, Any]]:
    """Compute a reliability diagram: how often the outcome occurred at each predicted probability.

    Args:
      rows: rows of the table, (n,); their patients, slides or source images are resampled.
      scores: probabilities, (n,).
      outcomes: whether the outcome occurred, boolean, (n,).
      **options: `n_resamples` and `seed` of the bootstrap.

    Returns:
      One dict per bin that holds images: `low` and `high` (its ends), `n_images`, `mean_probability`, and `share`
      (the estimated fraction of images with the outcome).
    """
    _, unit, n_units = summary_blocks.resampled_units(rows)
    scores = np.asarray(scores, np.float64)
    in_bin = np.eye(BINS)[metrics.calibration_bins(scores, BINS)]
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
    edges = np.linspace(0, 1, BINS + 1)
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
    """Estimate `ece`, `brier` and `log_loss` of exclusive classes, as `results.summarise` defines them.

    Args:
      rows: rows of the table, (n,).
      true: class indices, (n,).
      probabilities: (n, k).
      positive: index of the positive class of two, else None.
      **options: `n_resamples` and `seed` of the bootstrap.
    """
    _, unit, n_units = summary_blocks.resampled_units(rows)
    terms = metrics.calibration_terms(true, probabilities, BINS)
    brier = metrics.brier_terms(true, probabilities, positive)
    loss = metrics.log_loss_terms(true, probabilities)
    return _scores(np.column_stack([terms, brier, loss]), unit, n_units, **options)


def scores_of_label(
    rows: pd.DataFrame, labels: Array, probabilities: Array, **options: int
) -> dict[str, bootstrap.Estimate]:
    """Estimate `ece`, `brier` and `log_loss` of one independent label.

    The ECE is that of the label's probability, not of the likelier answer.

    Args:
      rows: rows of the table, (n,).
      labels: whether each image carries the label, (n,).
      probabilities: of the label, (n,).
      **options: `n_resamples` and `seed` of the bootstrap.
    """
    _, unit, n_units = summary_blocks.resampled_units(rows)
    labels, probabilities = np.asarray(labels, bool), np.asarray(probabilities, np.float64)
    terms = np.eye(BINS)[metrics.calibration_bins(probabilities, BINS)] * (labels - probabilities)[:, None]
    both = np.stack([1 - probabilities, probabilities], axis=1)
    loss = metrics.log_loss_terms(labels.astype(int), both)
    return _scores(np.column_stack([terms, (probabilities - labels) ** 2, loss]), unit, n_units, **options)


def _scores(terms: Array, unit: Array, n_units: int, **options: int) -> dict[str, bootstrap.Estimate]:
    """Estimate the scores from terms (n, BINS + 2): calibration by bin, Brier score, log loss."""
    sums = bootstrap.unit_sums(np.column_stack([terms, np.ones(len(terms))]), unit, n_units)

    def statistic(weights: Array) -> dict[str, Array]:
        weighted = weights @ sums
        total = weighted[:, -1]
        return {
            "ece": metrics.ece_from_sums(weighted[:, :BINS], total),
            "brier": metrics.divide(weighted[:, BINS], total),
            "log_loss": metrics.divide(weighted[:, BINS + 1], total),
        }

    return bootstrap.intervals(statistic, n_units, **options)
