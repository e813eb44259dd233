"""The range that the model's errors allow: by hand and by a dense grid of rates; Wilson's interval by scipy."""

import numpy as np
import pytest
import scipy.stats

from histojax.slides.tsr import ambiguity
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


def test_the_range_is_clipped():
    # A share of stroma (3/20) below what false positives alone give (0.2, perhaps only 0.13): perhaps none.
    confusion = {"tumor": [95, 5, 5, 95], "stroma": [80, 20, 5, 95]}
    found = measure_whole(make_table("T" * 17 + "SSS"), confusion)["ambiguity"]
    assert (found["value"], found["low"]) == (0, 0)
    assert 0 < found["high"] < 20


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
    confusion = {"tumor": [80, 20, 5, 95], "stroma": [80, 20, 5, 95]}
    found = measure_whole(make_table("TS........"), confusion)["ambiguity"]
    assert found["low"] is None
    assert "errors alone may explain" in found["reason"]


def test_a_malformed_confusion_is_refused():
    for cells in ([1, 2, 3], [1, 2, 3, -1]):
        with pytest.raises(TSRError, match=r"four counts \[tn, fp, fn, tp\]"):
            measure_whole(make_table("TS"), {"tumor": cells, "stroma": [1, 1, 1, 1]})


def test_wilson_equals_scipy():
    for successes, n in ((0, 5), (3, 7), (12, 12), (480, 500)):
        expected = scipy.stats.binomtest(successes, n).proportion_ci(0.95, "wilson")
        assert ambiguity.wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
