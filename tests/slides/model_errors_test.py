"""The percentage corrected for the model's errors: by hand, refusals, draws of rates; Wilson's interval by scipy."""

import re

import numpy as np
import pytest
import scipy.stats

from histojax.slides.tsr import intervals, model_errors
from histojax.slides.tsr.model_errors import model_status
from histojax.slides.tsr.spec import TSRError
from tests.helpers.tsr_grids import make_table, measure_whole, value

BLOCKS = {"block_um": 100.0, "resamples": 400}  # a block is a tile


def measure_corrected(table, confusion, **changes):
    return measure_whole(table, confusion, **BLOCKS | changes)["corrected"]


def test_the_correction_by_hand():
    # 80 tiles: 40 T, 20 S. Fractions 0.5 and 0.25. Sensitivity and specificity: tumor 0.9, 0.8; stroma 0.8, 0.9.
    # Corrected: (0.5 + 0.8 - 1) / 0.7 = 0.428571 and (0.25 + 0.9 - 1) / 0.7 = 0.214286: a third is stroma.
    million = 10**6
    confusion = {
        "tumor": [8 * million, 2 * million, million, 9 * million],
        "stroma": [9 * million, million, 2 * million, 8 * million],
    }
    found = measure_corrected(make_table(*["TTTTSS.."] * 10), confusion, resamples=4000)
    assert found["value"] == pytest.approx(100 / 3, abs=0.8)
    expected = scipy.stats.binomtest(8 * million, 10 * million).proportion_ci(0.95, "wilson")
    for rate in (found["labels"]["tumor"]["specificity"], found["labels"]["stroma"]["sensitivity"]):
        assert (rate["value"], rate["low"], rate["high"]) == pytest.approx((0.8, expected.low, expected.high))
    assert found["note"] == "validation images are taken as independent"
    assert found["low"] < found["value"] < found["high"]


def test_a_faultless_model_has_the_interval_of_the_tissue_and_leaves_divided_tiles_divided():
    confusion = {"tumor": [10**9, 0, 0, 10**9], "stroma": [10**9, 0, 0, 10**9]}
    for policy in ("probability", "half", "both"):
        area = measure_whole(make_table("TTTS", "TBBS", "N. S"), confusion, policy=policy, **BLOCKS)
        corrected, sampled = area["corrected"], area["stroma_percentage"]
        assert (corrected["low"], corrected["high"]) == pytest.approx((sampled["low"], sampled["high"]), abs=1e-3)
        assert corrected["value"] == pytest.approx(value(area), abs=3)  # the median of the draws
        assert corrected["same_class_share"] == pytest.approx(area["stroma_class"]["same_class_share"], abs=0.1)


def test_no_draw_leaves_0_to_100_percent():
    # False positives alone would give a stroma fraction of 0.10, perhaps 0.17; 0.15 is observed.
    confusion = {"tumor": [95, 5, 5, 95], "stroma": [90, 10, 5, 95]}
    found = measure_corrected(make_table(*["T" * 17 + "SSS"] * 3), confusion)
    assert 0 <= found["low"] < 2
    assert found["low"] < found["value"] < found["high"] < 35


@pytest.mark.parametrize(
    ("row", "stroma", "reason"),
    [
        # 20 % of the tiles without stroma would be called stroma; only 15 % are.
        ("T" * 47 + "SSS", [800, 200, 50, 950], "6.0% of the tiles carry label 'stroma', but .* 20.0% to 95.0%"),
        # The case of a specificity of 0.65 on validation images and of 0.07 on other ones.
        ("TT" + "S" * 38, [650, 350, 200, 800], "95.0% of the tiles carry label 'stroma', but .* 35.0% to 80.0%"),
    ],
)
def test_a_fraction_that_the_rates_do_not_allow_cannot_be_corrected(row, stroma, reason):
    found = measure_corrected(make_table(row), {"tumor": [1000, 0, 0, 1000], "stroma": stroma})
    assert (found["value"], found["low"], found["high"]) == (None, None, None)
    assert re.search(reason, found["reason"])


