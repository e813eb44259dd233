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
MAX_STEPS = 1000  # of the curve


def curve(rows: pd.DataFrame, confidence: Array, correct: Array, **options: int) -> dict[str, Any]:
    """Estimate the selective accuracy at `FRACTIONS`, and the area under its curve.

    Images of the same confidence are one step of the curve: they are answered together. More than `MAX_STEPS` steps are
    joined with their neighbours, which moves the area by less than a thousandth. At a fraction between two steps, all
    images of the further one are answered.

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
    values, step = np.unique(-np.asarray(confidence, np.float64), return_inverse=True)
    n_steps = min(len(values), MAX_STEPS)
    joined = np.arange(len(values)) * n_steps // len(values)
    step, least = joined[step], -values[np.append(np.flatnonzero(np.diff(joined)), len(values) - 1)]
    order = np.argsort(step, kind="stable")
    starts = np.searchsorted(step[order], np.arange(n_steps))
    unit, right = unit[order], np.asarray(correct, np.float64)[order]

    def answered(weights: Array) -> tuple[Array, Array]:
        """Return the fraction of images answered up to each step, and their accuracy, both (r, t)."""
        drawn = weights[:, unit]
        given = np.cumsum(np.add.reduceat(drawn, starts, axis=1), axis=1)
        drawn *= right
        # Nothing is answered only before the first image that was drawn, which adds nothing to the area.
        correctly = np.cumsum(np.add.reduceat(drawn, starts, axis=1), axis=1)
        accuracy = metrics.divide(correctly, given, undefined=0.0)
        return given / given[:, -1:], accuracy

    def steps_of(fractions: Array) -> Array:
        """Return the first step at which the fractions (r, t) reach each of `FRACTIONS`, (r, f)."""
        return np.stack([np.searchsorted(row, np.array(FRACTIONS) - 1e-9) for row in fractions])

    def statistic(weights: Array) -> dict[str, Array]:
        fractions, accuracy = answered(weights)
        area = np.einsum("rt,rt->r", np.diff(fractions, axis=1, prepend=0.0), accuracy)
        at = np.take_along_axis(accuracy, steps_of(fractions), axis=1)
        return {"area": area} | {str(wanted): at[:, i] for i, wanted in enumerate(FRACTIONS)}

    estimates = bootstrap.intervals(statistic, n_units, n_rows=len(rows), **options)
    last = steps_of(answered(np.ones((1, n_units)))[0])[0]
    points = [
        {"fraction": wanted, "accuracy": estimates[str(wanted)], "confidence": float(least[end])}
        for wanted, end in zip(FRACTIONS, last, strict=True)
    ]
    return {"area": estimates["area"], "points": points}
