import warnings

import imblearn.metrics as imb
import jaxtyping
import numpy as np
import pytest
import sklearn.metrics as sk

from histojax.evaluation import metrics

EXACT = {"rtol": 1e-10, "atol": 1e-13}


def random_table(seed, k, n=157, tied=False, weights="real"):
    rng = np.random.default_rng(seed)
    true = np.concatenate([np.arange(k), rng.integers(0, k, n - k)])
    logits = rng.normal(size=(n, k))
    logits[np.arange(n), true] += 0.8
    p = np.exp(logits)
    p /= p.sum(1, keepdims=True)
    if tied:  # multiples of 1/8 that still sum to one
        p = rng.multinomial(8, np.full(k, 1 / k), size=n) / 8
    w = {"real": rng.uniform(0.1, 3.0, n), "counts": rng.integers(0, 4, n).astype(float), None: np.ones(n)}[weights]
    if weights == "counts":
        w[:k] = 1  # every class stays
    return true, p, w


CASES = [(k, tied, w) for k in (2, 3, 5, 8) for tied in (False, True) for w in (None, "real", "counts")]


@pytest.mark.parametrize(("k", "tied", "weights"), CASES)
def test_confusion_metrics_equal_sklearn(k, tied, weights):
    true, p, w = random_table(k, k, tied=tied, weights=weights)
    predicted = p.argmax(1)
    c = metrics.confusion_matrix(true, predicted, k, w)
    labels = range(k)
    np.testing.assert_allclose(c, sk.confusion_matrix(true, predicted, sample_weight=w, labels=labels), **EXACT)
    np.testing.assert_allclose(metrics.accuracy(c), sk.accuracy_score(true, predicted, sample_weight=w), **EXACT)
    np.testing.assert_allclose(
        metrics.balanced_accuracy(c), sk.balanced_accuracy_score(true, predicted, sample_weight=w), **EXACT
    )
    for average in (None, "macro"):
        expected = sk.precision_recall_fscore_support(
            true, predicted, sample_weight=w, labels=labels, average=average, zero_division=0
        )
        for ours, theirs in zip((metrics.precision, metrics.recall, metrics.f1), expected, strict=False):
            got = ours(c) if average is None else metrics.macro(ours(c))
            np.testing.assert_allclose(got, theirs, **EXACT)
    if k == 2:
        for positive in (0, 1):
            expected = sk.precision_recall_fscore_support(
                true, predicted, sample_weight=w, average="binary", pos_label=positive
            )
            np.testing.assert_allclose(metrics.f1(c)[positive], expected[2], **EXACT)


@pytest.mark.parametrize(("k", "tied", "weights"), CASES)
def test_score_metrics_equal_sklearn(k, tied, weights):
    true, p, w = random_table(10 + k, k, tied=tied, weights=weights)
    for c in range(k):
        y = true == c
        np.testing.assert_allclose(metrics.auroc(p[:, c], y, w), sk.roc_auc_score(y, p[:, c], sample_weight=w), **EXACT)
        np.testing.assert_allclose(
            metrics.average_precision(p[:, c], y, w),
            sk.average_precision_score(y, p[:, c], sample_weight=w),
            **EXACT,
        )
    np.testing.assert_allclose(
        metrics.log_loss(true, p, w), sk.log_loss(true, p, sample_weight=w, labels=range(k)), **EXACT
    )
    if k == 2:
        for positive in (0, 1):
            np.testing.assert_allclose(
                metrics.brier(true, p, w, positive),
                sk.brier_score_loss(true == positive, p[:, positive], sample_weight=w),
                **EXACT,
            )
    else:
        one_hot = np.eye(k)[true]
        expected = np.average(((p - one_hot) ** 2).sum(1), weights=w)
        np.testing.assert_allclose(metrics.brier(true, p, w), expected, **EXACT)


@pytest.mark.parametrize("k", [3, 8])
def test_macro_one_vs_rest_equals_sklearn(k):
    true, p, _ = random_table(k, k)
    area = metrics.macro(np.stack([metrics.auroc(p[:, c], true == c) for c in range(k)], -1))
    np.testing.assert_allclose(area, sk.roc_auc_score(true, p, multi_class="ovr", average="macro"), **EXACT)
    average = metrics.macro(np.stack([metrics.average_precision(p[:, c], true == c) for c in range(k)], -1))
    np.testing.assert_allclose(average, sk.average_precision_score(true, p, average="macro"), **EXACT)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [2, 3, 8])
