"""Figures of a cohort: curves, tests, hazard ratios and concordance, each with its interval or the reason why not."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from histojax.core.errors import RunError
from histojax.evaluation import bootstrap, cox, paired, survival
from histojax.evaluation.metrics import Array
from histojax.slides.outcome import correction
from histojax.slides.outcome.covariates import Covariate, covariates
from histojax.slides.outcome.spec import EVENTS_PER_COEFFICIENT, FORMULAS, MIN_EVENTS, OutcomeSpec
from histojax.slides.outcome.tables import Patient
from histojax.slides.tsr.spec import CUTOFFS, Cutoff

LOW, HIGH = "stroma-low", "stroma-high"
# Steps of the axis of time that read well, by unit.
_STEPS = {
    "days": (1, 7, 30, 90, 180, 365, 730, 1825),
    "weeks": (1, 4, 13, 26, 52, 104, 260),
    "months": (1, 3, 6, 12, 24, 36, 60),
    "years": (0.25, 0.5, 1, 2, 5, 10),
}
_MAX_STEPS = 6


class _Cohort(NamedTuple):
    """The patients that are analysed, arrays (n,)."""

    time: Array
    event: Array
    stroma: Array
    covariates: list[Covariate]

    @property
    def sd(self) -> float:
        return float(self.stroma.std(ddof=1))


def analyse(patients: Sequence[Patient], spec: OutcomeSpec, slope: correction.Slope | None = None) -> dict[str, Any]:
    """Compute every figure.

    Args:
      patients: those that are analysed.
      spec: how.
      slope: of an agreement study, for the corrected hazard ratio; None for none.

    Returns:
      JSON-able. A figure that cannot be determined is None, with its reason. `warnings` are for every output.

    Raises:
      RunError: there are too few events, all percentages are equal, or a covariate cannot be used.
    """
    time, event, stroma = (
        np.array([getattr(patient, name) for patient in patients], np.float64)
        for name in ("time", "event", "percentage")
    )
    events = int(event.sum())
    if events < MIN_EVENTS:
        raise RunError(
            f"{events} events in {len(patients)} patients: at least {MIN_EVENTS} are needed. Follow the patients for "
            "longer, or add patients"
        )
    if np.ptp(stroma) == 0:
        raise RunError(f"all {len(patients)} patients have the stroma percentage {stroma[0]:g}: nothing to compare")
    cohort = _Cohort(time, event, stroma, covariates(patients, spec))
    per_sd = _model(cohort, stroma, cohort.sd)
    cutoffs = {name: _by_cutoff(cohort, rule, spec) for name, rule in spec.rules().items()}
    tested = _adjust_p(cutoffs)
    out: dict[str, Any] = {
        "patients": len(patients),
        "events": events,
        "time_unit": spec.time_unit,
        "median_follow_up": survival.median(survival.kaplan_meier(time, 1 - event))[0],
        "stroma_percentage": {
            "mean": float(stroma.mean()),
            "sd": cohort.sd,
            "min": float(stroma.min()),
            "median": float(np.median(stroma)),
            "max": float(stroma.max()),
        },
        "per_sd": per_sd,
        "cutoffs": cutoffs,
        "concordance": _concordance(cohort, spec),
        "corrected": _corrected(per_sd, cohort, slope),
        "formulas": FORMULAS,
    }
    warnings = _few_events(events, len(cohort.covariates)) + _about_cutoffs(spec, tested)
    return out | {"warnings": warnings + _about_correction(cohort, patients, slope)}


def _by_cutoff(cohort: _Cohort, rule: Cutoff, spec: OutcomeSpec) -> dict[str, Any]:
    """Curves of both groups, numbers at risk, log-rank test and hazard ratio of a cut-off."""
    high = np.asarray(rule.high(cohort.stroma))
    ticks = axis_ticks(float(cohort.time.max()), spec.time_unit)
    out: dict[str, Any] = {"rule": rule.rule, "groups": {}, "at_risk": {"time": ticks}}
    for name, group in ((LOW, ~high), (HIGH, high)):
        time, event = cohort.time[group], cohort.event[group]
        out["at_risk"][name] = survival.number_at_risk(np.array(ticks), time)
        out["groups"][name] = {"patients": int(group.sum()), "events": int(event.sum())} | _curve(time, event)
    reason = None
    if high.all() or not high.any():
        reason = f"all patients are {HIGH if high.all() else LOW}"
    test = None if reason else survival.log_rank(cohort.time, cohort.event, high)
    out["log_rank"] = {"chi2": None, "p": None, "reason": reason or "the groups are never at risk together"}
    if test is not None:
        out["log_rank"] = {"chi2": test.chi2, "p": test.p, "reason": None}
    return out | {"hazard_ratio": _model(cohort, high.astype(np.float64), 1.0, reason)}


def _curve(time: Array, event: Array) -> dict[str, Any]:
    """A Kaplan-Meier curve and its median, JSON-able."""
    if not len(time):
        return {"median": _figure(reason="no patient"), "curve": None}
    curve = survival.kaplan_meier(time, event)
    value, low, high = survival.median(curve)
    reason = "the curve does not fall to 0.5" if value is None else None
    points = {name: [_number(v) for v in values] for name, values in curve._asdict().items()}
    return {"median": _figure(value, low, high, reason), "curve": points}


def _model(cohort: _Cohort, x: Array, unit: float, reason: str | None = None) -> dict[str, Any]:
    """The hazard ratio of x per `unit`, alone and, with covariates, adjusted.

    Args:
      cohort: the patients.
      x: percentage, or 1 for stroma-high, (n,).
      unit: difference in x that the ratio is for.
      reason: why there is none, if that is known before.
    """
    out = {"unadjusted": _fitted(cohort, x, unit, [], reason)}
    if cohort.covariates:
        out["adjusted"] = _fitted(cohort, x, unit, cohort.covariates, reason)
    return out


def _fitted(cohort: _Cohort, x: Array, unit: float, others: Sequence[Covariate], reason: str | None) -> dict[str, Any]:
    """One Cox model: the hazard ratio of x, and those of the covariates."""
    out: dict[str, Any] = {"events": int(cohort.event.sum()), "coefficients": 1 + len(others), "unit": unit}
    empty: dict[str, Any] = {"beta": None, "standard_error": None, "p": None, "covariates": []}
    if reason is not None:
        return out | {"hazard_ratio": _figure(reason=reason)} | empty
    matrix = np.column_stack([x, *(other.values for other in others)])
    try:
        fitted = cox.fit(cohort.time, cohort.event, matrix)
        without = (
            cox.fit(cohort.time, cohort.event, matrix[:, 1:]).log_likelihood
            if others
            else cox.log_likelihood_without_covariates(cohort.time, cohort.event)
        )
    except cox.NoMaximumError as error:
        return out | {"hazard_ratio": _figure(reason=_why_not(error, cohort, x, others))} | empty
    one, ratio = cox.hazard_ratio(fitted, 0), cox.hazard_ratio(fitted, 0, unit, without)
    out["hazard_ratio"] = _figure(ratio.ratio, ratio.low, ratio.high)
    out |= {"beta": one.beta, "standard_error": one.standard_error, "p": ratio.p, "covariates": []}
    for column, other in enumerate(others, start=1):
        ratio = cox.hazard_ratio(fitted, column)
        figure = _figure(ratio.ratio, ratio.low, ratio.high)
        out["covariates"].append({"name": other.name, "reference": other.reference, "hazard_ratio": figure})
    return out


def _why_not(error: Exception, cohort: _Cohort, x: Array, others: Sequence[Covariate]) -> str:
    """Why a model has no estimate: the groups in which no patient has an event, if that is it."""
    groups = [("stroma-high", x)] if set(x) <= {0, 1} else []
    groups += [(other.name, other.values) for other in others if other.reference is not None]
    alone = [
        f"no patient {'of' if inside else 'outside'} {name} has an event"
        for name, values in groups
        for inside in (1, 0)
        if not cohort.event[values == inside].any()
    ]
    return f"no estimate: {'; '.join(alone) or error}"


def _concordance(cohort: _Cohort, spec: OutcomeSpec) -> dict[str, Any]:
    statistic = survival.concordance(cohort.time, cohort.event, cohort.stroma)
    n = len(cohort.time)
    found = bootstrap.intervals(statistic, n, n_resamples=spec.resamples, seed=spec.seed)["c"]
    if found["value"] is None:
        return _figure(reason="no two patients can be compared")
    if found["low"] == found["high"]:  # all pairs agree, which is no certainty
        return _figure(found["value"], reason="no interval: all resamples are equal")
    return _figure(found["value"], found["low"], found["high"])


def _corrected(per_sd: dict[str, Any], cohort: _Cohort, slope: correction.Slope | None) -> dict[str, Any] | None:
    if slope is None:
        return None
    model = per_sd["unadjusted"]
    if model["beta"] is None:
        return {"hazard_ratio": model["hazard_ratio"], "slope": slope._asdict(), "assumptions": []}
    return correction.corrected(model["beta"], model["standard_error"], cohort.sd, slope)


def _adjust_p(cutoffs: dict[str, dict[str, Any]]) -> int:
    """Add Holm's p values where several cut-offs were tested; return how many were."""
    tested = [block["log_rank"] for block in cutoffs.values() if block["log_rank"]["p"] is not None]
    if len(tested) > 1:
        for block, p in zip(tested, paired.holm([block["p"] for block in tested]), strict=True):
            block["p_holm"] = p
    return len(tested)


