"""The tumor-to-stroma ratio on grids small enough to check by hand."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from histojax.evaluation import bootstrap
from histojax.slides.tsr import tsr
from histojax.slides.tsr.spec import TSRError, TSRSpec
from tests.helpers.tsr_grids import GEOMETRY, THRESHOLDS, make_spec, make_table, measure_whole, random_table, value

# --- Areas and ratios ---------------------------------------------------------------------------------------

GRID = ("TTTS", "TBBS", "N. S")  # 4 T, 2 B, 3 S, 1 N, 1 of nothing: 11 tiles


@pytest.mark.parametrize(
    ("policy", "tumor", "stroma"),
    [
        ("probability", 4 + 2 * 0.4, 3 + 2 * 0.6),  # 4.8 and 4.2 cells
        ("half", 5, 4),
        ("both", 6, 5),
    ],
)
def test_areas_and_ratios_by_hand(policy, tumor, stroma):
    area = measure_whole(make_table(*GRID), policy=policy, necrosis="necrosis")
    assert (area["status"], area["reason"], area["tiles"]) == ("evaluated", None, 11)
    assert area["tissue_mm2"] == pytest.approx(0.11)
    assert {name: label["tiles"] for name, label in area["labels"].items()} == {"tumor": 6, "stroma": 5, "necrosis": 1}
    assert area["labels"]["tumor"]["mm2"] == pytest.approx(0.06)
    assert area["labels"]["stroma"]["mm2"] == pytest.approx(0.05)
    assert area["tiles_of_both"] == 2
    assert area["tumor_mm2"] == pytest.approx(0.01 * tumor)
    assert area["stroma_mm2"] == pytest.approx(0.01 * stroma)
    assert value(area, "tsr") == pytest.approx(tumor / stroma)
    assert value(area) == pytest.approx(100 * stroma / (tumor + stroma))
    assert value(area, "tumor_percentage") == pytest.approx(100 * tumor / (tumor + stroma))
    assert value(area, "necrosis_share") == pytest.approx(1 / 11)


def test_area_by_probability_is_its_sum():
    # Tumor 4 * 0.9 + 2 * 0.6 + 5 * 0.1 = 5.3 cells; stroma 3 * 0.9 + 2 * 0.9 + 6 * 0.1 = 5.1.
    area = measure_whole(make_table(*GRID), measure="probability", necrosis="necrosis")
    assert area["tumor_mm2"] == pytest.approx(0.053)
    assert area["stroma_mm2"] == pytest.approx(0.051)
    assert area["labels"]["tumor"] == {"tiles": 6, "mm2": pytest.approx(0.053)}
    assert value(area) == pytest.approx(100 * 5.1 / 10.4)
    assert value(area, "necrosis_share") == pytest.approx((0.9 + 10 * 0.1) / 11)
    assert "--measure label" in area["corrected"]["reason"]


def test_a_probability_at_the_threshold_is_carried():
    table = make_table("T.")
    table["prob_stroma"] = [0.35, np.nextafter(0.35, 0)]
    area = measure_whole(table, thresholds=THRESHOLDS | {"stroma": 0.35}, policy="both")
    assert area["labels"]["stroma"]["tiles"] == 1


def test_without_thresholds_a_tile_carries_its_most_probable_label():
    table = make_table("TSN")
    table[["prob_tumor", "prob_stroma", "prob_necrosis"]] = [[0.4, 0.35, 0.25], [0.2, 0.45, 0.35], [0.3, 0.3, 0.4]]
    area = measure_whole(table, thresholds={})
    assert [label["tiles"] for label in area["labels"].values()] == [1, 1, 1]
    assert value(area) == 50


def test_overlap_is_not_counted_twice():
    table = make_table(*GRID)
    beside = dataclasses.replace(GEOMETRY, tile=200)
    assert measure_whole(table) == measure_whole(table, geometry=beside)
    sparse = measure_whole(table, geometry=dataclasses.replace(GEOMETRY, stride=400))
    assert sparse["tumor_mm2"] == pytest.approx(4 * measure_whole(table)["tumor_mm2"])


def test_stroma_far_from_tumor_is_left_out():
    # Distances from the tumor at (1, 1) in cells of 100 µm: 1, 1.414, 2, 2.236, 2.828 and more.
    table = make_table("SSSSS", "STSSS", "SSSSS", "SSSSS")
    counted = {0: 19, 99: 0, 100: 4, 141: 4, 142: 8, 200: 10, 224: 14, 283: 15, 300: 16, 400: 19}
    for reach, tiles in counted.items():
        area = measure_whole(table, tumor_distance_um=float(reach))
        assert area["stroma_mm2"] == pytest.approx(0.01 * tiles), reach
        assert area["labels"]["stroma"]["tiles"] == 19
    assert measure_whole(table, tumor_distance_um=300.0, thresholds=THRESHOLDS | {"tumor": 1.0})["stroma_mm2"] == 0
    # In floats 330 / (200 × 0.55) is less than 3: the end belongs to the reach all the same.
    odd = dataclasses.replace(GEOMETRY, mpp=0.55)
    assert measure_whole(table, geometry=odd, tumor_distance_um=330.0)["stroma_mm2"] == pytest.approx(16 * 0.11**2)


def test_a_tile_with_both_has_no_distance_to_tumor():
    area = measure_whole(make_table("B  S"), tumor_distance_um=1.0, policy="both")
    assert (area["tumor_mm2"], area["stroma_mm2"]) == pytest.approx((0.01, 0.01))


@pytest.mark.parametrize(
    ("tiles", "cutoff", "expected"),
    [
        ("TS", "default", "stroma-low"), ("TS", "colon", "stroma-low"), ("TS", "hcc", "stroma-high"),
        ("TSS", "colon", "stroma-high"), ("TTS", "hcc", "stroma-low"),
    ],
)  # fmt: skip
def test_the_cutoffs_at_fifty(tiles, cutoff, expected):
    measured = tsr.measure(make_table(tiles), GEOMETRY, make_spec(cutoff=cutoff))
    area = measured["areas"]["whole tissue"]
    assert area["stroma_class"]["name"] == expected
    assert area["stroma_class"]["rule"] == measured["cutoff"]
    assert (">= 50 %" if cutoff == "hcc" else "> 50 %") in measured["cutoff"]


def test_no_stroma_has_a_percentage_and_no_ratio():
    area = measure_whole(make_table("TTT"))
    assert value(area) == 0
    assert value(area, "tumor_percentage") == 100
    assert area["tsr"] == {
        "value": None,
        "low": None,
        "high": None,
        "reason": "no stroma (stroma): the ratio is unbounded",
    }


# --- Not evaluable ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "changes", "reason"),
    [
        (["  "], {}, "no tissue tiles"),
        (["TS"], {"min_tissue_mm2": 0.05}, "too little tissue: 0.02 mm², --min_tissue_mm2 requires 0.05"),
        (["TSS"], {"min_tumor_mm2": 0.02}, "too little tumor (tumor): 0.01 mm², --min_tumor_mm2 requires 0.02"),
        (["N."], {}, "no tumor (tumor) and no stroma (stroma): the ratio is undefined"),
    ],
)
def test_an_area_that_is_not_evaluable_has_a_reason_and_counts(lines, changes, reason):
    table = make_table(*lines)
    areas = tsr.measure(table, GEOMETRY, make_spec(**changes))["areas"]
    area = areas["whole tissue"]
    assert area["status"] == "not evaluable"
    assert area["reason"] == reason
    assert area["tiles"] == len(table)
    for name in tsr.FIGURES:
        assert area[name] == {"value": None, "low": None, "high": None, "reason": "not evaluable"}
    assert area["stroma_class"]["name"] is None
    assert area["corrected"]["low"] is None
    assert areas["hot spot"]["reason"] == f"whole tissue: {area['reason']}"
    json.dumps(areas, allow_nan=False)


# --- Region ---------------------------------------------------------------------------------------------


def test_a_region_is_measured_beside_the_measure_whole():
    table = make_table(*GRID)
    inside = (table["column"] <= 1).to_numpy()  # T T / T B / N .
    areas = tsr.measure(table, GEOMETRY, make_spec(policy="both"), inside)["areas"]
    assert list(areas) == ["whole tissue", "region", "hot spot"]
    assert areas["region"]["tiles"] == 6
    assert value(areas["region"]) == pytest.approx(100 * 1 / 5)
    assert value(areas["whole tissue"]) == pytest.approx(100 * 5 / 11)
    nothing = tsr.measure(table, GEOMETRY, make_spec(), np.zeros(11, bool))["areas"]
    assert nothing["region"]["reason"] == "no tissue tiles"
    assert nothing["hot spot"]["reason"] == "region: no tissue tiles"


def test_tumor_beyond_the_region_counts_for_the_distance():
    table = make_table("TS T")
    inside = (table["column"] != 0).to_numpy()
    area = tsr.measure(table, GEOMETRY, make_spec(tumor_distance_um=100.0), inside)["areas"]["region"]
    assert area["stroma_mm2"] == pytest.approx(0.01)


# --- Intervals ----------------------------------------------------------------------------------------------


def test_intervals_equal_a_loop_over_the_same_blocks():
    # Blocks of 10 × 10 cells (1000 µm): 3 × 4 of them, the last column only 5 cells wide.
    table = random_table(30, 35, kinds="TTSSBN.")
    area = measure_whole(table, resamples=200, seed=5, policy="half", necrosis="necrosis")
    assert area["blocks"] == {"tissue": 12, "tumor_or_stroma": 12}
    assert area["notes"] == []
    block = (table["row"] // 10 * 4 + table["column"] // 10).to_numpy()
    t, s, n = (table[f"prob_{label}"].to_numpy() >= 0.5 for label in THRESHOLDS)
    stroma, necrosis = [], []
    (weights,) = bootstrap.weight_chunks(12, 200, 5)
    for w in weights:
        tumor_cells, stroma_cells, necrosis_cells = (
            (w[block] * cells).sum() for cells in (t - 0.5 * (t & s), s - 0.5 * (t & s), n)
        )
        stroma.append(100 * stroma_cells / (tumor_cells + stroma_cells))
        necrosis.append(necrosis_cells / w[block].sum())
    # Percentiles as wide as Student's t with 11 degrees of freedom: Φ(-√(12/11) · 2.20099) = 0.010747.
    outer = 100 * 0.010747
    for name, resampled in (("stroma_percentage", stroma), ("necrosis_share", necrosis)):
        expected = np.percentile(resampled, [outer, 100 - outer])
        np.testing.assert_allclose([area[name]["low"], area[name]["high"]], expected, rtol=1e-4)
    low, high = area["stroma_percentage"]["low"], area["stroma_percentage"]["high"]
    assert (area["tumor_percentage"]["low"], area["tumor_percentage"]["high"]) == (100 - high, 100 - low)
    assert area["tsr"]["low"] == pytest.approx((100 - high) / high)
    assert area["tsr"]["high"] == pytest.approx((100 - low) / low)
    same = np.mean((np.array(stroma) > 50) == (value(area) > 50))
    assert area["stroma_class"]["same_class_share"] == same


def test_few_blocks_have_no_interval():
    three = measure_whole(random_table(10, 30))
    assert three["blocks"]["tumor_or_stroma"] == 3
    assert three["stroma_percentage"]["value"] is not None
    assert three["stroma_percentage"]["low"] is None
    assert three["tsr"]["reason"] == "no interval: only 3 blocks have tumor or stroma, at least 4 are needed"
    assert three["stroma_class"]["same_class_share"] is None
    four = measure_whole(random_table(10, 40))
    assert four["stroma_percentage"]["low"] < value(four) < four["stroma_percentage"]["high"]
    assert four["notes"] == ["only 4 blocks have tumor or stroma: the interval is rough"]


def test_blocks_without_tumor_and_stroma_give_no_interval():
    # Three blocks of tumor and stroma among forty of other tissue.
    lines = [(line + "." * 370) for line in ("TSTTS" * 6,) * 10]
    area = measure_whole(make_table(*lines))
    assert area["blocks"] == {"tissue": 40, "tumor_or_stroma": 3}
    assert (
        area["stroma_percentage"]["reason"] == "no interval: only 3 blocks have tumor or stroma, at least 4 are needed"
    )
    assert area["stroma_class"]["same_class_share"] is None
    sparse = measure_whole(make_table(*[("TSTTSSSTTT" * 4 + "." * 960) for _ in range(10)]), resamples=400)
    assert sparse["blocks"] == {"tissue": 100, "tumor_or_stroma": 4}
    assert any("neither tumor nor stroma" in note for note in sparse["notes"])


def test_equal_blocks_are_not_certainty():
    area = measure_whole(make_table(*["T" * 30] * 30))
    assert area["tumor_percentage"] == {
        "value": 100,
        "low": None,
        "high": None,
        "reason": "no interval: all resamples are equal",
    }


def test_a_ratio_may_have_no_upper_end():
    # Stroma in one block of six: resamples without it have TSP 0 and no ratio.
    lines = ["T" * 10 * 5 + "S" * 10] * 10
    area = measure_whole(make_table(*lines), resamples=400)
    assert area["stroma_percentage"]["low"] == 0
    assert area["tsr"]["low"] is not None
    assert area["tsr"]["high"] is None
    assert area["tsr"]["reason"].startswith("no upper end")


def test_block_sides_are_whole_cells():
    measured = tsr.measure(random_table(), GEOMETRY, make_spec(block_um=1040.0, hot_spot_um=470.0))
    assert measured["block_um"] == pytest.approx(1000)
    assert measured["hot_spot_um"] == pytest.approx(500)
    assert tsr.measure(random_table(), GEOMETRY, make_spec(block_um=1.0))["block_um"] == pytest.approx(100)


# --- Invariances, JSON and errors ---------------------------------------------------------------------------

CONFUSION = {label: [90, 10, 10, 90] for label in THRESHOLDS}


def test_the_order_of_the_rows_changes_nothing():
    table = random_table()
    inside = (table["column"] < 30).to_numpy()
    mixed = np.random.default_rng(1).permutation(len(table))
    spec = make_spec(tumor_distance_um=200.0, necrosis="necrosis")
    expected = tsr.measure(table, GEOMETRY, spec, inside, CONFUSION)
    assert tsr.measure(table.iloc[mixed], GEOMETRY, spec, inside[mixed], CONFUSION) == expected


def test_the_position_of_the_tissue_changes_only_the_box():
    table = random_table()
    spec = make_spec(necrosis="necrosis")
    here = tsr.measure(table, GEOMETRY, spec)["areas"]
    there = tsr.measure(table.assign(row=table["row"] + 3, column=table["column"] + 7), GEOMETRY, spec)["areas"]
    boxes = here["hot spot"].pop("box"), there["hot spot"].pop("box")
    assert here == there
    assert (boxes[1]["minx"] - boxes[0]["minx"], boxes[1]["miny"] - boxes[0]["miny"]) == (7 * 200, 3 * 200)


def test_the_table_is_not_modified():
    table = random_table()
    before = table.copy()
    tsr.measure(table, GEOMETRY, make_spec(measure="probability"))
    pd.testing.assert_frame_equal(table, before)


def test_the_result_is_json_and_states_its_rules():
    spec = make_spec(tumor_distance_um=150.0)
    measured = tsr.measure(random_table(), GEOMETRY, spec, confusion=CONFUSION)
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    assert measured["settings"]["thresholds"] == THRESHOLDS
    assert "in proportion to their probabilities" in measured["rules"][1]
    assert "at most 150 µm" in measured["rules"][2]
    assert "most probable" in make_spec(thresholds={}).sentences()[0]
    assert "sum of its probability" in make_spec(measure="probability").sentences()[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measure": "area"}, "--measure 'area' is not one of label, probability"),
        ({"policy": "split"}, "--policy 'split' is not one of probability, half, both"),
        ({"cutoff": "lung"}, "--cutoff 'lung' is not one of default, colon, hcc"),
        ({"measure": "probability", "policy": "half"}, "use only one of the two options"),
        ({"block_um": 0.0}, "--block_um 0.0 must be a length above 0 µm"),
        ({"hot_spot_um": float("nan")}, "--hot_spot_um nan must be a length"),
        ({"tumor_distance_um": -1.0}, "--tumor_distance_um -1.0 must be 0 or more"),
        ({"min_tumor_mm2": float("inf")}, "--min_tumor_mm2 inf must be 0 or more"),
        ({"resamples": 0}, "--resamples 0 must be 1 or more"),
        ({"necrosis": "stroma"}, "must differ"),
    ],
)
def test_an_invalid_spec_is_refused(changes, message):
    with pytest.raises(TSRError) as error:
        TSRSpec(**changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tumor": "tumour"}, "no label 'tumour' (--tumor); choose one of tumor, stroma, necrosis"),
        ({"stroma": ""}, "no label '' (--stroma)"),
        ({"necrosis": "dead"}, "no label 'dead' (--necrosis)"),
        ({"thresholds": {"tumor": 0.5}}, "thresholds are given for tumor, but the model's labels are tumor, stroma"),
        ({"thresholds": THRESHOLDS | {"stroma": 1.5}}, "the threshold 1.5 of label 'stroma'"),
    ],
)
def test_labels_that_the_model_lacks_are_refused(changes, message):
    with pytest.raises(TSRError) as error:
        measure_whole(make_table("TS"), **changes)
    assert message in str(error.value)


def test_an_invalid_table_is_refused():
    table = make_table("TS")
    with pytest.raises(TSRError, match="repeats a row and column"):
        measure_whole(pd.concat([table, table]))
    with pytest.raises(TSRError, match="missing probabilities or ones outside"):
        measure_whole(table.assign(prob_tumor=[0.5, np.nan]))
    for inside in ([True], np.array([1, 0])):
        with pytest.raises(TSRError, match="2 booleans"):
            tsr.measure(table, GEOMETRY, make_spec(), np.asarray(inside))