def test_gmean_and_iba_equal_imbalanced_learn(k, seed):
    # Counts only, as repeated rows: imbalanced-learn's specificity counts rows where it needs weights.
    true, p, w = random_table(seed, k, weights="counts")
    predicted = p.argmax(1)
    c = metrics.confusion_matrix(true, predicted, k, w)
    t, q = np.repeat(true, w.astype(int)), np.repeat(predicted, w.astype(int))
    with (
        warnings.catch_warnings(),
        np.errstate(divide="ignore"),
    ):  # a recall of 0 goes through a logarithm there
        warnings.simplefilter("ignore", RuntimeWarning)
        np.testing.assert_allclose(metrics.gmean(c), imb.geometric_mean_score(t, q), **EXACT)
    if k == 2:
        wrapped = imb.make_index_balanced_accuracy(alpha=0.1, squared=True)(imb.geometric_mean_score)
        for positive in (0, 1):
            expected = wrapped(t, q, average="binary", pos_label=positive)
            np.testing.assert_allclose(metrics.iba(c, positive), expected, **EXACT)
    else:
        report = imb.classification_report_imbalanced(t, q, alpha=0.1, output_dict=True)
        np.testing.assert_allclose(metrics.iba(c), report["avg_iba"], **EXACT)


def test_hand_worked_confusion():
    # 10 benign: 6 right. 20 malignant: 18 right.
    c = np.array([[6, 4], [2, 18]])
    tpr, tnr = 0.9, 0.6
    np.testing.assert_allclose(metrics.accuracy(c), 0.8)
    np.testing.assert_allclose(metrics.precision(c), [6 / 8, 18 / 22])
    np.testing.assert_allclose(metrics.recall(c), [tnr, tpr])
    np.testing.assert_allclose(metrics.specificity(c), [tpr, tnr])
    np.testing.assert_allclose(metrics.f1(c), [12 / 18, 36 / 42])
    np.testing.assert_allclose(metrics.gmean(c), np.sqrt(0.54))
    np.testing.assert_allclose(metrics.iba(c), 1.03 * 0.54)
    np.testing.assert_allclose(metrics.iba(c, positive=0), 0.97 * 0.54)


def test_hand_worked_scores():
    scores, y = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])
    np.testing.assert_allclose(metrics.auroc(scores, y), 3.5 / 4)  # one tie of four pairs
    np.testing.assert_allclose(metrics.average_precision(scores, y), 0.5 * 1 + 0.5 * 2 / 3)
    p = np.array([[0.2, 0.8], [0.7, 0.3]])
    np.testing.assert_allclose(metrics.brier(np.array([1, 1]), p), (0.04 + 0.49) / 2)
    np.testing.assert_allclose(metrics.log_loss(np.array([1, 1]), p), -(np.log(0.8) + np.log(0.3)) / 2)
    three = np.array([[0.5, 0.3, 0.2]])
    np.testing.assert_allclose(metrics.brier(np.array([0]), three), 0.25 + 0.09 + 0.04)
    assert np.isfinite(metrics.log_loss(np.array([0]), np.array([[0.0, 1.0]])))


def test_hand_worked_calibration():
    # Confidences 0.62 and 0.66 share the bin (0.6, 0.667]: one right, one wrong. 0.9 is alone and right.
    p = np.array([[0.62, 0.38], [0.34, 0.66], [0.1, 0.9]])
    true = np.array([0, 0, 1])
    np.testing.assert_allclose(metrics.ece(true, p), (abs(1 - 1.28) + 0.1) / 3)
    # An edge belongs to the bin below it: with two bins, 0.5 is in the first and does not mix with 0.6.
    p = np.array([[0.5, 0.5], [0.6, 0.4]])
    np.testing.assert_allclose(metrics.calibration_terms(np.array([0, 1]), p, n_bins=2), [[0.5, 0], [0, -0.6]])


