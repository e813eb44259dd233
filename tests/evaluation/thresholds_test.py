"""Thresholds: what counts as positive, which threshold is chosen, how the command line states one."""

import numpy as np
import pytest
from sklearn import metrics as sk

from histojax.core.errors import RunError
from histojax.evaluation import multilabel, thresholds
from histojax.evaluation.predictions import PredictionsError


def random_labels(seed, n=40):
    """Labels (n, 3) and probabilities (n, 3); an even seed makes ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.uniform(size=(n, 3)) < (0.5, 0.15, 0.7)).astype(int)
    p = np.clip(0.35 * labels + rng.uniform(0, 0.65, (n, 3)), 0, 1)
    return labels, np.round(p, 1) if seed % 2 == 0 else p.astype(np.float32)


def test_a_score_on_the_threshold_is_positive():
    scores = np.array([[0.4, 0.4], [np.nextafter(0.4, 0), 0.6], [0.5, 0.59]])
    assert thresholds.is_positive(scores, np.array([0.4, 0.6])).tolist() == [
        [True, False],
        [False, True],
        [True, False],
    ]
    assert thresholds.is_positive(scores[:, 0], 0.4).tolist() == [True, False, True]
    assert thresholds.is_positive(np.array([0.0, 1.0]), 1.0).tolist() == [False, True]


def test_scores_of_a_validation_set_count_the_threshold_as_positive():
    labels, p = np.array([[1], [0], [1]]), np.array([[0.5], [0.25], [0.75]])
    assert multilabel.scores(labels, p, np.array([0.5]))["accuracy"] == 1
    assert multilabel.scores(labels, p, np.array([0.25]))["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("rule", ["f1", "youden", "sensitivity=1"])
@pytest.mark.parametrize("low", [0.0, 0.3, 0.7])
def test_neighbouring_floats_are_separated(rule, low):
    """Halfway between them lies no third float, so the threshold is the upper one and never the lower."""
    high = float(np.nextafter(low, 1))
    (chosen,) = thresholds.choose_thresholds(np.array([[0], [1]]), np.array([[low], [high]]), rule)
    assert chosen == high


@pytest.mark.parametrize("rule", ["f1", "youden"])
@pytest.mark.parametrize("seed", range(6))
def test_no_threshold_does_better_than_the_chosen_one(rule, seed):
    y, p = random_labels(seed)

    def value(i, cut):
        yes = p[:, i] >= cut
        if rule == "f1":
            return sk.f1_score(y[:, i], yes)
        return sk.recall_score(y[:, i], yes) + sk.recall_score(y[:, i], yes, pos_label=0)

    chosen = thresholds.choose_thresholds(y, p, rule)
    for i in range(3):
        every = np.concatenate([np.unique(p[:, i]), np.linspace(0.001, 0.999, 50)])
        assert value(i, chosen[i]) >= max(value(i, cut) for cut in every) - 1e-12
        assert np.abs(p[:, i] - chosen[i]).min() > 0  # on no image


@pytest.mark.parametrize("least", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_most_specific_of_the_sensitive_thresholds_is_chosen(least, seed):
    y, p = random_labels(seed)
    chosen = thresholds.choose_thresholds(y, p, f"sensitivity={least}")
    for i in range(3):
        yes = p[:, i] >= chosen[i]
        assert sk.recall_score(y[:, i], yes) >= least
        for cut in np.unique(p[:, i]):
            other = p[:, i] >= cut
            if sk.recall_score(y[:, i], other) >= least:
                specificity = sk.recall_score(y[:, i], other, pos_label=0)
                assert specificity <= sk.recall_score(y[:, i], yes, pos_label=0)
    for wrong in ("sensitivity", "sensitivity=0", "sensitivity=1.1", "sensitivity=high", "specificity=0.9"):
        with pytest.raises(ValueError, match=r"is not one of f1, youden, fixed, sensitivity=0\.95"):
            thresholds.choose_thresholds(y, p, wrong)


def test_of_equally_good_thresholds_the_nearest_to_a_half_is_taken_then_the_lower():
    y, p = np.array([[0], [0], [1], [1]]), np.array([[0.1], [0.2], [0.7], [0.9]])
    assert thresholds.choose_thresholds(y, p, "f1").tolist() == pytest.approx([0.45])
    y, p = np.array([[1], [0], [1]]), np.array([[0.8], [0.5], [0.2]])
    assert thresholds.choose_thresholds(y, p, "youden").tolist() == pytest.approx([0.65])
    # At 0.6 as at 0.4, recall + specificity is 1.5, and both are as far from a half.
    y, p = np.array([[1], [1], [0], [0]]), np.array([[0.7], [0.5], [0.5], [0.3]])
    assert thresholds.choose_thresholds(y, p, "youden").tolist() == pytest.approx([0.4])


def test_a_label_without_both_answers_keeps_a_half():
    y = np.array([[0, 1, 1], [0, 1, 0]])
    p = np.array([[0.9, 0.1, 0.3], [0.8, 0.2, 0.1]])
    assert thresholds.choose_thresholds(y, p, "f1").tolist() == pytest.approx([0.5, 0.5, 0.2])
    assert thresholds.choose_thresholds(y, p, "fixed").tolist() == [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"train\.thresholds='best' is not one of f1, youden, fixed"):
        thresholds.choose_thresholds(y, p, "best")


# --- Reading ------------------------------------------------------------------------------------------------


def test_thresholds_are_read_from_text():
    assert thresholds.parse("") == {}
    assert thresholds.parse("malignant=0.4") == {"malignant": 0.4}
    assert thresholds.parse("tumor=0.4,a=b=0,stroma=1", ["tumor", "stroma", "a=b"]) == {
        "tumor": 0.4, "a=b": 0.0, "stroma": 1.0,
    }  # fmt: skip
    assert thresholds.parse("0.5", ["tumor"]) == {"": 0.5}
    assert thresholds.parse("tumor=0.4,0.5,stroma=0.1", ["tumor", "stroma"]) == {"": 0.5, "stroma": 0.1}


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("x", None, "--threshold=x: 'x' is not a threshold"),
        ("tumor=0.4,stroma=1.1", None, "'stroma=1.1' is not a threshold"),
        ("tumor=-0.1", None, "'tumor=-0.1' is not a threshold"),
        ("tumor=nan", None, "'tumor=nan' is not a threshold"),
        (",", None, "'' is not a threshold"),
        ("0.5", None, "'0.5' names no class; give CLASS=0.4"),
        ("fat=0.5", ["tumor", "stroma"], "unknown name 'fat'; the names are tumor, stroma"),
    ],
)
def test_bad_thresholds_are_refused(text, names, message):
    with pytest.raises(RunError, match=message):
        thresholds.parse(text, names)


def test_thresholds_are_ordered_like_the_labels():
    assert thresholds.to_array(["a", "b"], {"b": 0.25, "a": 0.75}).tolist() == [0.75, 0.25]
    assert thresholds.to_array(["a", "b"], None).tolist() == [0.5, 0.5]
    for bad, message in (({"a": 0.5}, "give one for each label"), ({"a": 0.5, "b": 2}, r"must lie in \[0, 1\]")):
        with pytest.raises(PredictionsError, match=message):
            thresholds.to_array(["a", "b"], bad)
