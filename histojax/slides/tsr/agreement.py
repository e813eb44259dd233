"""Agreement of two measurements of the same things, such as a predicted and a reference stroma percentage.

All figures are functions of weights, so that the same code computes the values and every bootstrap resample.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from histojax.core.errors import RunError
from histojax.core.text_table import text_table
from histojax.evaluation import bootstrap, metrics, summary_blocks
from histojax.evaluation.metrics import Array

MIN_PAIRS = 3
# The title of each figure in a table, in order.
NAMES = {
    "icc": "ICC(2,1), absolute agreement",
    "bias": "Bland-Altman bias (predicted - reference)",
    "lower_limit": "Bland-Altman lower limit of agreement",
    "upper_limit": "Bland-Altman upper limit of agreement",
    "spearman": "Spearman's rho",
    "mean_absolute_error": "mean absolute error",
    "slope": "slope of reference on predicted",
}
_UNDEFINED = {
    "spearman": "one of the two measurements is constant",
    "slope": "the predicted measurements are constant",
}
_ROUNDING = 1e-12  # relative: a smaller variance is zero with rounding errors


class AgreementError(RunError):
    """Measurements that cannot be compared; the message says why."""


def agreement(
    predicted: Array, reference: Array, unit: Array | None = None, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Measure the agreement of predicted with reference values, with 95 % percentile intervals over units.

    The figures are:

    * icc: ICC(2,1), two-way random effects, absolute agreement, one rater: (MSR − MSE) / (MSR + MSE + 2·(MSC − MSE)/n)
      for two raters (Shrout and Fleiss 1979; ICC(A,1) of McGraw and Wong 1996).
    * bias and limits: mean of d = predicted − reference, and mean ∓ 1.96·sd(d), sd over n − 1 (Bland and Altman 1986).
    * spearman: Pearson's correlation of the ranks, ties at their mean rank.
    * mean_absolute_error: mean of |d|.
    * slope: cov(predicted, reference) / var(predicted), the λ of regression calibration (Rosner, Willett and Spiegelman
      1989). Its standard error is a jackknife over units.

    Args:
      predicted: predicted measurements, (n,).
      reference: reference measurements, (n,). A pair with a nan is excluded and counted.
      unit: the unit of each pair that is resampled, such as its patient, (n,); None resamples pairs.
      resamples: number of bootstrap resamples.
      seed: random seed of the bootstrap.

    Returns:
      JSON-able: n, units, left_out, notes, predicted_sd (standard deviation of the predicted measurements), and
      {value, low, high, reason} for each of NAMES, with standard_error for the slope. An undefined figure (fewer than
      three pairs, or constant measurements) is None, with its reason.

    Raises:
      AgreementError: the lengths differ or a measurement is infinite.
    """
    predicted, reference = np.asarray(predicted, np.float64), np.asarray(reference, np.float64)
    ids = np.arange(len(predicted)) if unit is None else np.asarray(unit)
    if not (predicted.shape == reference.shape == ids.shape and predicted.ndim == 1):
        raise AgreementError(
            f"agreement needs as many predicted as reference measurements and units: got shapes {predicted.shape}, "
            f"{reference.shape} and {ids.shape}"
        )
    if np.isinf(predicted).any() or np.isinf(reference).any():
        raise AgreementError("agreement needs finite measurements, but one is infinite")
    complete = ~(np.isnan(predicted) | np.isnan(reference))
    x, y = predicted[complete], reference[complete]
    names, index = np.unique(ids[complete], return_inverse=True)
    out: dict[str, Any] = {"n": len(x), "units": len(names), "left_out": int((~complete).sum()), "notes": []}
    out["predicted_sd"] = float(x.std(ddof=1)) if len(x) > 1 else None
    if len(x) < MIN_PAIRS:
        reason = f"only {len(x)} pair(s) of measurements; at least {MIN_PAIRS} are needed"
        return out | {name: {"value": None, "low": None, "high": None, "reason": reason} for name in NAMES}
    statistic = _statistic(x, y, index)
    intervals = bootstrap.intervals(statistic, len(names), n_resamples=resamples, seed=seed, n_rows=len(x))
    for name in NAMES:
        figure, reason = intervals[name], ""
        if figure["value"] is None:
            reason = _UNDEFINED.get(name, "all pairs are equal")
        elif figure["low"] is None:
            reason = "no interval: at least two units are needed"
        out[name] = {key: figure[key] for key in ("value", "low", "high")} | {"reason": reason or None}
    out["slope"]["standard_error"] = _jackknife_error(statistic, len(names))
    if 2 <= len(names) < summary_blocks.FEW_UNITS:
        out["notes"].append(f"only {len(names)} units: the intervals are rough and likely too narrow")
    undefined = max(figure.get("undefined") or 0.0 for figure in intervals.values())
    if undefined >= 0.01:
        out["notes"].append(f"up to {undefined:.1%} of the resamples have constant measurements and are excluded")
    return out