def test_calibration_against_a_loop():
    true, p, w = random_table(3, 4)
    confidence, right = p.max(1), p.argmax(1) == true
    expected = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            gap = np.average(right[inside], weights=w[inside]) - np.average(confidence[inside], weights=w[inside])
            expected += w[inside].sum() / w.sum() * abs(gap)
    np.testing.assert_allclose(metrics.ece(true, p, w), expected, **EXACT)


def every_metric(true, p, w, k):
    c = metrics.confusion_matrix(true, p.argmax(1), k, w)
    out = [metrics.accuracy(c), metrics.gmean(c), metrics.iba(c), metrics.balanced_accuracy(c)]
    out += [metrics.macro(f(c)) for f in (metrics.precision, metrics.f1, metrics.specificity)]
    out += [f(p[:, 1], true == 1, w) for f in (metrics.auroc, metrics.average_precision)]
    return np.stack(out + [f(true, p, w) for f in (metrics.brier, metrics.log_loss, metrics.ece)], -1)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("k", [2, 4])
def test_weights_are_repeated_rows_and_zero_is_absence(k, tied):
    true, p, w = random_table(5, k, tied=tied, weights="counts")
    times = w.astype(int)
    assert (times == 0).any()
    repeated = every_metric(np.repeat(true, times), np.repeat(p, times, axis=0), None, k)
    np.testing.assert_allclose(every_metric(true, p, w, k), repeated, **EXACT)
    kept = times > 0
    np.testing.assert_allclose(
        every_metric(true, p, kept.astype(float), k), every_metric(true[kept], p[kept], None, k), **EXACT
    )


@pytest.mark.parametrize("k", [2, 5])
def test_a_batch_of_weights_is_each_of_them(k):
    true, p, _ = random_table(6, k)
    w = np.random.default_rng(0).integers(0, 3, (2, 3, len(true))).astype(float)
    batch = every_metric(true, p, w, k)
    assert batch.shape[:2] == (2, 3)
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose(batch[i], every_metric(true, p, w[i], k), **EXACT)


def test_order_of_rows_does_not_matter():
    true, p, w = random_table(7, 3, tied=True)
    o = np.random.default_rng(1).permutation(len(true))
    np.testing.assert_allclose(every_metric(true[o], p[o], w[o], 3), every_metric(true, p, w, 3), **EXACT)


def test_an_absent_class_is_nan():
    c = np.array([[3, 1, 0], [0, 2, 1], [0, 0, 0]])  # class 2: predicted, without a true example
    for per_class in (metrics.precision(c), metrics.recall(c), metrics.f1(c)):
        assert np.isnan(per_class).tolist() == [False, False, True]
    for f in (metrics.gmean, metrics.iba, metrics.balanced_accuracy):
        assert np.isnan(f(c))
    np.testing.assert_allclose(metrics.accuracy(c), 5 / 7)
    scores = np.array([0.1, 0.6])
    assert np.isnan(metrics.auroc(scores, np.array([True, True])))
    assert np.isnan(metrics.auroc(scores, np.array([False, False])))
    assert np.isnan(metrics.average_precision(scores, np.array([False, False])))
    assert np.isnan(metrics.iba(np.array([[0, 0], [1, 3]])))
    assert np.isnan(metrics.accuracy(np.zeros((2, 2))))
    assert np.isnan(metrics.ece(np.array([0]), np.array([[1.0, 0.0]]), np.zeros(1)))


def test_a_class_never_predicted_has_precision_zero():
    c = np.array([[0, 4], [0, 6]])
    np.testing.assert_array_equal(metrics.precision(c), [0.0, 0.6])
    np.testing.assert_array_equal(metrics.f1(c), [0.0, 0.75])
    assert metrics.gmean(c) == 0


def test_shapes_are_checked_in_tests():
    """The annotations hold in tests (`--jaxtyping-packages` in pyproject.toml)."""
    with pytest.raises(jaxtyping.TypeCheckError):
        metrics.recall(np.zeros((2, 3)))
    with pytest.raises(jaxtyping.TypeCheckError):
        metrics.brier(np.zeros(3, int), np.full((4, 2), 0.5))
