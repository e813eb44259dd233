"""Right-censored survival: Kaplan-Meier curves, the log-rank test, and Harrell's concordance.

Every function takes `time` (n,), the follow-up of each patient, all above 0 and in one unit, and `event` (n,), 1 where
the event was observed at that time and 0 where follow-up ended without it. A patient who is censored at a time is at
risk at that time.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from histojax.evaluation import metrics
from histojax.evaluation.metrics import Array

Z95 = 1.959963984540054  # normal quantile of a two-sided 95 % interval
_PAIRS = 1 << 22  # pairs of patients compared at a time: 32 MB per array


class Curve(NamedTuple):
    """A Kaplan-Meier curve at the distinct times of a group, in order; arrays (t,).

    Attributes:
      time: the times.
      at_risk: patients whose time is at or after each.
      events: events at each.
      censored: patients who are censored at each.
      survival: estimated probability of no event up to and including each.
      low: lower end of its 95 % interval; nan once the survival is 0.
      high: upper end.
    """

    time: Array
    at_risk: Array
    events: Array
    censored: Array
    survival: Array
    low: Array
    high: Array


def kaplan_meier(time: Array, event: Array) -> Curve:
    """Estimate survival by the product-limit estimator (Kaplan and Meier 1958).

    The interval is Greenwood's variance on the scale log(−log S): S^exp(±1.96·√V / log S), with V the sum of
    d / (n·(n − d)) over the times so far (Kalbfleisch and Prentice 1980). It stays within [0, 1].
    """
    times, position = np.unique(time, return_inverse=True)
    events = np.bincount(position, weights=event)
    leaving = np.bincount(position)
    at_risk = len(time) - np.cumsum(leaving) + leaving
    survival = np.cumprod(1 - events / at_risk)
    variance = np.cumsum(metrics.divide(events, at_risk * (at_risk - events), undefined=np.inf))
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.exp(np.outer([1, -1], Z95 * np.sqrt(variance) / np.abs(np.log(survival))))
        low, high = survival**exponent  # 1 where the survival is 1, nan where it is 0: the exponent is nan there
    return Curve(times, at_risk, events.astype(int), (leaving - events).astype(int), survival, low, high)


def median(curve: Curve) -> tuple[float | None, float | None, float | None]:
    """Return the median time with its 95 % interval: where the survival, its lower and its upper end reach 0.5.

    Each is None where the curve does not fall that far (Brookmeyer and Crowley 1982, on the scale of `kaplan_meier`).
    """

    def first(values: Array) -> float | None:
        reached = np.flatnonzero(values <= 0.5)
        return float(curve.time[reached[0]]) if len(reached) else None

    return first(curve.survival), first(curve.low), first(curve.high)


class LogRank(NamedTuple):
    """The log-rank test of two groups.

    Attributes:
      observed: events in the group.
      expected: events in the group if both had the same hazard.
      chi2: with one degree of freedom.
      p: two-sided.
    """

    observed: int
    expected: float
    chi2: float
    p: float


def log_rank(time: Array, event: Array, group: Array) -> LogRank | None:
    """Compare the hazards of a group, boolean (n,), and of the other patients (Mantel 1966).

    The variance is hypergeometric, which is right with ties. Without any time with events at which both groups are at
    risk there is nothing to compare: None.
    """
    times = np.unique(time[event == 1])
    at_risk, at_risk_group = (_at_risk(times, time[which]) for which in (slice(None), group))
    events = _counts(times, time[event == 1])
    fraction = at_risk_group / at_risk
    expected = float((events * fraction).sum())
    variance = metrics.divide(events * fraction * (1 - fraction) * (at_risk - events), at_risk - 1, undefined=0.0).sum()
    if variance <= 0:
        return None
    observed = int(event[group].sum())
    chi2 = float((observed - expected) ** 2 / variance)
    return LogRank(observed, expected, chi2, chi2_p(chi2))


def chi2_p(chi2: float) -> float:
    """Upper tail probability of χ² with one degree of freedom."""
    return math.erfc(math.sqrt(max(chi2, 0.0) / 2))


def number_at_risk(times: Array, time: Array) -> list[int]:
    """Count the patients whose time is at or after each of `times`."""
    return [int(n) for n in _at_risk(np.asarray(times), time)]


def concordance(time: Array, event: Array, risk: Array) -> Callable[[Array], dict[str, Array]]:
    """Return Harrell's C as a function of patients' weights (r, n), for a bootstrap: {"c": (r,)}.

    C is the fraction of comparable pairs in which the patient of higher risk has the earlier event (Harrell et al.
    1996). A pair is comparable where the earlier time is an event, or where of two equal times one is an event. Equal
    risks count half. The direction is fixed: C below 0.5 means that a higher risk goes with longer survival.

    Args:
      time: follow-up, (n,).
      event: 1 or 0, (n,).
      risk: predicted risk, (n,); higher means earlier.
    """
    first = np.flatnonzero(event == 1)
    rows = max(1, _PAIRS // len(time))

    def statistic(weights: Array) -> dict[str, Array]:
        concordant, comparable = np.zeros(len(weights)), np.zeros(len(weights))
        for start in range(0, len(first), rows):
            i = first[start : start + rows]
            pairs = (time[i, None] < time) | ((time[i, None] == time) & (event == 0))
            score = np.where(risk[i, None] == risk, 0.5, risk[i, None] > risk) * pairs
            comparable += (weights[:, i] * (weights @ pairs.T)).sum(1)
            concordant += (weights[:, i] * (weights @ score.T)).sum(1)
        return {"c": metrics.divide(concordant, comparable)}

    return statistic


def _at_risk(times: Array, time: Array) -> Array:
    return len(time) - np.searchsorted(np.sort(time), times, "left")


def _counts(times: Array, time: Array) -> Array:
    """How often each of the sorted `times` occurs in `time`."""
    return np.bincount(np.searchsorted(times, time), minlength=len(times))
