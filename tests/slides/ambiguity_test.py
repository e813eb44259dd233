"""The range that the model's errors allow: by hand and by a dense grid of rates; Wilson's interval by scipy."""

import re

import numpy as np
import pytest
import scipy.stats

from histojax.slides.tsr import intervals
from histojax.slides.tsr.ambiguity import model_status
from histojax.slides.tsr.spec import TSRError
from tests.helpers.tsr_grids import make_table, measure_whole, value


def test_ambiguity_by_hand():
    # 8 tiles: 4 T, 2 S. Shares 0.5 and 0.25. Sensitivity and specificity: tumor 0.9, 0.8; stroma 0.8, 0.9.
    # Corrected: (0.5 + 0.8 - 1) / 0.7 = 0.428571 and (0.25 + 0.9 - 1) / 0.7 = 0.214286: a third is stroma.
    confusion = {"tumor": [400, 100, 50, 450], "stroma": [450, 50, 100, 400]}
    found = measure_whole(make_table("TTTTSS.."), confusion)["ambiguity"]
    assert found["value"] == pytest.approx(100 / 3)
    rates = found["labels"]["tumor"]["specificity"], found["labels"]["stroma"]["sensitivity"]
    expected = scipy.stats.binomtest(400, 500).proportion_ci(0.95, "wilson")
    for rate in rates:
        assert (rate["value"], rate["low"], rate["high"]) == pytest.approx((0.8, expected.low, expected.high))
    # No rates within the intervals lead beyond the ends, and the ends are reached.
    assert found["note"] == "validation images are taken as independent"
    spans = [np.linspace(rate["low"], rate["high"], 9) for label in found["labels"].values() for rate in label.values()]
    se_t, sp_t, se_s, sp_s = np.meshgrid(*spans)
    tumor, stroma = (0.5 + sp_t - 1) / (se_t + sp_t - 1), (0.25 + sp_s - 1) / (se_s + sp_s - 1)
    percentage = 100 * stroma / (tumor + stroma)
    assert (found["low"], found["high"]) == pytest.approx((percentage.min(), percentage.max()))


def test_a_faultless_model_leaves_the_value_and_divided_tiles_divided():
    confusion = {"tumor": [10**9, 0, 0, 10**9], "stroma": [10**9, 0, 0, 10**9]}
    for policy in ("probability", "half", "both"):
        area = measure_whole(make_table("TTTS", "TBBS", "N. S"), confusion, policy=policy)
        ends = [area["ambiguity"][key] for key in ("value", "low", "high")]
        assert ends == pytest.approx([value(area)] * 3, abs=1e-4)


def test_a_range_ends_where_a_fraction_would_be_below_0():
    # False positives alone would give a stroma fraction of 0.10, perhaps 0.17; 0.15 is observed.
    confusion = {"tumor": [95, 5, 5, 95], "stroma": [90, 10, 5, 95]}
    found = measure_whole(make_table("T" * 17 + "SSS"), confusion)["ambiguity"]
    assert found["low"] == 0
    assert 0 < found["value"] < found["high"] < 20


@pytest.mark.parametrize(
    ("row", "stroma", "reason"),
    [
        # 20 % of the tiles without stroma would be called stroma; only 15 % are.
        ("T" * 17 + "SSS", [80, 20, 5, 95], "15.0% of the tiles carry label 'stroma', but .* 20.0% to 95.0%"),
        # The case of a specificity of 0.65 on validation images and of 0.07 on other ones.
        ("T" + "S" * 19, [65, 35, 10, 90], "95.0% of the tiles carry label 'stroma', but .* 35.0% to 90.0%"),
        ("T" * 20, [95, 5, 5, 95], "0.0% of the tiles carry label 'stroma', but .* 5.0% to 95.0%"),
    ],
)
def test_a_fraction_beyond_what_the_rates_allow_cannot_be_corrected(row, stroma, reason):
    found = measure_whole(make_table(row), {"tumor": [100, 0, 0, 100], "stroma": stroma})["ambiguity"]
    assert (found["value"], found["low"], found["high"]) == (None, None, None)
    assert re.search(f"^cannot be corrected: {reason}", found["reason"])


def test_a_range_without_width_is_not_given():
    faultless = [10**9, 0, 0, 10**9]
    found = measure_whole(make_table("TTTT"), {"tumor": faultless, "stroma": faultless})["ambiguity"]
    assert found["low"] is None
    assert "only one of the two labels was found" in found["reason"]