def _few_events(events: int, covariates: int) -> list[str]:
    """A warning for each model with fewer events than its number of coefficients asks for."""
    models = [("", 1), ("adjusted ", 1 + covariates)] if covariates else [("", 1)]
    return [
        f"{events} events for {n} coefficient{'s' * (n > 1)} of the {name}model: with fewer than "
        f"{EVENTS_PER_COEFFICIENT} per coefficient, hazard ratios and intervals are unreliable"
        for name, n in models
        if events < EVENTS_PER_COEFFICIENT * n
    ]


def _about_cutoffs(spec: OutcomeSpec, tested: int) -> list[str]:
    """Warnings about cut-offs of the user's own, and about several."""
    warnings = []
    if own := [name for name in spec.cutoffs if name not in CUTOFFS]:
        warnings.append(
            f"cut-off {', '.join(own)} %: valid only if it was fixed before these outcomes were seen, and not chosen "
            "among others by its p value"
        )
    if tested > 1:
        warnings.append(f"{tested} cut-offs were tested: use the p values that Holm's method adjusts")
    return warnings


def _about_correction(cohort: _Cohort, patients: Sequence[Patient], slope: correction.Slope | None) -> list[str]:
    """Warnings about the corrected hazard ratio."""
    if slope is None:
        return []
    warnings = correction.spread_warnings(cohort.sd, slope)
    if several := sum(len(patient.slides) > 1 for patient in patients):
        warnings.append(
            f"corrected hazard ratio: {several} patients have several slides, whose combined percentage errs "
            "differently from a single one"
        )
    return warnings


def axis_ticks(longest: float, unit: str) -> list[float]:
    """Times from 0 for an axis up to the longest follow-up, at most eight."""
    steps = _STEPS[unit]
    step = next((step for step in steps if longest / step <= _MAX_STEPS), None)
    if step is None:
        step = steps[-1] * int(np.ceil(longest / steps[-1] / _MAX_STEPS))
    return [float(i * step) for i in range(int(longest / step) + 1)]


def _figure(
    value: float | None = None, low: float | None = None, high: float | None = None, reason: str | None = None
) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "reason": reason}


def _number(value: Any) -> float | int | None:
    """A number of an array, JSON-able; None for nan."""
    return None if np.isnan(value) else value.item()
