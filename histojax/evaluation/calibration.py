"""Whether probabilities mean what they say: reliability diagrams, and one temperature that mends them.

Temperature scaling (Guo et al. 2017): logits are divided by T, which is fitted on validation images by the
log loss and then applied to others. It changes no order, so neither the predicted class nor any AUROC.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from histojax.evaluation import bootstrap, metrics, summary_blocks
from histojax.evaluation.decisions import unit_sums
from histojax.evaluation.metrics import Array

BINS = 15
LOWEST, HIGHEST = 0.05, 20.0  # of a temperature; a validation without an error has no lowest one of its own
_EPS = float(np.finfo(np.float64).tiny)


def softmax_at(probabilities: Array, temperature: float) -> Array:
    """Probabilities (n, k) of one class an image whose logits are divided by the temperature."""
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), _EPS)) / temperature
    terms = np.exp(logits - logits.max(1, keepdims=True))
    return terms / terms.sum(1, keepdims=True)


def sigmoid_at(probabilities: Array, temperature: float) -> Array:
    """Probabilities (n,) of one label, a question of its own, whose logits are divided by the temperature."""
    probabilities = np.asarray(probabilities, np.float64)
    return softmax_at(np.stack([1 - probabilities, probabilities], axis=1), temperature)[:, 1]


def at_temperatures(probabilities: Array, temperatures: Sequence[float]) -> Array:
    """Probabilities (n, k) at one temperature (one class an image), or each of k labels at its own.

    Raises ValueError for another number of temperatures.
    """
    if len(temperatures) == 1 < np.shape(probabilities)[1]:
        return softmax_at(probabilities, temperatures[0])
    columns = zip(np.asarray(probabilities).T, temperatures, strict=True)
    return np.stack([sigmoid_at(column, temperature) for column, temperature in columns], axis=1)


def fit_temperature(true: Array, probabilities: Array) -> float:
    """The temperature that gives class indices (n,) the least log loss under probabilities (n, k).

    Within [LOWEST, HIGHEST]. The loss is convex in 1/T, so its slope has one zero, which is bisected.
    """
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), _EPS))
    of_true = logits[np.arange(len(logits)), np.asarray(true)]

    def slope(inverse: float) -> float:
        """Derivative of the loss by 1/T."""
        return float(((softmax_at(probabilities, 1 / inverse) * logits).sum(1) - of_true).mean())

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
    """The bins of a reliability diagram that hold images: how often the outcome came where it was so probable.

    Args:
      rows: of the table, for its patients, slides or source images, which are resampled.
      scores: probabilities, (n,).
      outcomes: whether it came, boolean, (n,).
      options: `n_resamples` and `seed` of the bootstrap.

    Returns:
      A dict a bin: `low`, `high` (its ends), `n_images`, `mean_probability`, `share` (a figure with its interval).
    """
    _, unit, n_units = summary_blocks.resampled_units(rows)
    scores = np.asarray(scores, np.float64)
    there = np.eye(BINS)[metrics.calibration_bins(scores, BINS)]
    counts = unit_sums(there, unit, n_units)
    came = unit_sums(there * np.asarray(outcomes, bool)[:, None], unit, n_units)
    used = np.flatnonzero(counts.sum(0))

    def statistic(weights: Array) -> dict[int, Array]:
        shares = metrics.divide(weights @ came[:, used], weights @ counts[:, used])
        return {int(b): shares[:, i] for i, b in enumerate(used)}

    figures = bootstrap.intervals(statistic, n_units, **options)
    for b in np.flatnonzero((counts > 0).sum(0) == 1):  # of one patient: there is no spread to see
        figures[int(b)] |= {"low": None, "high": None}
    sums = there.T @ scores
    edges = np.linspace(0, 1, BINS + 1)
    return [
        {
            "low": float(edges[b]),
            "high": float(edges[b + 1]),
            "n_images": int(counts[:, b].sum()),
            "mean_probability": float(sums[b] / counts[:, b].sum()),
            "share": figures[int(b)],
        }
        for b in used
    ]


def scores_of_classes(
    rows: pd.DataFrame, true: Array, probabilities: Array, positive: int | None, **options: int
) -> dict[str, bootstrap.Figure]:
    """`ece`, `brier` and `log_loss` of one class an image, as `results.summarise` defines them, with intervals."""
    _, unit, n_units = summary_blocks.resampled_units(rows)
    terms = metrics.calibration_terms(true, probabilities, BINS)
    brier = metrics.brier_terms(true, probabilities, positive)
    loss = metrics.log_loss_terms(true, probabilities)
    return _scores(np.column_stack([terms, brier, loss]), unit, n_units, **options)


def scores_of_label(rows: pd.DataFrame, there: Array, probabilities: Array, **options: int) -> dict[str, Any]:
    """The same of one label, a question of its own: ECE of its probability (n,), not of the likelier answer."""
    _, unit, n_units = summary_blocks.resampled_units(rows)
    there, probabilities = np.asarray(there, bool), np.asarray(probabilities, np.float64)
    terms = np.eye(BINS)[metrics.calibration_bins(probabilities, BINS)] * (there - probabilities)[:, None]
    both = np.stack([1 - probabilities, probabilities], axis=1)
    loss = metrics.log_loss_terms(there.astype(int), both)
    return _scores(np.column_stack([terms, (probabilities - there) ** 2, loss]), unit, n_units, **options)


def _scores(terms: Array, unit: Array, n_units: int, **options: int) -> dict[str, bootstrap.Figure]:
    sums = unit_sums(np.column_stack([terms, np.ones(len(terms))]), unit, n_units)

    def statistic(weights: Array) -> dict[str, Array]:
        found = weights @ sums
        total = found[:, -1]
        return {
            "ece": metrics.ece_from_sums(found[:, :BINS], total),
            "brier": metrics.divide(found[:, BINS], total),
            "log_loss": metrics.divide(found[:, BINS + 1], total),
        }

    return bootstrap.intervals(statistic, n_units, **options)
