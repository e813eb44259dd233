"""The corrected interval holds the true hazard ratio of simulated cohorts; the uncorrected one does not."""

import json
import math

import numpy as np
import pytest

from histojax.evaluation import cox
from histojax.evaluation.survival import Z95
from histojax.slides.outcome import correction
from histojax.slides.tsr import agreement
from tests.conftest import ROOT
from tests.helpers.survival_tables import simulate

SD = 15.0  # of the true percentages
PUBLISHED = json.loads((ROOT / "benchmarks" / "results" / "outcome_coverage.json").read_text())["rows"]


def coverage(
    ratio: float, pairs: int, patients: int = 300, error: float = SD, cohorts: int = 400
) -> tuple[float, float]:
    """Fraction of cohorts whose uncorrected and corrected 95 % interval holds the true hazard ratio.

    Args:
      ratio: true hazard ratio per SD of the true percentage.
      pairs: images of each agreement study.
      patients: patients of each cohort; about 60 % have an event.
      error: standard deviation of the measurement error; at SD the slope is 0.5.
      cohorts: simulated cohorts, each with an agreement study of its own.
    """
    rng = np.random.default_rng(1)
    truth, held = math.log(ratio) / SD, np.zeros(2)
    for _ in range(cohorts):
        reference = rng.normal(50, SD, pairs)
        figure = agreement.agreement(reference + rng.normal(0, error, pairs), reference, resamples=1)["slope"]
        slope = correction.Slope(figure["value"], figure["standard_error"], 0.0, 0.0, pairs, SD)
        true = rng.normal(50, SD, patients)
        fitted = cox.fit(*simulate(rng, truth * (true - 50)), (true + rng.normal(0, error, patients))[:, None])
        beta, standard_error = float(fitted.beta[0]), math.sqrt(fitted.covariance[0, 0])
        _, low, high = correction.correct(beta, standard_error, slope)
        held += [abs(beta - truth) < Z95 * standard_error, low < truth < high]
    return float(held[0] / cohorts), float(held[1] / cohorts)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_coverage_is_as_published(name: str) -> None:
    row = PUBLISHED[name]
    uncorrected, corrected = coverage(row["ratio"], row["pairs"])
    assert 100 * uncorrected == pytest.approx(row["uncorrected"], abs=1)
    assert 100 * corrected == pytest.approx(row["corrected"], abs=1)


def test_the_corrected_interval_holds_a_moderate_hazard_ratio() -> None:
    uncorrected, corrected = coverage(1.5, pairs=60)
    assert 0.92 < corrected < 0.98
    assert uncorrected < 0.3


def test_without_measurement_error_nothing_changes() -> None:
    uncorrected, corrected = coverage(1.5, pairs=60, error=1e-6, cohorts=200)
    assert uncorrected == corrected
    assert 0.9 < corrected < 0.99
