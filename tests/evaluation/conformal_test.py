"""Prediction sets: the limit against all possible draws, and what is refused."""

import itertools

import numpy as np
import pandas as pd
import pytest

from histojax.core.errors import RunError
from histojax.evaluation import conformal, predictions
from tests.helpers.prediction_tables import class_table, labels_table


@pytest.mark.parametrize(("level", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_the_least_number_of_patients(level, needed):
    assert conformal.needed_units(level) == needed
    conformal.least_probability(np.linspace(0, 1, needed), np.arange(needed), level)
    if needed > 1:
        with pytest.raises(ValueError, match=f"needs {needed}"):
            conformal.least_probability(np.linspace(0, 1, needed - 1), np.arange(needed - 1), level)


def test_one_image_per_patient_is_ordinary_split_conformal():
    of_truth = np.random.default_rng(0).permutation(np.arange(1, 31) / 31)
    # ⌈31 · 0.9⌉ = 28 of 30 probabilities are at or above the limit.
    assert conformal.least_probability(of_truth, np.arange(30), 0.9) == pytest.approx(3 / 31)


@pytest.mark.parametrize("seed", range(30))
def test_the_limit_is_the_median_over_all_draws(seed):
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 8, size).round(2) / 8 for size in rng.integers(1, 4, 6)]
    unit = np.repeat(np.arange(6), list(map(len, images)))
    for level in (0.5, 0.6, 0.8):
        rank = int(np.ceil(7 * level - 1e-9))
        limits = np.array([sorted(draw)[-rank] for draw in itertools.product(*images)])
        found = conformal.least_probability(np.concatenate(images), unit, level)
        candidates = np.unique(limits)
        # An answer is in the set if it is in the sets of at least half of the draws.
        assert found == candidates[[(limits <= one).mean() >= 0.5 for one in candidates]].min(), level


def test_a_patient_counts_the_same_however_many_images_it_has():
    rng = np.random.default_rng(0)
    of_truth, unit = rng.random(60), np.repeat(np.arange(20), 3)
    repeated = np.where(unit == unit[of_truth.argmin()], 50, 1)
    once = conformal.least_probability(of_truth, unit, 0.9)
    assert conformal.least_probability(np.repeat(of_truth, repeated), np.repeat(unit, repeated), 0.9) == once


def test_sets_and_answers_by_hand():
    rule = conformal.SetRule(("x", "y", "z"), False, 0.9, "all", np.array([0.3, 0.3, 0.45]), "patient", 9)
    held = rule.held(np.array([[0.3, 0.4, 0.3], [0.8, 0.1, 0.1], [0.29, 0.27, 0.44]]))[""]
    assert conformal.texts(held, rule.answers) == ["x|y", "x", ""]
    assert conformal.answers(held, rule.answers) == ["abstained", "x", "abstained"]
    labels = conformal.SetRule(("t",), True, 0.9, "all", np.array([[0.4, 0.3]]), "patient", 9)
    held = labels.held(np.array([[0.2], [0.5], [0.9]]))["t"]
    assert conformal.texts(held, labels.answers) == ["absent", "absent|present", "present"]
    assert labels.described() == {"t absent": 0.4, "t present": 0.3}


def test_sets_by_class_rest_on_the_images_of_each_class():
    table = class_table(k=2, n=120, n_patients=20)
    both, each = (conformal.fit(table, 0.9, by) for by in (conformal.ALL, conformal.CLASS))
    assert both.least[0] == both.least[1]
    for i, name in enumerate(predictions.class_names(table)):
        rows = table[table["label"] == name]
        alone = conformal.least_probability(rows[f"prob_{name}"].to_numpy(), rows["patient_id"].to_numpy(), 0.9)
        assert each.least[i] == alone
    assert (both.n_units, each.n_units, each.unit) == (20, 10, "patient")


def test_each_label_has_sets_of_its_own():
    table = labels_table().assign(patient_id=[f"p{i % 40}" for i in range(160)])
    rule = conformal.fit(table, 0.9)
    assert rule.least.shape == (3, 2)
    assert (rule.least[:, 0] == rule.least[:, 1]).all()
    p, carried = table["prob_stroma"].to_numpy(), table["label_stroma"].to_numpy() == 1
    of_truth = np.where(carried, p, 1 - p)
    assert rule.least[1, 0] == conformal.least_probability(of_truth, table["patient_id"].to_numpy(), 0.9)
    held = rule.held(table[[f"prob_{name}" for name in rule.classes]].to_numpy())["stroma"]
    np.testing.assert_array_equal(held, np.stack([1 - p, p], 1) >= rule.least[1])


def test_too_few_patients_are_refused_with_remedies_that_work():
    table = class_table(k=2, n=40, n_patients=8)
    with pytest.raises(
        RunError, match=r"at least 9 patients, and there are 8: take a level of at most 0\.88, or valid"
    ):
        conformal.fit(table, 0.9)
    assert conformal.fit(table, 0.88).n_units == 8
    with pytest.raises(
        RunError, match=r"9 patients with images of 'benign', and there are 5: .* 0\.83, or take sets over"
    ):
        conformal.fit(class_table(k=2, n=40, n_patients=10), 0.9, conformal.CLASS)
    one = pd.concat([table[table["label"] == "benign"], table[table["patient_id"] == "p01"]])
    with pytest.raises(RunError, match=r"there is 1: take a level of at most 0\.5, or"):
        conformal.fit(one, 0.9, conformal.CLASS)


def test_without_patients_the_images_are_the_units():
    table = class_table(k=2, n=40).assign(patient_id="")
    assert conformal.fit(table, 0.9).unit == "image"
