"""Agreement of two measurements of the same things, such as a predicted and a reference stroma percentage.

Everything is a function of weights, so that the figures and every resample of their bootstrap are the same code.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from histojax.core.errors import RunError
from histojax.evaluation import bootstrap, metrics, summary_blocks
from histojax.evaluation.metrics import Array

MIN_PAIRS = 3
# What each figure is called in a table, in its order.
NAMES = {
    "icc": "ICC(2,1), absolute agreement",
    "bias": "Bland-Altman bias (predicted - reference)",
    "lower_limit": "Bland-Altman lower limit of agreement",
    "upper_limit": "Bland-Altman upper limit of agreement",
    "spearman": "Spearman's rho",
    "mean_absolute_error": "mean absolute error",
}
_ROUNDING = 1e-12  # relative: a variance below it is what rounding leaves of none


class AgreementError(RunError):
    """Measurements that cannot be compared; the message says which and why."""


def agreement(
    predicted: Array, reference: Array, unit: Array | None = None, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Agreement of predicted (n,) with reference (n,), with 95 % percentile intervals over units; ready for JSON.

    `unit` (n,): what is resampled, such as the patient of each; None: each pair. A pair with a nan is left out and
    counted. Returns n, units, left_out, notes, and {value, low, high, reason} for each of NAMES:

    * icc: ICC(2,1), two-way random effects, absolute agreement, one rater: (MSR − MSE) / (MSR + MSE + 2·(MSC − MSE)/n)
      for two raters (Shrout and Fleiss 1979; ICC(A,1) of McGraw and Wong 1996).
    * bias and limits: mean of d = predicted − reference, and mean ∓ 1.96·sd(d), sd over n − 1 (Bland and Altman 1986).
    * spearman: Pearson's correlation of the ranks, ties at their mean rank.
    * mean_absolute_error: mean of |d|.

    What is not defined (fewer than three pairs, measurements that are all alike) is None, with its reason. Raises
    AgreementError where lengths differ or a measurement is infinite.
    """
    predicted, reference = np.asarray(predicted, np.float64), np.asarray(reference, np.float64)
    ids = np.arange(len(predicted)) if unit is None else np.asarray(unit)
    if not (predicted.shape == reference.shape == ids.shape and predicted.ndim == 1):
        raise AgreementError(
            f"agreement needs as many predicted as reference measurements and units; got {predicted.shape}, "
            f"{reference.shape} and {ids.shape}"
        )
    if np.isinf(predicted).any() or np.isinf(reference).any():
        raise AgreementError("agreement needs finite measurements; one is infinite")
    there = ~(np.isnan(predicted) | np.isnan(reference))
    x, y = predicted[there], reference[there]
    names, index = np.unique(ids[there], return_inverse=True)
    out: dict[str, Any] = {"n": len(x), "units": len(names), "left_out": int((~there).sum()), "notes": []}
    if len(x) < MIN_PAIRS:
        reason = f"{len(x)} pair(s) of measurements, and it takes {MIN_PAIRS}"
        return out | {name: {"value": None, "low": None, "high": None, "reason": reason} for name in NAMES}
    found = bootstrap.intervals(_statistic(x, y, index), len(names), n_resamples=resamples, seed=seed, n_rows=len(x))
    for name in NAMES:
        figure, reason = found[name], ""
        if figure["value"] is None:
            reason = (
                "one of the two has the same value throughout"
                if name == "spearman"
                else "nothing differs between pairs"
            )
        elif figure["low"] is None:
            reason = "no interval: it takes two units"
        out[name] = {key: figure[key] for key in ("value", "low", "high")} | {"reason": reason or None}
    if 2 <= len(names) < summary_blocks.FEW_UNITS:
        out["notes"].append(f"{len(names)} units only: the intervals are rough and likely too narrow")
    undefined = max(figure.get("undefined") or 0.0 for figure in found.values())
    if undefined >= 0.01:
        out["notes"].append(f"up to {undefined:.1%} of the resamples have measurements all alike and are left out")
    return out


def lines(figures: dict[str, Any]) -> str:
    """What `agreement` returns as text for the console, a line a figure."""
    width = max(len(title) for title in NAMES.values())
    out = [f"{figures['n']} pairs, {figures['units']} units, {figures['left_out']} left out"]
    for name, title in NAMES.items():
        figure = figures[name]
        text = "-" if figure["value"] is None else f"{figure['value']:.3f}"
        if figure["low"] is not None:
            text += f" [{figure['low']:.3f}, {figure['high']:.3f}]"
        out.append(f"{title:<{width}}  {text}" + (f" ({figure['reason']})" if figure["reason"] else ""))
    return "\n".join(out + figures["notes"])


def _statistic(x: Array, y: Array, index: Array) -> Callable[[Array], dict[str, Array]]:
    """Function from weights (r, units) to every figure (r,)."""
    scale = max(np.abs(x).max(), np.abs(y).max()) ** 2

    def statistic(unit_weights: Array) -> dict[str, Array]:
        w = unit_weights[:, index]
        n = w.sum(1)
        difference, middle = x - y, (x + y) / 2
        bias = metrics.weighted_mean(difference, w)
        spread = metrics.divide((w * (difference - bias[:, None]) ** 2).sum(1), n - 1)
        mean = metrics.weighted_mean(middle, w)
        # Two raters: row means are `middle`, and the residuals ±(d − bias)/2.
        rows = metrics.divide(2 * (w * (middle - mean[:, None]) ** 2).sum(1), n - 1)
        columns, error = n * bias**2 / 2, spread / 2
        total = rows + error + metrics.divide(2 * (columns - error), n)
        half = 1.96 * np.sqrt(spread)
        return {
            "icc": metrics.divide(rows - error, np.where(rows + error > _ROUNDING * scale, total, 0.0)),
            "bias": bias,
            "lower_limit": bias - half,
            "upper_limit": bias + half,
            "spearman": _correlation(_ranks(x, w), _ranks(y, w), w),
            "mean_absolute_error": metrics.weighted_mean(np.abs(difference), w),
        }

    return statistic


def _ranks(values: Array, weights: Array) -> Array:
    """Rank of each value (n,) among values repeated by their weights (r, n), ties at their mean rank, (r, n)."""
    distinct, position = np.unique(values, return_inverse=True)
    counts = np.zeros((len(distinct), len(weights)))
    np.add.at(counts, position, weights.T)
    return (np.cumsum(counts, 0) - counts + (counts + 1) / 2).T[:, position]


def _correlation(a: Array, b: Array, weights: Array) -> Array:
    """Pearson's correlation of a (r, n) and b (r, n) under weights (r, n) -> (r,); nan where one is constant."""
    total = weights.sum(1, keepdims=True)
    a, b = (v - (weights * v).sum(1, keepdims=True) / total for v in (a, b))
    squares = (weights * a**2).sum(1) * (weights * b**2).sum(1)
    return metrics.divide((weights * a * b).sum(1), np.sqrt(squares))
