"""Kaplan-Meier, log-rank and Harrell's C: equal to lifelines, to scipy, to values by hand and to the definition."""

import math

import numpy as np
import pytest
import scipy.stats

from histojax.evaluation import bootstrap, survival
from tests.helpers.survival_tables import EXPECTED, patients

TIME, EVENT, STROMA, _ = patients()
HIGH = STROMA > 50
ONE = np.ones((1, len(TIME)))


@pytest.mark.parametrize(("name", "group"), [("high", HIGH), ("low", ~HIGH)])
def test_curves_equal_lifelines(name: str, group: np.ndarray) -> None:
    curve, expected = survival.kaplan_meier(TIME[group], EVENT[group]), EXPECTED["curves"][name]
    for field in ("time", "at_risk", "survival", "low", "high"):
        np.testing.assert_allclose(getattr(curve, field), expected[field], rtol=1e-12, err_msg=field)
    assert survival.median(curve) == tuple(expected["median"])
    assert curve.events.sum() == EVENT[group].sum()
    assert curve.events.sum() + curve.censored.sum() == group.sum()


def test_a_curve_by_hand() -> None:
    # Six at risk, one event: 5/6. A patient who is censored at 2 is at risk there. Then 3 at risk, two events: 1/3.
    curve = survival.kaplan_meier(np.array([1, 2, 2, 4, 4, 5]), np.array([1, 1, 0, 1, 1, 0]))
    assert curve.at_risk.tolist() == [6, 5, 3, 1]
    np.testing.assert_allclose(curve.survival, [5 / 6, 2 / 3, 2 / 9, 2 / 9])
    half = 1.959963984540054 * math.sqrt(1 / 30 + 1 / 20) / math.log(2 / 3)
    np.testing.assert_allclose([curve.high[1], curve.low[1]], [(2 / 3) ** math.exp(half), (2 / 3) ** math.exp(-half)])


def test_ends_of_a_curve() -> None:
    dead = survival.kaplan_meier(np.array([1.0, 2.0]), np.array([1.0, 1.0]))
    assert dead.survival[-1] == 0
    assert np.isnan([dead.low[-1], dead.high[-1]]).all(), "Greenwood's variance is infinite"
    alive = survival.kaplan_meier(np.array([1.0, 2.0]), np.array([0.0, 0.0]))
    assert alive.low.tolist() == alive.high.tolist() == [1, 1]
    assert survival.median(alive) == (None, None, None)


def test_log_rank_equals_lifelines_and_scipy() -> None:
    result = survival.log_rank(TIME, EVENT, HIGH)
    assert result is not None
    assert result.chi2 == pytest.approx(EXPECTED["log_rank"]["chi2"], rel=1e-10)
    assert result.p == pytest.approx(EXPECTED["log_rank"]["p"], rel=1e-10)
    samples = [scipy.stats.CensoredData.right_censored(TIME[g], EVENT[g] == 0) for g in (HIGH, ~HIGH)]
    other = scipy.stats.logrank(*samples)
    assert (result.chi2, result.p) == pytest.approx((other.statistic**2, other.pvalue), rel=1e-10)
    mirrored = survival.log_rank(TIME, EVENT, ~HIGH)
    assert mirrored is not None
    assert mirrored.chi2 == pytest.approx(result.chi2)
    assert result.observed - result.expected == pytest.approx(mirrored.expected - mirrored.observed)


def test_groups_that_are_never_at_risk_together_cannot_be_compared() -> None:
    time, event = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 0.0, 1.0, 1.0])
    assert survival.log_rank(time, event, np.array([True, True, False, False])) is None


def by_definition(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    """Harrell's C, pair by pair."""
    concordant = comparable = 0.0
    for i in range(len(time)):
        for j in range(len(time)):
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                comparable += 1
                concordant += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return concordant / comparable


def test_concordance_equals_lifelines_and_the_definition() -> None:
    value = survival.concordance(TIME, EVENT, STROMA)(ONE)["c"]
    assert value == pytest.approx(EXPECTED["concordance"], abs=1e-12)
    tied = np.round(STROMA, -1)
    assert survival.concordance(TIME, EVENT, tied)(ONE)["c"] == pytest.approx(by_definition(TIME, EVENT, tied))


def test_concordance_keeps_its_direction() -> None:
    value = survival.concordance(TIME, EVENT, STROMA)(ONE)["c"]
    assert survival.concordance(TIME, EVENT, -STROMA)(ONE)["c"] == pytest.approx(1 - value)
    assert value > 0.5


def test_a_weight_repeats_a_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survival, "_PAIRS", 200)  # several blocks of rows
    (weights,) = bootstrap.weight_chunks(len(TIME), 20, 3)
    values = survival.concordance(TIME, EVENT, STROMA)(weights)["c"]
    for w, value in zip(weights.astype(int), values, strict=True):
        rows = np.repeat(np.arange(len(TIME)), w)
        assert value == pytest.approx(by_definition(TIME[rows], EVENT[rows], STROMA[rows]), abs=1e-12)


def test_concordance_without_a_comparable_pair_is_undefined() -> None:
    assert np.isnan(survival.concordance(TIME, np.zeros_like(EVENT), STROMA)(ONE)["c"])


def test_p_of_chi2_equals_scipy() -> None:
    for chi2 in (0.0, 0.3, 3.84, 60.0):
        assert survival.chi2_p(chi2) == pytest.approx(scipy.stats.chi2.sf(chi2, 1), rel=1e-10)


def test_numbers_at_risk_count_those_who_leave_at_that_time() -> None:
    assert survival.number_at_risk(np.array([0, 2, 2.5, 9]), np.array([1.0, 2.0, 2.0, 3.0])) == [4, 3, 1, 0]
