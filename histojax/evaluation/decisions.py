"""Decisions at a threshold, and correctness within subgroups of a table, with intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from histojax.evaluation import bootstrap, metrics, multilabel, summary_blocks, thresholds
from histojax.evaluation.metrics import Array

_REPORTED = ("accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "gmean")


def at_threshold(rows: pd.DataFrame, labels: Array, scores: Array, threshold: float, **options: int) -> dict[str, Any]:
    """Evaluate the decisions that a threshold makes of scores.

    Args:
      rows: rows of the table, (n,); their patients, slides or source images are resampled.
      labels: whether each image is truly positive, (n,).
      scores: probabilities, (n,).
      threshold: the lowest score that counts as positive.
      **options: `n_resamples` and `seed` of the bootstrap.

    Returns:
      `threshold`, `confusion` as [[tn, fp], [fn, tp]], and one estimate per metric.
    """
    _, unit, n_units = summary_blocks.resampled_units(rows)
    labels = np.asarray(labels, bool)
    predicted = thresholds.is_positive(scores, threshold)
    cells = np.stack([labels & predicted, ~labels & predicted, labels & ~predicted, ~labels & ~predicted], axis=1)
    sums = bootstrap.unit_sums(cells, unit, n_units)

    def statistic(weights: Array) -> dict[summary_blocks.Key, Array]:
        # Each cell is an array (r, 1): there is one label.
        ratios = multilabel.ratios(*np.split(weights @ sums, 4, axis=1))
        return {(name,): ratios[name][:, 0] for name in _REPORTED}

    estimates = bootstrap.intervals(statistic, n_units, **options)
    for members in (labels, ~labels):
        summary_blocks.withdraw_intervals(estimates, statistic, members, unit, n_units)
    tp, fp, fn, tn = cells.sum(0).tolist()
    return {"threshold": float(threshold), "confusion": [[tn, fp], [fn, tp]]} | {
        key[0]: estimate for key, estimate in estimates.items()
    }


def correctness_by(
    rows: pd.DataFrame, column: str, correctness: Mapping[str, Array], **options: int
) -> list[dict[str, Any]]:
    """Estimate the fraction of correct images for each value of a column.

    Args:
      rows: rows of the table, (n,).
      column: such as `subtype`; images where it is empty are left out.
      correctness: name -> 1 or 0 for each image (n,); nan: the image does not count in this fraction.
      **options: `n_resamples` and `seed` of the bootstrap.

    Returns:
      One dict per value, sorted: `value`, `n_images`, `n_patients` (None if unknown), and an estimate per name.
    """
    out = []
    values = rows[column].to_numpy().astype(str)
    for value in sorted(set(values.tolist()) - {""}, key=lambda v: (len(v), v) if v[:1].isdigit() else (0, v)):
        selected = values == value
        subgroup = rows[selected]
        _, unit, n_units = summary_blocks.resampled_units(subgroup)
        terms = np.stack([np.asarray(term, np.float64)[selected] for term in correctness.values()], axis=1)
        counted = np.isfinite(terms)
        sums = bootstrap.unit_sums(np.concatenate([np.where(counted, terms, 0), counted], axis=1), unit, n_units)

        def statistic(weights: Array, sums: Array = sums) -> dict[summary_blocks.Key, Array]:
            correct, counts = np.split(weights @ sums, 2, axis=1)
            fractions = metrics.divide(correct, counts)
            return {(name,): fractions[:, i] for i, name in enumerate(correctness)}

        patients = subgroup["patient_id"]
        out.append(
            {
                "value": value,
                "n_images": len(subgroup),
                "n_patients": int(patients.nunique()) if (patients != "").all() else None,
            }
            | {key[0]: estimate for key, estimate in bootstrap.intervals(statistic, n_units, **options).items()}
        )
    return out