def test_tiles_of_one_source_are_not_independent():
    # Sources are either right or wrong throughout: five of them tell less than their 100 tiles.
    sources = [[10, 0, 0, 10], [9, 1, 0, 10], [10, 0, 1, 9], [10, 0, 0, 10], [6, 4, 3, 7]]
    table = make_table("TTTTSS..")
    independent = measure_whole(table, {name: np.sum(sources, 0).tolist() for name in ("tumor", "stroma")})["ambiguity"]
    clustered = measure_whole(table, {"tumor": sources, "stroma": sources})["ambiguity"]
    assert clustered["value"] == independent["value"]
    assert clustered["labels"]["tumor"]["specificity"]["sources"] == 5
    assert clustered["note"] == "from 5 validation patients, slides or source images"
    for rate in ("sensitivity", "specificity"):
        one, other = (found["labels"]["stroma"][rate] for found in (clustered, independent))
        assert one["high"] - one["low"] > 1.3 * (other["high"] - other["low"])
    # One row says nothing about how sources differ: not even that of a model without an error.
    alone = measure_whole(table, {"tumor": [[900, 0, 0, 900]], "stroma": [[900, 0, 0, 900]]})["ambiguity"]
    assert alone["reason"].startswith("cannot be corrected")
    assert alone["reason"].endswith("add up to 1 or less, from 1 validation patients, slides or source images")


def test_a_clustered_interval_holds_the_truth_where_one_over_tiles_does_not():
    rng = np.random.default_rng(0)
    clustered = over_tiles = 0
    for _ in range(200):
        trials = np.full(20, 30.0)
        successes = rng.binomial(30, rng.beta(4.0, 2.0, 20)).astype(float)  # sources differ; the mean is 2/3
        low, high = intervals.clustered_proportion(successes, trials)
        clustered += low <= 2 / 3 <= high
        low, high = intervals.wilson(successes.sum(), trials.sum())
        over_tiles += low <= 2 / 3 <= high
    assert 0.9 <= clustered / 200 <= 0.99
    assert over_tiles / 200 < 0.65


@pytest.mark.parametrize(
    ("confusion", "reason"),
    [
        (None, "no confusion counts of its labels"),
        ({"tumor": [9, 1, 1, 9]}, "no confusion counts of label 'stroma'"),
        ({"tumor": [9, 1, 0, 0], "stroma": [9, 1, 1, 9]}, "no validation image carries label 'tumor'"),
        ({"tumor": [9, 1, 1, 9], "stroma": [0, 0, 1, 9]}, "every validation image carries label 'stroma'"),
        ({"tumor": [50, 50, 50, 50], "stroma": [90, 10, 10, 90]}, "recognize label 'tumor' no better than chance"),
        ({"tumor": [6, 4, 4, 6], "stroma": [90, 10, 10, 90]}, "recognize label 'tumor' no better than chance"),
    ],
)
def test_a_missing_ambiguity_range_has_a_reason(confusion, reason):
    found = measure_whole(make_table("TTS"), confusion)["ambiguity"]
    assert (found["value"], found["low"], found["high"]) == (None, None, None)
    assert reason in found["reason"]


def test_areas_that_errors_may_explain_have_no_range():
    confusion = {"tumor": [75, 25, 5, 95], "stroma": [75, 25, 5, 95]}
    found = measure_whole(make_table("TSTS...."), confusion)["ambiguity"]
    assert found["low"] is None
    assert "errors alone may explain" in found["reason"]


def test_a_malformed_confusion_is_refused():
    for cells in ([1, 2, 3], [1, 2, 3, -1], [[1, 2, 3]], [[[1, 2, 3, 4]]]):
        with pytest.raises(TSRError, match=r"must be counts \[tn, fp, fn, tp\]"):
            measure_whole(make_table("TS"), {"tumor": cells, "stroma": [1, 1, 1, 1]})


def test_wilson_equals_scipy():
    for successes, n in ((0, 5), (3, 7), (12, 12), (480, 500)):
        expected = scipy.stats.binomtest(successes, n).proportion_ci(0.95, "wilson")
        assert intervals.wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("stroma", "status", "reason"),
    [
        ([90, 10, 5, 95], "tells apart", None),
        # Called stroma whatever it is: specificity 0.07.
        (
            [7, 93, 1, 99],
            "cannot tell",
            r"the model cannot tell stroma from the rest: sensitivity 0\.99 \[0\.\d\d, 1\.00\] and specificity 0\.07 "
            r"\[0\.0\d, 0\.1\d\] on validation images; their sum is less than 0\.2 above that of chance",
        ),
        ([60, 41, 40, 60], "cannot tell", "the model cannot tell stroma"),
        ([60, 40, 40, 61], "tells apart", None),
        # Right every time, but twice only.
        ([1, 0, 0, 1], "not shown", "not shown that the model can tell stroma from the rest: sensitivity 1.00"),
        ([[5, 5, 1, 9], [9, 1, 5, 5]], "not shown", "from 2 validation patients, slides or source images"),
        ([0, 0, 0, 10], "unknown", "every validation image carries label 'stroma'"),
    ],
)
def test_whether_the_model_tells_its_labels_apart(stroma, status, reason):
    found = model_status(("tumor", "stroma"), {"tumor": [95, 5, 5, 95], "stroma": stroma})
    assert found["status"] == status
    assert (found["reason"] is None) == (reason is None)
    assert reason is None or re.search(reason, found["reason"])


def test_without_counts_nothing_is_known_of_the_model():
    assert model_status(("tumor", "stroma"), None)["status"] == "unknown"
