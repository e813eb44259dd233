"""ICC, Bland-Altman, Spearman and mean absolute error, by hand, by an independent ANOVA and by scipy."""

import json

import numpy as np
import pytest
import scipy.stats

from histojax.evaluation import bootstrap
from histojax.slides.tsr import agreement

# Shrout and Fleiss 1979, table 2: four judges of six targets; ICC(2,1) of all four is published as 0.29.
SHROUT_FLEISS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float
)


def icc_by_anova(ratings):
    """ICC(2,1) of ratings (n, k) from the full two-way table, as Shrout and Fleiss write it."""
    n, k = ratings.shape
    grand = ratings.mean()
    rows, columns = ratings.mean(1), ratings.mean(0)
    msr = k * ((rows - grand) ** 2).sum() / (n - 1)
    msc = n * ((columns - grand) ** 2).sum() / (k - 1)
    residual = ratings - rows[:, None] - columns[None] + grand
    mse = (residual**2).sum() / ((n - 1) * (k - 1))
    return (msr - mse) / (msr + (k - 1) * mse + k * (msc - mse) / n)


def pairs(n=40, seed=0, bias=3.0):
    rng = np.random.default_rng(seed)
    reference = rng.uniform(0, 100, n).round()
    return (reference + rng.normal(bias, 10, n)).round(), reference


def values(figures):
    return {name: figures[name]["value"] for name in agreement.NAMES}


def test_the_analysis_of_variance_here_gives_the_published_figure():
    assert round(icc_by_anova(SHROUT_FLEISS), 2) == 0.29