def test_sources_that_differ_widen_the_interval():
    sources = [[20, 0, 0, 20], [19, 1, 0, 20], [20, 0, 2, 18], [20, 0, 0, 20], [15, 5, 4, 16], [20, 0, 1, 19]]
    table = make_table(*["TTTTSS.."] * 4)
    pooled = measure_corrected(table, {name: np.sum(sources, 0).tolist() for name in ("tumor", "stroma")})
    clustered = measure_corrected(table, {"tumor": sources, "stroma": sources})
    assert clustered["note"] == "from 6 validation patients, slides or source images"
    assert clustered["labels"]["tumor"]["specificity"]["sources"] == 6
    assert clustered["high"] - clustered["low"] > 1.15 * (pooled["high"] - pooled["low"])


def test_few_sources_say_nothing_about_other_slides():
    # Not even those of a model without an error.
    found = measure_corrected(make_table("TTSS"), {name: [[900, 0, 0, 900]] * 3 for name in ("tumor", "stroma")})
    assert found["reason"].startswith("label 'tumor' needs at least 4 validation patients, slides or source images")
    assert found["reason"].endswith("the model has 3")


@pytest.mark.parametrize(("a", "b"), [(4.0, 2.0), (18.0, 2.0), (400.0, 200.0)])
def test_drawn_rates_are_distributed_as_those_of_new_slides(a, b):
    # Of many sources, the draws have the mean and the spread of the distribution that the sources came from.
    rng = np.random.default_rng(0)
    trials = np.full(2000, 60.0)
    counts = model_errors._Counts(rng.binomial(60, rng.beta(a, b, 2000)).astype(float), trials, clustered=True)
    drawn = model_errors.draw_rates(rng, counts, 20_000)
    assert drawn.mean() == pytest.approx(a / (a + b), abs=0.01)
    assert drawn.std() == pytest.approx(scipy.stats.beta(a, b).std(), rel=0.1, abs=0.003)


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
        ({"tumor": [900, 100, 100, 900]}, "no confusion counts of label 'stroma'"),
        ({"tumor": [9, 1, 0, 0], "stroma": [9, 1, 1, 9]}, "no validation image carries label 'tumor'"),
        ({"tumor": [900, 100, 100, 900], "stroma": [0, 0, 1, 9]}, "every validation image carries label 'stroma'"),
        ({"tumor": [50, 50, 50, 50], "stroma": [90, 10, 10, 90]}, "label 'tumor' hardly better than chance"),
        ({"tumor": [6, 4, 4, 6], "stroma": [90, 10, 10, 90]}, "label 'tumor' hardly better than chance"),
    ],
)
def test_a_missing_correction_has_a_reason(confusion, reason):
    found = measure_corrected(make_table("TTSS"), confusion)
    assert (found["value"], found["low"], found["high"], found["same_class_share"]) == (None, None, None, None)
    assert reason in found["reason"]


def test_a_chosen_field_and_few_blocks_have_no_correction():
    faultless = {name: [10**9, 0, 0, 10**9] for name in ("tumor", "stroma")}
    found = measure_whole(make_table("TTSS"), faultless, block_um=1000.0)["corrected"]
    assert "at least 4 are needed" in found["reason"]


def test_only_one_label_has_no_interval():
    faultless = {name: [10**9, 0, 0, 10**9] for name in ("tumor", "stroma")}
    assert measure_corrected(make_table("TTTTTT"), faultless)["value"] is None


def test_areas_that_errors_may_explain_have_no_correction():
    confusion = {"tumor": [7500, 2500, 500, 9500], "stroma": [7500, 2500, 500, 9500]}
    found = measure_corrected(make_table("TSTS.............."), confusion)
    assert found["low"] is None
    assert "makes other errors" in found["reason"] or "errors alone may explain" in found["reason"]


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
