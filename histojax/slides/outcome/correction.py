"""Correction of a log hazard ratio for the measured error of the stroma percentage: regression calibration."""

import json
import math
import pathlib
from typing import Any, NamedTuple

from histojax.core.errors import RunError
from histojax.evaluation.summary_blocks import FEW_UNITS
from histojax.evaluation.survival import Z95

ASSUMPTIONS = (
    "the reference of the agreement study is the true percentage, and a percentage of the cohort errs like one of the "
    "agreement study, whatever the outcome",
    "true percentages spread in the cohort as in the agreement study, on which λ depends",
    "the hazard ratio is moderate: the correction is an approximation that is too small for strong associations",
    "other covariates are left aside: the corrected hazard ratio is not adjusted",
)
_SIMILAR = 1.5  # ratio of two standard deviations up to which a slope is carried over without a warning


class Slope(NamedTuple):
    """λ of an agreement study.

    Attributes:
      value: slope of the reference on the predicted percentages.
      standard_error: of the slope.
      low: lower end of its bootstrap interval.
      high: upper end.
      units: units that it rests on.
      predicted_sd: standard deviation of the predicted percentages.
    """

    value: float
    standard_error: float
    low: float
    high: float
    units: int
    predicted_sd: float


def read_slope(path: pathlib.Path) -> Slope:
    """Read the slope of `agreement.json` of `histojax slide agreement`.

    Raises:
      RunError: the file has none, or the slope may be 0, so that dividing by it has no bounds.
    """
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
        units = int(figures["units"])
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not an agreement.json of histojax slide agreement") from error
    if units < FEW_UNITS:
        raise RunError(
            f"{path}: only {units} images were compared, and a correction needs at least {FEW_UNITS}. Drop "
            "--agreement, or compare more images"
        )
    slope = figures.get("slope")
    if slope is None:
        raise RunError(f"{path}: no figure `slope`; run histojax slide agreement of this version again")
    value, spread, low, high = (slope.get(key) for key in ("value", "standard_error", "low", "high"))
    if None in (value, spread, low, high):
        raise RunError(f"{path}: the slope is undefined ({slope.get('reason')}): drop --agreement")
    found = Slope(value, spread, low, high, units, figures["predicted_sd"])
    if min(found.low, found.value - Z95 * found.standard_error) <= 0:
        raise RunError(
            f"{path}: the slope of reference on predicted percentages is {found.value:.2f} (standard error "
            f"{found.standard_error:.2f}, 95 % interval {found.low:.2f} to {found.high:.2f}) and may be 0, so a hazard "
            "ratio divided by it has no bounds. Drop --agreement, or compare more images, or use a better model"
        )
    return found


def correct(beta: float, standard_error: float, slope: Slope) -> tuple[float, float, float]:
    """Return beta / λ with its 95 % interval by Fieller's theorem (Fieller 1954).

    The interval holds every r with |beta − r·λ| ≤ 1.96·√(SE(beta)² + r²·SE(λ)²): the two estimates are independent. It
    is bounded exactly where λ differs from 0, which `read_slope` checks.

    Args:
      beta: log hazard ratio.
      standard_error: of beta.
      slope: λ.
    """
    a = slope.value**2 - (Z95 * slope.standard_error) ** 2
    b = beta * slope.value
    c = beta**2 - (Z95 * standard_error) ** 2
    root = math.sqrt(b**2 - a * c)
    return beta / slope.value, (b - root) / a, (b + root) / a


def corrected(beta: float, standard_error: float, sd: float, slope: Slope) -> dict[str, Any]:
    """The corrected hazard ratio per standard deviation, JSON-able.

    Args:
      beta: log hazard ratio per percentage point.
      standard_error: of beta.
      sd: standard deviation of the cohort's percentages.
      slope: λ.
    """
    value, low, high = (math.exp(sd * end) for end in correct(beta, standard_error, slope))
    figure = {"value": value, "low": low, "high": high, "reason": None}
    return {"hazard_ratio": figure, "slope": slope._asdict(), "assumptions": list(ASSUMPTIONS)}


def spread_warnings(sd: float, slope: Slope) -> list[str]:
    """Warn where the percentages of the cohort, of standard deviation `sd`, spread unlike those of the slope."""
    if 1 / _SIMILAR <= sd / slope.predicted_sd <= _SIMILAR:
        return []
    return [
        f"corrected hazard ratio: the percentages have an SD of {sd:.1f} in the cohort and {slope.predicted_sd:.1f} in "
        "the agreement study; λ depends on that spread and may not carry over"
    ]
