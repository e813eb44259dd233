"""Yes or no: what a threshold makes of a score, and how right predictions are in parts of a table, with intervals."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from histojax.evaluation import bootstrap, metrics, multilabel, summary_blocks
from histojax.evaluation.metrics import Array

_SHOWN = ("accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "gmean")


def at_threshold(rows: pd.DataFrame, there: Array, scores: Array, threshold: float, **options: int) -> dict[str, Any]:
    """What a threshold makes of scores (n,): `threshold`, `confusion` [[tn, fp], [fn, tp]] and figures.

    Args:
      rows: of the table, for its patients, slides or source images, which are resampled.
      there: whether each image is truly positive, (n,).
      scores: probabilities, (n,).
      threshold: the lowest score that counts as positive.
      options: `n_resamples` and `seed` of the bootstrap.
    """
    _, unit, n_units = summary_blocks.resampled_units(rows)
    there = np.asarray(there, bool)
    said = np.asarray(scores) >= threshold
    cells = np.stack([there & said, ~there & said, there & ~said, ~there & ~said], axis=1)
    sums = unit_sums(cells, unit, n_units)

    def statistic(weights: Array) -> dict[summary_blocks.Key, Array]:
        # A cell is an array (r, 1): of one label.
        found = multilabel.ratios(*np.split(weights @ sums, 4, axis=1))
        return {(name,): found[name][:, 0] for name in _SHOWN}

    figures = bootstrap.intervals(statistic, n_units, **options)
    for members in (there, ~there):
        summary_blocks.withdraw_intervals(figures, statistic, members, unit, n_units)
    tp, fp, fn, tn = cells.sum(0).tolist()
    return {"threshold": float(threshold), "confusion": [[tn, fp], [fn, tp]]} | {
        key[0]: figure for key, figure in figures.items()
    }


def shares_by(rows: pd.DataFrame, column: str, right: Mapping[str, Array], **options: int) -> list[dict[str, Any]]:
    """How right the images of each value of a column are, each share with its interval.

    Args:
      rows: of the table.
      column: such as `subtype`; images where it is empty are left out.
      right: name -> whether an image counts as right, (n,), as numbers; nan: it does not enter this share.
      options: as in `at_threshold`.

    Returns:
      A dict a value, sorted: `value, n_images, n_patients` (None if unknown) and the named shares.
    """
    out = []
    names = rows[column].to_numpy().astype(str)
    for value in sorted(set(names.tolist()) - {""}, key=lambda v: (len(v), v) if v[:1].isdigit() else (0, v)):
        here = names == value
        part = rows[here]
        _, unit, n_units = summary_blocks.resampled_units(part)
        terms = np.stack([np.asarray(share, np.float64)[here] for share in right.values()], axis=1)
        known = np.isfinite(terms)
        sums = unit_sums(np.concatenate([np.where(known, terms, 0), known], axis=1), unit, n_units)

        def statistic(weights: Array, sums: Array = sums) -> dict[summary_blocks.Key, Array]:
            right_sums, counts = np.split(weights @ sums, 2, axis=1)
            shares = metrics.divide(right_sums, counts)
            return {(name,): shares[:, i] for i, name in enumerate(right)}

        patients = part["patient_id"]
        out.append(
            {
                "value": value,
                "n_images": len(part),
                "n_patients": int(patients.nunique()) if (patients != "").all() else None,
            }
            | {key[0]: figure for key, figure in bootstrap.intervals(statistic, n_units, **options).items()}
        )
    return out


def unit_sums(terms: Array, unit: Array, n_units: int) -> Array:
    """Sums of terms (n, c) over the images of each unit, (g, c): a resample is then one matrix product."""
    terms = np.asarray(terms, np.float64)
    return np.stack([np.bincount(unit, weights=column, minlength=n_units) for column in terms.T], axis=1)
