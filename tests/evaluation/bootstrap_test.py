import numpy as np
import pytest
import sklearn.metrics as sk
from scipy import stats

from histojax.evaluation import bootstrap, metrics, predictions, results


def patients_table(n=240, n_patients=12, seed=0, patients=True):
    rng = np.random.default_rng(seed)
    patient = np.arange(n) % n_patients
    true = patient % 2
    p = rng.beta(1 + 2 * true, 3 - 2 * true).round(2)  # rounding makes ties
    return predictions.make_table(
        [f"i{i:04d}" for i in range(n)],
        true,
        np.stack([1 - p, p], 1),
        ["benign", "malignant"],
        split="test",
        patient_id=[f"p{x:02d}" for x in patient] if patients else None,
    )


@pytest.mark.parametrize("patients", [True, False])
def test_equals_a_loop_over_the_same_resamples(patients):
    df = patients_table(patients=patients)
    n_resamples = 60
    block = results.summarise(df, n_resamples=n_resamples, seed=3)["test"]
    name, unit, n_units = bootstrap.units(df["patient_id"].to_numpy())
    assert (name, n_units) == (("patient", 12) if patients else ("image", 240))

    loop = {"accuracy": [], "auroc": [], "average_precision": [], "f1": [], "brier": [], "rate": []}
    weights = np.concatenate(list(bootstrap.weight_chunks(n_units, n_resamples, 3)))
    assert weights.shape == (n_resamples, n_units)
    for w in weights.astype(int):
        assert w.sum() == n_units
        rows = df.iloc[np.repeat(np.arange(len(df)), w[unit])]
        y, p = (rows["label"] == "malignant").to_numpy(), rows["prob_malignant"].to_numpy()
        loop["accuracy"].append(sk.accuracy_score(y, p > 0.5))
        loop["auroc"].append(sk.roc_auc_score(y, p))
        loop["average_precision"].append(sk.average_precision_score(y, p))
        loop["f1"].append(sk.f1_score(y, p > 0.5))
        loop["brier"].append(sk.brier_score_loss(y, p))
        right = ((df["prob_malignant"] > 0.5) == (df["label"] == "malignant")).to_numpy(dtype=float)
        if patients:
            rate = np.array([right[unit == g].mean() for g in range(n_units)])
            loop["rate"].append(np.repeat(rate, w).mean())
    figures = block["image"] | {"rate": block["patient"]["recognition_rate"] if patients else None}
    for metric, values in loop.items():
        if values:
            expected = np.percentile(values, [2.5, 97.5])
            np.testing.assert_allclose([figures[metric]["low"], figures[metric]["high"]], expected, rtol=1e-10)
            assert "undefined" not in figures[metric]


def test_the_seed_decides_and_the_chunks_do_not():
    def draw(seed, n_rows=None):
        chunks = list(bootstrap.weight_chunks(9, 50, seed, n_rows))
        return len(chunks), np.concatenate(chunks)

    one, whole = draw(1)
    many, parts = draw(1, n_rows=bootstrap._CHUNK_ELEMENTS // 4)
    assert one == 1
    assert many == 13
    np.testing.assert_array_equal(whole, parts)
    assert not np.array_equal(whole, draw(2)[1])
    df = patients_table(60, 6)
    assert results.summarise(df, n_resamples=40, seed=1) == results.summarise(df, n_resamples=40, seed=1)
    assert results.summarise(df, n_resamples=40, seed=1) != results.summarise(df, n_resamples=40, seed=2)


def test_undefined_resamples_are_left_out_and_counted():
    values = np.array([1.0, 2.0, 3.0])

    def statistic(weights):  # undefined where the first unit was not drawn
        mean = metrics.weighted_mean(values, weights)
        return {"m": np.where(weights[:, 0] > 0, mean, np.nan)}

    figure = bootstrap.intervals(statistic, 3, n_resamples=500, seed=0)["m"]
    weights = np.concatenate(list(bootstrap.weight_chunks(3, 500, 0)))
    kept = weights[weights[:, 0] > 0]
    np.testing.assert_allclose(figure["undefined"], 1 - len(kept) / 500)
    np.testing.assert_allclose(figure["undefined"], (2 / 3) ** 3, atol=0.07)
    np.testing.assert_allclose(
        [figure["low"], figure["high"]], np.percentile(kept @ values / 3, [2.5, 97.5]), rtol=1e-12
    )


def test_one_unit_has_no_interval_and_nan_is_null():
    figures = bootstrap.intervals(lambda w: {"a": w[:, 0], "b": np.full(len(w), np.nan)}, 1)
    assert figures == {
        "a": {"value": 1.0, "low": None, "high": None},
        "b": {"value": None, "low": None, "high": None},
    }
    with pytest.raises(ValueError, match="0 units"):
        bootstrap.intervals(lambda w: {}, 0)


def test_patients_widen_the_interval_where_all_images_of_a_patient_are_alike():
    # Forty patients of ten equal images each: these are not 400 independent images.
    right = np.repeat(np.arange(40) % 4 > 0, 10)
    p = np.where(right, 0.9, 0.1)
    common = {"classes": ["a", "b"], "split": "test"}
    ids, true = [f"i{i:03d}" for i in range(400)], np.ones(400, int)
    known = predictions.make_table(
        ids, true, np.stack([1 - p, p], 1), **common, patient_id=np.repeat(np.arange(40), 10)
    )
    unknown = predictions.make_table(ids, true, np.stack([1 - p, p], 1), **common)
    width = []
    for df in (known, unknown):
        figure = results.summarise(df)["test"]["image"]["accuracy"]
        width.append(figure["high"] - figure["low"])
    np.testing.assert_allclose(width[0] / width[1], np.sqrt(10), rtol=0.15)


def test_coverage_of_an_area_over_patients():
    # 40 patients of five images. Scores depend on the patient, so images are far from independent.
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(40), 5)
    true_area = stats.norm.cdf(1.2 / np.sqrt(2 * (1 + 0.25)))
    held, trials = np.zeros(2), 200
    for trial in range(trials):
        labels = (np.arange(40) % 2 == 0)[patient]
        scores = 1.2 * labels + rng.normal(size=40)[patient] + 0.5 * rng.normal(size=200)
        for i, unit in enumerate((patient, np.arange(200))):
            ranking = metrics.Ranking(scores, labels, unit)
            figure = bootstrap.intervals(
                lambda w, ranking=ranking: {"a": metrics.auroc_from_counts(*ranking.counts(w))},
                unit.max() + 1,
                n_resamples=300,
                seed=trial,
            )["a"]
            held[i] += figure["low"] <= true_area <= figure["high"]
    over_patients, over_images = held / trials
    assert 0.89 <= over_patients <= 0.98
    assert over_images < 0.8


def test_coverage():
    # 30 patients of unequal quality, 8 images each: about 95 of 100 intervals cover the true mean.
    rng = np.random.default_rng(0)
    held, trials = 0, 300
    for trial in range(trials):
        quality = rng.beta(4, 2, size=30)
        fraction = rng.binomial(8, quality) / 8
        figure = bootstrap.intervals(
            lambda w, fraction=fraction: {"m": metrics.weighted_mean(fraction, w)}, 30, n_resamples=300, seed=trial
        )["m"]
        held += figure["low"] <= 4 / 6 <= figure["high"]
    assert 0.89 <= held / trials <= 0.98
