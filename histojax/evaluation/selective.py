"""Selective prediction: how accurate the answers are if only the most confident are given.

The curve is the selective accuracy over the fraction of images answered (El-Yaniv and Wiener 2010). One minus the area
under it is the AURC of Geifman and El-Yaniv 2017.
"""

from typing import Any

import numpy as np
import pandas as pd

from histojax.evaluation import bootstrap, metrics, summary_blocks
from histojax.evaluation.metrics import Array

FRACTIONS = tuple(i / 20 for i in range(1, 21))  # of the images, at which the curve is stated


def curve(rows: pd.DataFrame, confidence: Array, correct: Array, **options: int) -> dict[str, Any]:
    """Estimate the selective accuracy at `FRACTIONS`, and the area under its curve.

    Images of the same confidence are answered together: at a fraction between two such steps, all images of the further
    step are.

    Args:
      rows: rows of the table, (n,); their patients, slides or source images are resampled.
      confidence: of each answer, (n,).
      correct: whether each answer is right, (n,).
      **options: `n_resamples` and `seed` of the bootstrap.

    Returns:
      `area`, and `points`: per fraction a dict of `fraction`, the estimate `accuracy`, and `confidence`, the least of
      the answered images.
    """
    _, unit, n_units = summary_blocks.resampled_units(rows)
    ranking = metrics.Ranking(confidence, correct, unit)
    steps = np.unique(np.asarray(confidence))[::-1]

    def answered(weights: Array) -> tuple[Array, Array, Array]:
        right, wrong = ranking.counts(weights)
        given = right + wrong
        return right, given, given / given[:, -1:]

    def step_of(fractions: Array) -> Array:
        """Index of the first step at which the fractions (r, t) reach each of `FRACTIONS`, (r, f)."""
        return np.stack([(fractions < wanted - 1e-9).sum(1) for wanted in FRACTIONS], axis=1)

    def statistic(weights: Array) -> dict[str, Array]:
        right, given, fractions = answered(weights)
        accuracy = metrics.divide(right, given, undefined=0.0)  # no weight is without an answered image
        area = (np.diff(fractions, axis=1, prepend=0.0) * accuracy).sum(1)
        at = np.take_along_axis(metrics.divide(right, given), step_of(fractions), axis=1)
        return {"area": area} | {str(wanted): at[:, i] for i, wanted in enumerate(FRACTIONS)}

    estimates = bootstrap.intervals(statistic, n_units, n_rows=len(rows), **options)
    at = step_of(answered(np.ones((1, n_units)))[2])[0]
    points = [
        {"fraction": wanted, "accuracy": estimates[str(wanted)], "confidence": float(steps[step])}
        for wanted, step in zip(FRACTIONS, at, strict=True)
    ]
    return {"area": estimates["area"], "points": points}
