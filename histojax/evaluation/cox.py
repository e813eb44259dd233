"""Cox's proportional hazards model: Efron's treatment of ties, maximised by Newton-Raphson in float64."""

import math
from typing import NamedTuple

import numpy as np

from histojax.evaluation.metrics import Array
from histojax.evaluation.survival import Z95, chi2_p

_STEPS = 50  # Newton needs under ten; a coefficient that grows without end takes all
_SMALL = 1e-10  # the last step, in standard deviations of the covariates
_MAX_ERROR = 1e3  # standard error on the same scale: without a maximum the information fades to rounding errors


class NoMaximumError(ValueError):
    """The partial likelihood has no finite maximum, as where all events are in one of two groups."""


class CoxFit(NamedTuple):
    """A fitted model of p covariates.

    Attributes:
      beta: log hazard ratio per unit of each covariate, (p,).
      covariance: inverse of the observed information, (p, p).
      log_likelihood: log partial likelihood at `beta`.
    """

    beta: Array
    covariance: Array
    log_likelihood: float


class HazardRatio(NamedTuple):
    """A hazard ratio with its 95 % Wald interval, exp(beta ± 1.96·standard_error); `p` is of the likelihood ratio."""

    beta: float
    standard_error: float
    ratio: float
    low: float
    high: float
    p: float | None


def fit(time: Array, event: Array, covariates: Array) -> CoxFit:
    """Fit hazard(t | x) = hazard0(t)·exp(x·beta) (Cox 1972) with Efron's likelihood (Efron 1977).

    Args:
      time: follow-up, (n,).
      event: 1 or 0, (n,); at least one is 1.
      covariates: (n, p), none constant, none a combination of others.

    Raises:
      NoMaximumError: there is no finite maximum, or covariates are collinear.
    """
    scale = np.where(np.ptp(covariates, axis=0) > 0, covariates.std(0), np.inf)
    x = (covariates - covariates.mean(0)) / scale
    if np.linalg.matrix_rank(x) < x.shape[1]:
        raise NoMaximumError("a covariate is constant or a combination of others")
    likelihood = _Likelihood(time, event, x)
    beta = np.zeros(x.shape[1])
    value, gradient, information = likelihood(beta)
    for _ in range(_STEPS):
        try:
            step = np.linalg.solve(information, gradient)
        except np.linalg.LinAlgError:
            break
        if np.abs(step).max() < _SMALL:
            inverse = np.linalg.inv(information)
            if not all(0 < variance < _MAX_ERROR**2 for variance in np.diag(inverse)):
                break
            return CoxFit(beta / scale, inverse / np.outer(scale, scale), value)
        new = likelihood(beta + step)
        # A skewed covariate makes Newton's step too long. Rounding may lower the likelihood a little at its maximum.
        while not new[0] >= value - 1e-9 * abs(value) and np.abs(step).max() >= _SMALL:
            step = step / 2
            new = likelihood(beta + step)
        beta = beta + step
        value, gradient, information = new
    raise NoMaximumError("the likelihood has no finite maximum")


def log_likelihood_without_covariates(time: Array, event: Array) -> float:
    """Return the log partial likelihood where all patients have the same hazard."""
    return _Likelihood(time, event, np.zeros((len(time), 0)))(np.zeros(0))[0]


def hazard_ratio(fitted: CoxFit, column: int, unit: float = 1.0, without: float | None = None) -> HazardRatio:
    """Return the hazard ratio of one covariate.

    Args:
      fitted: the model.
      column: the covariate.
      unit: the difference that the ratio is for, in the covariate's unit.
      without: log likelihood of the model without this covariate, for the likelihood-ratio test.
    """
    beta = float(fitted.beta[column]) * unit
    error = math.sqrt(float(fitted.covariance[column, column])) * abs(unit)
    p = None if without is None else chi2_p(2 * (fitted.log_likelihood - without))
    ends = math.exp(beta - Z95 * error), math.exp(beta + Z95 * error)
    return HazardRatio(beta, error, math.exp(beta), *ends, p)


class _Likelihood:
    """Efron's log partial likelihood with gradient and information, as a function of beta.

    With d events at a time, the l-th of them (l = 0 … d − 1) has the risk set less l/d of those d patients.
    """

    def __init__(self, time: Array, event: Array, x: Array):
        order = np.argsort(-time, kind="stable")
        self._x = x[order]
        time, self._event = time[order], event[order] == 1
        self._square = self._x[:, :, None] * self._x[:, None, :]
        failed = time[self._event]
        # Rows are in descending time: the risk set of an event ends with the last row of its time.
        self._last = np.searchsorted(-time, -failed, "right") - 1
        self._first = np.searchsorted(-failed, -failed, "left")  # first and one after the last event of that time
        self._end = np.searchsorted(-failed, -failed, "right")
        self._part = (np.arange(len(failed)) - self._first) / (self._end - self._first)

    def __call__(self, beta: Array) -> tuple[float, Array, Array]:
        """Return the value, its gradient (p,), and the information (p, p), the negative second derivative."""
        with np.errstate(all="ignore"):  # a step that is far too long has no finite value, and is halved
            eta = self._x @ beta
            hazard = np.exp(eta)
            s0 = self._sums(hazard)
            s1 = self._sums(hazard[:, None] * self._x) / s0[:, None]
            s2 = self._sums(hazard[:, None, None] * self._square) / s0[:, None, None]
            value = float(eta[self._event].sum() - np.log(s0).sum())
            gradient = (self._x[self._event] - s1).sum(0)
            return value, gradient, (s2 - s1[:, :, None] * s1[:, None, :]).sum(0)

    def _sums(self, values: Array) -> Array:
        """Sum the values of rows over the risk set of each event, less its part of the events of the same time."""
        at_risk = np.cumsum(values, 0)[self._last]
        before = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values[self._event], 0)])
        tied = before[self._end] - before[self._first]
        part = self._part.reshape(-1, *[1] * (values.ndim - 1))
        return np.asarray(at_risk - part * tied)