def lines(figures: dict[str, Any]) -> str:
    """Format the result of `agreement` for the terminal, one line per figure."""
    rows = []
    for name, title in NAMES.items():
        figure = figures[name]
        text = "-" if figure["value"] is None else f"{figure['value']:.3f}"
        if figure["low"] is not None:
            text += f" [{figure['low']:.3f}, {figure['high']:.3f}]"
        rows.append((title, text + (f" ({figure['reason']})" if figure["reason"] else "")))
    head = f"{figures['n']} pairs, {figures['units']} units, {figures['left_out']} excluded"
    return "\n".join([head, *text_table(rows), *figures["notes"]])


def _statistic(x: Array, y: Array, index: Array) -> Callable[[Array], dict[str, Array]]:
    """The function from unit weights (r, units) to every figure (r,)."""
    scale = max(np.abs(x).max(), np.abs(y).max()) ** 2

    def statistic(unit_weights: Array) -> dict[str, Array]:
        w = unit_weights[:, index]
        n = w.sum(1)
        difference, pair_mean = x - y, (x + y) / 2
        bias = metrics.weighted_mean(difference, w)
        spread = metrics.divide((w * (difference - bias[:, None]) ** 2).sum(1), n - 1)
        mean = metrics.weighted_mean(pair_mean, w)
        # Two raters: the row means are `pair_mean`, and the residuals are ±(d − bias)/2.
        rows = metrics.divide(2 * (w * (pair_mean - mean[:, None]) ** 2).sum(1), n - 1)
        columns, error = n * bias**2 / 2, spread / 2
        total = rows + error + metrics.divide(2 * (columns - error), n)
        half = 1.96 * np.sqrt(spread)
        from_mean = x - metrics.weighted_mean(x, w)[:, None]
        squares = (w * from_mean**2).sum(1)
        return {
            "icc": metrics.divide(rows - error, np.where(rows + error > _ROUNDING * scale, total, 0.0)),
            "bias": bias,
            "lower_limit": bias - half,
            "upper_limit": bias + half,
            "spearman": _correlation(_ranks(x, w), _ranks(y, w), w),
            "mean_absolute_error": metrics.weighted_mean(np.abs(difference), w),
            "slope": metrics.divide(
                (w * from_mean * y).sum(1), np.where(squares > n * _ROUNDING * scale, squares, 0.0)
            ),
        }

    return statistic


def _jackknife_error(statistic: Callable[[Array], dict[str, Array]], units: int) -> float | None:
    """Standard error of the slope by leaving out each unit in turn; None if the slope of the rest is undefined."""
    if units < 2:
        return None
    slopes = statistic(1 - np.eye(units))["slope"]
    error = float(np.sqrt((units - 1) / units * ((slopes - slopes.mean()) ** 2).sum()))
    return error if np.isfinite(error) else None


def _ranks(values: Array, weights: Array) -> Array:
    """The rank of each value (n,) if values are repeated by weights (r, n): (r, n); ties get their mean rank."""
    distinct, position = np.unique(values, return_inverse=True)
    counts = np.zeros((len(distinct), len(weights)))
    np.add.at(counts, position, weights.T)
    return (np.cumsum(counts, 0) - counts + (counts + 1) / 2).T[:, position]


def _correlation(a: Array, b: Array, weights: Array) -> Array:
    """Pearson's correlation of a (r, n) and b (r, n) with weights (r, n): (r,); nan if one is constant."""
    total = weights.sum(1, keepdims=True)
    a, b = (v - (weights * v).sum(1, keepdims=True) / total for v in (a, b))
    squares = (weights * a**2).sum(1) * (weights * b**2).sum(1)
    return metrics.divide((weights * a * b).sum(1), np.sqrt(squares))