@pytest.mark.parametrize("judges", [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
def test_icc_of_two_judges_equals_the_analysis_of_variance(judges):
    two = SHROUT_FLEISS[:, judges]
    figures = agreement.agreement(two[:, 0], two[:, 1], resamples=10)
    assert figures["icc"]["value"] == pytest.approx(icc_by_anova(two), abs=1e-12)


def test_by_hand():
    # d = 2, 0, 4, 2: mean 2, squares of d - 2 are 0, 4, 4, 0, so sd = sqrt(8 / 3) = 1.63299.
    # Row means 11, 20, 32, 41 around 26: 225 + 36 + 36 + 225 = 522, MSR = 2 * 522 / 3 = 348.
    # MSE = 8 / 2 / 3 = 4/3; MSC = 4 * 2^2 / 2 = 8.
    # ICC = (348 - 4/3) / (348 + 4/3 + 2 * (8 - 4/3) / 4) = 346.667 / 352.667 = 0.982987.
    figures = values(agreement.agreement([12, 20, 34, 42], [10, 20, 30, 40], resamples=10))
    assert figures["icc"] == pytest.approx(0.982987, abs=1e-6)
    assert figures["bias"] == 2
    assert figures["lower_limit"] == pytest.approx(2 - 1.96 * 1.63299, abs=1e-4)
    assert figures["upper_limit"] == pytest.approx(2 + 1.96 * 1.63299, abs=1e-4)
    assert figures["mean_absolute_error"] == 2
    assert figures["spearman"] == pytest.approx(1)


def test_a_constant_difference_lowers_absolute_agreement_and_no_rank():
    _, y = pairs()
    moved = values(agreement.agreement(y + 30, y, resamples=10))
    assert moved["spearman"] == pytest.approx(1)
    assert moved["icc"] < 0.75
    assert moved["bias"] == pytest.approx(30)
    assert moved["upper_limit"] - moved["lower_limit"] == pytest.approx(0, abs=1e-9)


def test_every_resample_equals_scipy_and_the_analysis_of_variance_on_the_repeated_rows():
    x, y = pairs(24)
    unit = np.repeat(["a", "b", "c", "d", "e", "f"], [1, 2, 3, 4, 6, 8])
    figures = agreement.agreement(x, y, unit, resamples=50, seed=4)
    assert (figures["n"], figures["units"]) == (24, 6)
    _, index = np.unique(unit, return_inverse=True)
    expected = {"icc": [], "spearman": [], "bias": [], "upper_limit": [], "mean_absolute_error": [], "slope": []}
    (weights,) = bootstrap.weight_chunks(6, 50, 4)
    for w in weights.astype(int):
        rows = np.repeat(np.arange(24), w[index])
        d = x[rows] - y[rows]
        expected["icc"].append(icc_by_anova(np.stack([x[rows], y[rows]], 1)))
        expected["spearman"].append(scipy.stats.spearmanr(x[rows], y[rows]).statistic)
        expected["bias"].append(d.mean())
        expected["upper_limit"].append(d.mean() + 1.96 * d.std(ddof=1))
        expected["mean_absolute_error"].append(np.abs(d).mean())
        expected["slope"].append(scipy.stats.linregress(x[rows], y[rows]).slope)
    for name, resampled in expected.items():
        ends = [figures[name]["low"], figures[name]["high"]]
        np.testing.assert_allclose(ends, np.percentile(resampled, [2.5, 97.5]), rtol=1e-9)


def test_spearman_equals_scipy_with_ties():
    x, y = pairs(60)
    x, y = np.round(x, -1), np.round(y, -1)
    assert len(np.unique(x)) < 20
    value = agreement.agreement(x, y, resamples=10)["spearman"]["value"]
    assert value == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)


def test_the_standard_error_of_the_slope_leaves_out_each_unit_once():
    x, y = pairs(24)
    unit = np.repeat(np.arange(8), 3)
    slope = agreement.agreement(x, y, unit)["slope"]
    kept = [unit != one for one in range(8)]
    without = np.array([scipy.stats.linregress(x[rows], y[rows]).slope for rows in kept])
    assert slope["standard_error"] == pytest.approx(np.sqrt(7 / 8 * ((without - without.mean()) ** 2).sum()))
    independent = scipy.stats.linregress(*pairs(400))
    assert agreement.agreement(*pairs(400))["slope"]["standard_error"] == pytest.approx(independent.stderr, rel=0.1)
    assert agreement.agreement(x, y)["predicted_sd"] == pytest.approx(x.std(ddof=1))


def test_units_that_repeat_widen_the_interval():
    x, y = np.repeat(pairs(12), 5, axis=1)
    per_pair, per_unit = (agreement.agreement(x, y, unit)["bias"] for unit in (None, np.repeat(np.arange(12), 5)))
    assert per_pair["value"] == per_unit["value"]
    assert per_unit["high"] - per_unit["low"] > 1.8 * (per_pair["high"] - per_pair["low"])


def test_incomplete_pairs_are_excluded_and_counted():
    x, y = pairs()
    whole = agreement.agreement(x, y, resamples=20)
    more = agreement.agreement(np.append(x, [np.nan, 5]), np.append(y, [3, np.nan]), resamples=20)
    assert more == whole | {"left_out": 2}


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_pairs_have_no_figure(n):
    figures = agreement.agreement(np.arange(n), np.arange(n))
    for name in agreement.NAMES:
        assert figures[name]["value"] is None
        assert figures[name]["reason"] == f"only {n} pair(s) of measurements; at least 3 are needed"
    json.dumps(figures, allow_nan=False)


@pytest.mark.parametrize("difference", [0.0, 0.2])
@pytest.mark.parametrize("n", [3, 6, 7, 12, 13])  # some of these means are not the constant, by a rounding
def test_constants_have_no_correlation_and_no_warning(difference, n):
    figures = agreement.agreement(np.full(n, 0.1) + difference, np.full(n, 0.1))
    assert figures["icc"] == {"value": None, "low": None, "high": None, "reason": "all pairs are equal"}
    assert figures["spearman"]["value"] is None
    assert figures["spearman"]["reason"] == "one of the two measurements is constant"
    assert figures["bias"]["value"] == pytest.approx(difference)
    assert figures["slope"]["value"] is figures["slope"]["standard_error"] is None
    assert figures["slope"]["reason"] == "the predicted measurements are constant"
    json.dumps(figures, allow_nan=False)


def test_one_constant_side_leaves_the_other_figures():
    x, _ = pairs(12)
    figures = agreement.agreement(x, np.full(12, 0.1))
    assert figures["spearman"]["value"] is None
    assert figures["icc"]["value"] == pytest.approx(icc_by_anova(np.stack([x, np.full(12, 0.1)], 1)))
    assert figures["slope"]["value"] == pytest.approx(0, abs=1e-12)


def test_one_unit_has_values_and_no_interval():
    figures = agreement.agreement(*pairs(5), np.zeros(5))
    assert figures["icc"]["value"] is not None
    assert figures["icc"]["low"] is None
    assert figures["slope"]["standard_error"] is None
    assert figures["icc"]["reason"] == "no interval: at least two units are needed"


def test_few_units_and_undefined_resamples_are_noted():
    figures = agreement.agreement([1, 2, 3], [1, 2, 4])
    assert figures["notes"][0] == "only 3 units: the intervals are rough and likely too narrow"
    # All three draws the same: 3 of 27 resamples.
    assert "up to 1" in figures["notes"][1]
    assert agreement.agreement(*pairs())["notes"] == []


def test_incomparable_measurements_are_refused():
    with pytest.raises(agreement.AgreementError, match="as many predicted as reference"):
        agreement.agreement([1, 2, 3], [1, 2])
    with pytest.raises(agreement.AgreementError, match="infinite"):
        agreement.agreement([1, 2, np.inf], [1, 2, 3])


def test_the_lines_show_all_figures():
    text = agreement.lines(agreement.agreement([12, 20, 34, 42], [10, 20, 30, 40]))
    first, *rows = text.splitlines()
    assert first == "4 pairs, 4 units, 0 excluded"
    assert rows[0].startswith("ICC(2,1), absolute agreement")
    assert "0.983 [" in rows[0]
    assert rows[len(agreement.NAMES)] == "only 4 units: the intervals are rough and likely too narrow"
    assert "-  (" not in text
    assert "- (only 1 pair(s) of measurements" in agreement.lines(agreement.agreement([1], [1]))
