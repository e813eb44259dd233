import numpy as np
import pytest
import sklearn.metrics as sk
from scipy import stats

from histojax.evaluation import paired


def test_mcnemar_equals_published_examples():
    # Bentur et al.'s airway hyper-responsiveness in Fagerland, Lydersen and Laake (2013): 1 and 7 discordant pairs.
    found = paired.mcnemar(1, 7)
    assert found.exact == pytest.approx(0.0703, abs=5e-5)
    assert found.mid_p == pytest.approx(0.0391, abs=5e-5)
    assert (found.chi2, found.corrected_chi2) == (4.5, 3.125)
    assert found.chi2_p == pytest.approx(0.0339, abs=5e-5)
    assert found.corrected_p == pytest.approx(0.0771, abs=5e-5)
    # Agresti's approval ratings: 150 and 86; z = (86 − 150) / √236 = −4.17.
    found = paired.mcnemar(150, 86)
    assert found.chi2 == pytest.approx(4.166**2, rel=1e-3)
    assert found.corrected_chi2 == pytest.approx(63**2 / 236)


@pytest.mark.parametrize(("b", "c"), [(0, 1), (0, 6), (3, 3), (12, 30), (40_000, 41_000)])
def test_mcnemar_equals_scipy(b, c):
    found = paired.mcnemar(b, c)
    # statsmodels: exact is this binomial test; its χ² is that of one degree of freedom, with and without correction.
    assert found.exact == pytest.approx(stats.binomtest(b, b + c, 0.5).pvalue, rel=1e-9)
    mid = 2 * stats.binom.cdf(min(b, c), b + c, 0.5) - stats.binom.pmf(min(b, c), b + c, 0.5)
    assert found.mid_p == pytest.approx(min(mid, 1), rel=1e-9)
    assert found.chi2_p == pytest.approx(stats.chi2.sf((b - c) ** 2 / (b + c), 1), rel=1e-9)
    assert found.corrected_p == pytest.approx(stats.chi2.sf(max(abs(b - c) - 1, 0) ** 2 / (b + c), 1), rel=1e-9)
    assert paired.mcnemar(c, b)[2:] == found[2:]


def test_mcnemar_without_a_difference():
    assert paired.mcnemar(0, 0) == (0, 0, 1.0, 1.0, None, None, None, None)


def two_models(n=120, seed=0, digits=1):
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.4
    common = rng.normal(size=n) + labels
    return labels, (common + rng.normal(size=n)).round(digits), (common + 2 * rng.normal(size=n)).round(digits)


@pytest.mark.parametrize("digits", [0, 1, 9])
def test_delong_equals_its_definition_pair_by_pair(digits):
    labels, first, second = two_models(digits=digits)
    m, n = labels.sum(), (~labels).sum()
    v10, v01, areas = [], [], []
    for scores in (first, second):
        x, y = scores[labels], scores[~labels]
        psi = (x[:, None] > y).astype(float) + 0.5 * (x[:, None] == y)  # every pair
        v10.append(psi.mean(1))
        v01.append(psi.mean(0))
        areas.append(psi.mean())
    covariance = np.cov(v10) / m + np.cov(v01) / n
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    found = paired.delong(labels, first, second)
    np.testing.assert_allclose([found.first, found.second], areas, rtol=1e-12)
    assert found.first == pytest.approx(sk.roc_auc_score(labels, first))
    assert found.standard_error == pytest.approx(error, rel=1e-10)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(areas[1] - areas[0]) / error), rel=1e-9)
    assert found.high - found.low == pytest.approx(2 * stats.norm.ppf(0.975) * error, rel=1e-9)


def test_clusters_of_one_image_change_nothing_and_copies_do():
    labels, first, second = two_models()
    alone = paired.delong(labels, first, second)
    assert paired.delong(labels, first, second, np.arange(len(labels))[::-1]) == pytest.approx(alone)
    three = [np.tile(x, 3) for x in (labels, first, second)]
    clusters = np.tile(np.arange(len(labels)), 3)
    naive, honest = paired.delong(*three), paired.delong(*three, clusters)
    # Three copies of each image add no information.
    assert naive.standard_error == pytest.approx(alone.standard_error / np.sqrt(3), rel=0.02)
    assert honest.standard_error == pytest.approx(alone.standard_error, rel=0.02)


def test_delong_without_enough_images_has_no_interval():
    labels = np.array([True, False, False])
    found = paired.delong(labels, np.array([0.9, 0.1, 0.2]), np.array([0.1, 0.5, 0.2]))
    assert (found.first, found.second, found.difference, found.p) == (1, 0, -1, None)
    with pytest.raises(ValueError, match="positives and negatives"):
        paired.delong(np.ones(3, bool), labels, labels)
    labels, first, _ = two_models()
    same = paired.delong(labels, first, first)
    assert (same.difference, same.standard_error, same.z, same.p) == (0, 0, 0, 1)


def test_under_the_null_clusters_keep_their_level_and_images_do_not():
    # Two equally good models whose errors depend on the patient, as the label does: 40 patients of ten images.
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(40), 10)
    labels = patient % 2 == 0
    trials, rejected = 600, np.zeros(2)
    for _ in range(trials):
        scores = [labels + rng.normal(size=40)[patient] + 0.3 * rng.normal(size=400) for _ in range(2)]
        tests = paired.delong(labels, *scores), paired.delong(labels, *scores, patient)
        rejected += [test.p < 0.05 for test in tests]
    images, patients = rejected / trials
    assert 0.03 <= patients <= 0.08
    assert images > 0.3


def test_holm():
    assert paired.holm([0.01, 0.04, 0.03, 0.02]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert paired.holm([0.5, 0.6]) == [1.0, 1.0]
    assert paired.holm([]) == []
