import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics as sk
from scipy import optimize

from histojax.evaluation import bootstrap, calibration, metrics, predictions, results


def table(n=600, k=3, temperature=1.0, seed=0, n_patients=20):
    """Labels drawn from the softmax of logits; the probabilities given are of logits times `temperature`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k)) * 1.5
    p = calibration.softmax_at(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 1.0)
    true = np.array([rng.choice(k, p=row) for row in p])
    predicted = calibration.softmax_at(p, 1 / temperature)
    names = ["benign", "malignant"] if k == 2 else [f"c{i}" for i in range(k)]
    return predictions.make_table(
        [f"i{i:04d}" for i in range(n)], true, predicted, names, split="test", patient_id=np.arange(n) % n_patients
    )


@pytest.mark.parametrize("k", [2, 3])
def test_the_temperature_is_found_again(k):
    df = table(6000, k, temperature=2.5)
    true, predicted = results.arrays(df, predictions.class_names(df))
    fitted = calibration.fit_temperature(true, predicted)
    assert fitted == pytest.approx(2.5, rel=0.08)
    loss = lambda t: float(metrics.log_loss(true, calibration.softmax_at(predicted, t)))  # noqa: E731
    best = optimize.minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-9})
    assert fitted == pytest.approx(best.x, rel=1e-5)
    scaled = calibration.softmax_at(predicted, fitted)
    assert float(metrics.ece(true, scaled)) < 0.03 < float(metrics.ece(true, predicted))
    np.testing.assert_array_equal(scaled.argmax(1), predicted.argmax(1))
    np.testing.assert_allclose(scaled.sum(1), 1)


def test_temperatures_have_bounds():
    sure = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert calibration.fit_temperature(np.array([0, 1]), sure) == calibration.LOWEST
    assert calibration.fit_temperature(np.array([1, 0]), sure) == calibration.HIGHEST
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert np.isfinite(calibration.softmax_at(certain, 3.0)).all()
    assert 1 < calibration.fit_temperature(np.array([0, 0]), certain) <= calibration.HIGHEST


def test_one_label_is_scaled_by_its_logit():
    p = np.array([0.01, 0.5, 0.9])
    logit = np.log(p / (1 - p))
    np.testing.assert_allclose(calibration.sigmoid_at(p, 2.0), 1 / (1 + np.exp(-logit / 2)))


def test_reliability_equals_scikit_learn():
    df = table(900, 2)
    true, p = results.arrays(df, ["benign", "malignant"])
    bins = calibration.reliability(df, p[:, 1], true == 1, n_resamples=50)
    fraction, mean = sklearn.calibration.calibration_curve(true, p[:, 1], n_bins=15)
    np.testing.assert_allclose([one["share"]["value"] for one in bins], fraction)
    np.testing.assert_allclose([one["mean_probability"] for one in bins], mean)
    assert sum(one["n_images"] for one in bins) == 900
    assert all(one["share"]["low"] <= one["share"]["value"] <= one["share"]["high"] for one in bins)


def test_a_bin_of_one_patient_has_no_interval():
    p = np.array([0.1, 0.1, 0.1, 0.9, 0.9])
    df = predictions.make_table(
        list("abcde"), [0, 0, 1, 1, 0], np.stack([1 - p, p], 1), ["x", "y"], split="test", patient_id=list("12211")
    )
    low, high = calibration.reliability(df, p, df["label"] == "y", n_resamples=50)
    assert low["share"]["low"] is not None
    assert (high["share"]["value"], high["share"]["low"]) == (0.5, None)


@pytest.mark.parametrize("k", [2, 3])
def test_scores_are_those_of_the_summary(k):
    df = table(400, k)
    classes = predictions.class_names(df)
    image = results.summarise(df, n_resamples=200, seed=4)["test"]["image"]
    found = calibration.scores_of_classes(
        df, *results.arrays(df, classes), 1 if k == 2 else None, n_resamples=200, seed=4
    )
    for key in ("ece", "brier", "log_loss"):
        assert found[key] == pytest.approx(image[key]), key


def test_scores_of_a_label():
    df = table(500, 2)
    true, p = results.arrays(df, ["benign", "malignant"])
    found = calibration.scores_of_label(df, true == 1, p[:, 1], n_resamples=50)
    assert found["brier"]["value"] == pytest.approx(sk.brier_score_loss(true, p[:, 1]))
    assert found["log_loss"]["value"] == pytest.approx(sk.log_loss(true, p[:, 1]))
    bins = calibration.reliability(df, p[:, 1], true == 1, n_resamples=50)
    by_hand = sum(one["n_images"] * abs(one["share"]["value"] - one["mean_probability"]) for one in bins) / 500
    assert found["ece"]["value"] == pytest.approx(by_hand)


def test_a_probability_on_an_edge_belongs_to_the_bin_below():
    p = np.array([0.0, 0.2, 0.2, np.nextafter(0.2, 1), 1.0])  # 0.2 ends the third of fifteen bins
    df = predictions.make_table(
        list("abcde"), [0, 0, 1, 1, 1], np.stack([1 - p, p], 1), ["x", "y"], split="test", patient_id=list("12345")
    )
    bins = calibration.reliability(df, p, df["label"] == "y", n_resamples=0)
    assert [(round(one["low"] * 15), one["n_images"]) for one in bins] == [(0, 1), (2, 2), (3, 1), (14, 1)]
    assert [one["share"]["value"] for one in bins] == [0, 0.5, 1, 1]


def test_bins_of_equal_mass_equal_scikit_learn():
    df = table(900, 2)
    true, p = results.arrays(df, ["benign", "malignant"])
    p = p[:, 1].round(2)  # with ties
    edges = calibration.equal_mass_edges(p)
    bins = calibration.reliability(df, p, true == 1, edges=edges, n_resamples=0)
    fraction, mean = sklearn.calibration.calibration_curve(true, p, n_bins=15, strategy="quantile")
    np.testing.assert_allclose([one["share"]["value"] for one in bins], fraction)
    np.testing.assert_allclose([one["mean_probability"] for one in bins], mean)
    assert max(one["n_images"] for one in bins) < 2 * 900 / 15
    found = calibration.scores_of_label(df, true == 1, p, n_resamples=0)
    counts = np.array([one["n_images"] for one in bins])
    assert found["ece_adaptive"]["value"] == pytest.approx(counts @ np.abs(fraction - mean) / 900)


def test_bins_of_equal_mass_where_most_probabilities_are_0_or_1():
    p = np.array([0.0] * 8 + [0.3] + [1.0] * 8)
    df = predictions.make_table(
        [f"i{i}" for i in range(17)], (p > 0.5).astype(int), np.stack([1 - p, p], 1), ["x", "y"], split="test"
    )
    bins = calibration.reliability(df, p, p > 0.5, edges=calibration.equal_mass_edges(p), n_resamples=0)
    assert [one["n_images"] for one in bins] == [8, 1, 8]


def test_the_classwise_ece_is_the_mean_over_the_classes():
    df = table(900, 3)
    true, p = results.arrays(df, predictions.class_names(df))
    found = calibration.scores_of_classes(df, true, p, None, n_resamples=20)
    errors = []
    for i in range(3):
        fraction, mean = sklearn.calibration.calibration_curve(true == i, p[:, i], n_bins=15)
        counts = np.histogram(p[:, i], np.linspace(0, 1, 16))[0]
        errors.append(counts[counts > 0] @ np.abs(fraction - mean) / 900)
    assert found["ece_classwise"]["value"] == pytest.approx(np.mean(errors))
    assert found["ece_classwise"]["low"] < found["ece_classwise"]["value"] * 1.5 < 1


def test_the_brier_score_by_parts_by_hand():
    # Two bins of two and three images: forecasts 0.2, 0.2 and 0.9, 0.9, 0.9; one of two and two of three occur.
    p, y = np.array([0.2, 0.2, 0.9, 0.9, 0.9]), np.array([0, 1, 1, 1, 0])
    df = predictions.make_table(list("abcde"), y, np.stack([1 - p, p], 1), ["x", "y"], split="test")
    expected = {
        "brier_reliability": (2 * (0.2 - 1 / 2) ** 2 + 3 * (0.9 - 2 / 3) ** 2) / 5,
        "brier_resolution": (2 * (1 / 2 - 3 / 5) ** 2 + 3 * (2 / 3 - 3 / 5) ** 2) / 5,
        "brier_uncertainty": 3 / 5 * 2 / 5,
        "brier_within_bins": 0.0,
    }
    found = calibration.scores_of_label(df, y == 1, p, n_resamples=0)
    assert {key: found[key]["value"] for key in expected} == pytest.approx(expected)


@pytest.mark.parametrize("k", [2, 3])
def test_the_parts_add_up_to_the_brier_score(k):
    df = table(500, k)
    true, p = results.arrays(df, predictions.class_names(df))
    found = calibration.scores_of_classes(df, true, p, 1 if k == 2 else None, n_resamples=0)
    parts = {key: found[f"brier_{key}"]["value"] for key in ("reliability", "resolution", "uncertainty", "within_bins")}
    total = parts["reliability"] - parts["resolution"] + parts["uncertainty"] + parts["within_bins"]
    assert total == pytest.approx(found["brier"]["value"])
    shares = np.bincount(true) / 500
    assert parts["uncertainty"] == pytest.approx((shares * (1 - shares)).sum() / (2 if k == 2 else 1))
    assert abs(parts["within_bins"]) < 0.01 < parts["resolution"]


def test_a_temperature_may_count_patients_the_same():
    df = table(400, 3, temperature=2.0)
    true, p = results.arrays(df, predictions.class_names(df))
    unit = np.repeat(np.arange(4), [10, 40, 150, 200])
    weights = bootstrap.equal_weights(unit)
    assert [weights[unit == i].sum() for i in range(4)] == pytest.approx([0.25] * 4)
    fitted = calibration.fit_temperature(true, p, weights)
    loss = lambda t: float(metrics.log_loss(true, calibration.softmax_at(p, t), weights))  # noqa: E731
    best = optimize.minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-9})
    assert fitted == pytest.approx(best.x, rel=1e-5)
    assert abs(fitted - calibration.fit_temperature(true, p)) > 0.01
    assert calibration.fit_temperature(true, p, np.full(400, 0.5)) == pytest.approx(
        calibration.fit_temperature(true, p)
    )
