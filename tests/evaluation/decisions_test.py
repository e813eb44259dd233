import numpy as np
import pytest
import sklearn.metrics as sk
from imblearn.metrics import geometric_mean_score

from histojax.evaluation import bootstrap, decisions, predictions


def table(n=200, n_patients=10, seed=0):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 2, n)
    p = rng.beta(1 + true, 2 - true)
    return predictions.make_table(
        [f"i{i:03d}" for i in range(n)], true, np.stack([1 - p, p], 1), ["benign", "malignant"], split="test",
        patient_id=np.arange(n) % n_patients, subtype=[("A", "B", "")[i % 3] for i in range(n)],
    )  # fmt: skip


@pytest.mark.parametrize("cut", [0.3, 0.5])
def test_metrics_at_a_threshold_equal_scikit_learn(cut):
    df = table()
    labels, p = (df["label"] == "malignant").to_numpy(), df["prob_malignant"].to_numpy()
    found = decisions.at_threshold(df, labels, p, cut, n_resamples=100)
    predicted = p >= cut
    assert found["confusion"] == sk.confusion_matrix(labels, predicted).tolist()
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "precision": sk.precision_score(labels, predicted),
        "recall": sk.recall_score(labels, predicted),
        "specificity": sk.recall_score(~labels, ~predicted),
        "f1": sk.f1_score(labels, predicted),
        "gmean": geometric_mean_score(labels, predicted, average="binary"),
    }
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value), name
        assert found[name]["low"] < value < found[name]["high"], name


def test_a_score_on_the_threshold_counts_as_positive():
    labels = np.array([True, True, True, False, False, False, False])
    scores = np.array([0.9, 0.4, 0.1, 0.4, 0.4, 0.3, 0.2])  # three scores are the threshold itself
    df = predictions.make_table(
        list("abcdefg"), labels.astype(int), np.stack([1 - scores, scores], 1), ["benign", "malignant"], split="test"
    )
    found = decisions.at_threshold(df, labels, scores, 0.4, n_resamples=0)
    assert found["confusion"] == [[2, 2], [1, 2]]
    assert found["recall"]["value"] == pytest.approx(2 / 3)
    assert found["specificity"]["value"] == 0.5
    above = decisions.at_threshold(df, labels, scores, np.nextafter(0.4, 1), n_resamples=0)
    assert above["confusion"] == [[4, 0], [2, 1]]


def test_intervals_equal_a_loop_over_patients():
    df = table()
    labels, p = (df["label"] == "malignant").to_numpy(), df["prob_malignant"].to_numpy()
    found = decisions.at_threshold(df, labels, p, 0.4, n_resamples=80, seed=2)
    _, unit, n_units = bootstrap.units(df["patient_id"].to_numpy())
    rates = []
    for weights in np.concatenate(list(bootstrap.weight_chunks(n_units, 80, 2))).astype(int):
        rows = np.repeat(np.arange(len(df)), weights[unit])
        rates.append(sk.f1_score(labels[rows], p[rows] >= 0.4))
    assert [found["f1"]["low"], found["f1"]["high"]] == pytest.approx(np.percentile(rates, [2.5, 97.5]).tolist())


def test_a_class_of_one_patient_leaves_no_interval():
    df = table(40, 2)
    labels = (df["patient_id"] == "1").to_numpy()
    found = decisions.at_threshold(df, labels, df["prob_malignant"].to_numpy(), 0.5, n_resamples=50)
    assert found["recall"]["low"] is None
    assert found["accuracy"]["low"] is not None


def test_correctness_by_a_column():
    df = table()
    hit = ((df["prob_malignant"] >= 0.5) == (df["label"] == "malignant")).to_numpy(dtype=float)
    sick = np.where(df["label"] == "malignant", hit, np.nan)
    found = decisions.correctness_by(df, "subtype", {"accuracy": hit, "sensitivity": sick}, n_resamples=50)
    assert [row["value"] for row in found] == ["A", "B"]
    for row in found:
        here = (df["subtype"] == row["value"]).to_numpy()
        assert (row["n_images"], row["n_patients"]) == (here.sum(), df["patient_id"][here].nunique())
        assert row["accuracy"]["value"] == pytest.approx(hit[here].mean())
        assert row["sensitivity"]["value"] == pytest.approx(np.nanmean(sick[here]))
        assert row["accuracy"]["low"] < row["accuracy"]["value"] < row["accuracy"]["high"]
    sizes = decisions.correctness_by(df.assign(magnification=["40X", "100X"] * 100), "magnification", {"accuracy": hit})
    assert [row["value"] for row in sizes] == ["40X", "100X"]
