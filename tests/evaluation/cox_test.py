"""Cox's model: equal to lifelines and to the definition of Efron's likelihood, and its intervals hold the truth."""

import math

import numpy as np
import pytest

from histojax.evaluation import cox
from tests.helpers.survival_tables import EXPECTED, patients, simulate

TIME, EVENT, STROMA, ADJUSTED = patients()
COVARIATES = {
    "stroma": STROMA[:, None],
    "high": (STROMA > 50).astype(float)[:, None],
    "adjusted": np.column_stack([STROMA, ADJUSTED]),
    "covariates": ADJUSTED,
}


@pytest.mark.parametrize("name", COVARIATES)
def test_equals_lifelines(name: str) -> None:
    fitted, expected = cox.fit(TIME, EVENT, COVARIATES[name]), EXPECTED["cox"][name]
    np.testing.assert_allclose(fitted.beta, expected["beta"], rtol=1e-7)
    np.testing.assert_allclose(np.sqrt(np.diag(fitted.covariance)), expected["standard_error"], rtol=1e-7)
    assert fitted.log_likelihood == pytest.approx(expected["log_likelihood"], abs=1e-9)
    for column in range(len(fitted.beta)):
        ratio = cox.hazard_ratio(fitted, column)
        ends = expected["low"][column], expected["high"][column]
        assert (ratio.low, ratio.high) == pytest.approx(ends, rel=1e-7)


def efron(beta: np.ndarray, x: np.ndarray) -> float:
    """Efron's log partial likelihood as Therneau and Grambsch (2000), section 3.3, write it."""
    hazard, value, time = np.exp(x @ beta), 0.0, TIME
    for t in np.unique(time[EVENT == 1]):
        at_risk, dead = time >= t, (time == t) & (EVENT == 1)
        value += (x[dead] @ beta).sum()
        d = int(dead.sum())
        value -= sum(math.log(hazard[at_risk].sum() - part / d * hazard[dead].sum()) for part in range(d))
    return value


def test_the_likelihood_its_gradient_and_information_are_those_of_the_definition() -> None:
    x = COVARIATES["adjusted"] / [20, 10, 1, 1]
    beta, step = np.array([0.3, -0.2, 0.5, 0.1]), 1e-5
    value, gradient, information = cox._Likelihood(TIME, EVENT, x)(beta)
    assert value == pytest.approx(efron(beta, x), rel=1e-12)
    unit = np.eye(4) * step
    slopes = [(efron(beta + u, x) - efron(beta - u, x)) / (2 * step) for u in unit]
    np.testing.assert_allclose(gradient, slopes, rtol=1e-6)
    slopes = [
        (cox._Likelihood(TIME, EVENT, x)(beta - u)[1] - cox._Likelihood(TIME, EVENT, x)(beta + u)[1]) / (2 * step)
        for u in unit
    ]
    np.testing.assert_allclose(information, slopes, rtol=1e-6, atol=1e-8)


def test_the_likelihood_ratio() -> None:
    fitted = cox.fit(TIME, EVENT, COVARIATES["adjusted"])
    without = EXPECTED["cox"]["covariates"]["log_likelihood"]
    chi2 = 2 * (EXPECTED["cox"]["adjusted"]["log_likelihood"] - without)
    p = cox.hazard_ratio(fitted, 0, without=without).p
    assert p == pytest.approx(math.erfc(math.sqrt(chi2 / 2)), rel=1e-8)
    assert cox.log_likelihood_without_covariates(TIME, EVENT) == pytest.approx(efron(np.zeros(1), STROMA[:, None]))


def test_a_unit_scales_the_ratio_and_order_and_origin_do_not_matter() -> None:
    fitted = cox.fit(TIME, EVENT, STROMA[:, None])
    ten, one = cox.hazard_ratio(fitted, 0, unit=10), cox.hazard_ratio(fitted, 0)
    assert (ten.ratio, ten.low, ten.high) == pytest.approx((one.ratio**10, one.low**10, one.high**10))
    order = np.random.default_rng(0).permutation(len(TIME))
    shuffled = cox.fit(TIME[order], EVENT[order], 1e4 + STROMA[order, None])
    np.testing.assert_allclose(shuffled.beta, fitted.beta, rtol=1e-9)


def test_an_outlier_does_not_stop_newton() -> None:
    far = STROMA.copy()
    far[0] = 1e7
    fitted = cox.fit(TIME, EVENT, far[:, None])
    value, gradient, _ = cox._Likelihood(TIME, EVENT, far[:, None])(fitted.beta)
    assert abs(gradient[0]) * fitted.covariance[0, 0] ** 0.5 < 1e-6
    assert value == pytest.approx(fitted.log_likelihood)


def test_steps_that_are_too_long_are_halved() -> None:
    rng = np.random.default_rng(1)
    x = rng.lognormal(0, 2, (125, 1))
    time, event = simulate(rng, 2 * np.log(x[:, 0]))
    beta = cox.fit(time, event, x).beta
    gradient, information = cox._Likelihood(time, event, x)(beta)[1:]
    assert abs(gradient[0] / information[0, 0] / beta[0]) < 1e-8


@pytest.mark.parametrize(
    ("covariates", "message"),
    [
        (EVENT[:, None], "no finite maximum"),  # one group has no event
        (-TIME[:, None], "no finite maximum"),  # perfectly ordered
        (np.column_stack([STROMA, EVENT]), "no finite maximum"),
        (np.ones((len(TIME), 1)), "constant or a combination"),
        (np.column_stack([STROMA, ADJUSTED[:, 0], 2 * STROMA - ADJUSTED[:, 0]]), "constant or a combination"),
    ],
)
def test_a_model_without_a_maximum_is_reported(covariates: np.ndarray, message: str) -> None:
    with pytest.raises(cox.NoMaximumError, match=message):
        cox.fit(TIME, EVENT, covariates)


@pytest.mark.parametrize("seed", range(20))
def test_no_events_in_a_group_never_give_a_number(seed: int) -> None:
    rng = np.random.default_rng(seed)
    group = rng.random(80) < rng.uniform(0.1, 0.9)
    time, event = simulate(rng, rng.normal(0, 1, 80))
    event[group] = 0
    with pytest.raises(cox.NoMaximumError):
        cox.fit(time, event, np.column_stack([group, rng.normal(0, 1, 80)]).astype(float))


def test_intervals_hold_the_true_hazard_ratio() -> None:
    """Of 400 cohorts of 150 patients, 92 to 98 % of the intervals of each of two coefficients hold the true one."""
    rng = np.random.default_rng(5)
    truth, held = np.array([0.5, -0.7]), np.zeros(2)
    for _ in range(400):
        x = np.column_stack([rng.normal(0, 1, 150), rng.random(150) < 0.4])
        fitted = cox.fit(*simulate(rng, x @ truth), x)
        held += np.abs(fitted.beta - truth) < 1.96 * np.sqrt(np.diag(fitted.covariance))
    assert ((held / 400 > 0.92) & (held / 400 < 0.98)).all(), held / 400
