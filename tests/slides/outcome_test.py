"""Outcome: joined tables with what was left out, figures that equal lifelines', and the outputs."""

import dataclasses
import json
import pathlib
import xml.etree.ElementTree
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from data_pipelines.errors import DataError
from histojax.core.errors import RunError
from histojax.evaluation.survival import Z95
from histojax.slides.outcome import analysis, correction, covariates, tables, text, write
from histojax.slides.outcome.spec import USE, OutcomeSpec
from histojax.slides.tsr import agreement
from tests.helpers.survival_tables import EXPECTED, FOLDER

SPEC = OutcomeSpec("months", resamples=50)
TABLE = pd.read_csv(FOLDER / "table.csv")
PATTERN = r"^(?P<patient>P\d+)_"


def write_tables(folder: pathlib.Path, slides: pd.DataFrame | None = None, clinical: pd.DataFrame | None = None) -> Any:
    """Write slides.csv, of one slide per patient of the fixed table, and clinical.csv, and return both paths."""
    paths = folder / "slides.csv", folder / "clinical.csv"
    if slides is None:
        slides = pd.DataFrame({"name": TABLE["patient_id"] + "_a", "patient_id": TABLE["patient_id"], "status": "done"})
        slides = slides.assign(ratio="evaluated", stroma_percentage=TABLE["stroma"])
    slides.to_csv(paths[0], index=False)
    (TABLE.drop(columns="stroma") if clinical is None else clinical).to_csv(paths[1], index=False)
    return paths


def analysed(folder: pathlib.Path, spec: OutcomeSpec = SPEC, **frames: pd.DataFrame) -> dict[str, Any]:
    """The figures of the tables that `write_tables` writes."""
    return analysis.analyse(tables.join(*write_tables(folder, **frames), spec).included, spec)


def rows(*cells: str, header: str) -> pd.DataFrame:
    """A table of text from comma-separated lines."""
    return pd.DataFrame([line.split(",") for line in cells], columns=header.split(","))


# --- Tables -------------------------------------------------------------------------------------------------


def test_three_ways_name_the_patient_of_a_slide(tmp_path: pathlib.Path) -> None:
    by_column = tables.join(*write_tables(tmp_path), SPEC)
    slides = pd.read_csv(tmp_path / "slides.csv").drop(columns="patient_id")
    paths = write_tables(tmp_path, slides)
    by_pattern = tables.join(*paths, dataclasses.replace(SPEC, patient_pattern=PATTERN))
    clinical = TABLE.assign(slide=TABLE["patient_id"] + "_a")
    paths = write_tables(tmp_path, slides, clinical)
    by_table = tables.join(*paths, dataclasses.replace(SPEC, slide_column="slide"))
    assert by_column.included == by_pattern.included == by_table.included
    assert len(by_column.included) == 90
    assert by_column.exclusions() == []


def test_what_is_left_out_is_counted_with_reason_and_remedy(tmp_path: pathlib.Path) -> None:
    slides = rows(
        "a,done,evaluated,40,P1", "b,failed,,,P2", "c,done,not evaluable,,P3", "d,done,evaluated,50,",
        "e,done,evaluated,60,P9", "f,done,evaluated,70,P4", "g,done,evaluated,70,P5", "h,done,evaluated,70,P6",
        header="name,status,ratio,stroma_percentage,patient_id",
    )  # fmt: skip
    clinical = rows(
        "P1,5,1,60", "P2,5,1,60", "P3,5,0,60", "P4,,1,60", "P5,0,0,60", "P6,5,TRUE,", "P7,5,0.0,60", "P8,5,,60",
        header="patient_id,time,event,age",
    )  # fmt: skip
    joined = tables.join(*write_tables(tmp_path, slides, clinical), dataclasses.replace(SPEC, adjust=["age"]))
    assert [patient.name for patient in joined.included] == ["P1"]
    found = {(one["kind"], one["reason"]): one["names"] for one in joined.exclusions()}
    assert found == {
        ("slide", "histojax slide failed"): ["b"],
        ("slide", "not evaluable"): ["c"],
        ("slide", "no patient"): ["d"],
        ("slide", "patient not in the clinical table"): ["e"],
        ("patient", "no slide is evaluable"): ["P2", "P3"],
        ("patient", "time or event is empty"): ["P4", "P8"],
        ("patient", "time is not above 0"): ["P5"],
        ("patient", "a column of --adjust is empty"): ["P6"],
        ("patient", "no slide"): ["P7"],
    }
    assert all(one["count"] == len(one["names"]) and len(one["remedy"]) > 10 for one in joined.exclusions())


def test_equal_rows_count_once_and_are_noted(tmp_path: pathlib.Path) -> None:
    slides = pd.DataFrame({"name": "a", "patient_id": "P1", "stroma_percentage": [40, 40]})
    clinical = pd.DataFrame({"patient_id": "P1", "time": [5, 5], "event": 1})
    joined = tables.join(*write_tables(tmp_path, slides, clinical), SPEC)
    assert [patient.slides for patient in joined.included] == [("a",)]
    assert tables.listed(["a"] * 9)[4:] == ["a", "and 4 more"]
    assert [note.partition("clinical.csv")[2] or note.partition("slides.csv")[2] for note in joined.notes] == [
        ", line 3: repeats the row of patient 'P1'; it counts once",
        ", line 3: repeats the row of slide 'a'; it counts once",
    ]


def test_slides_of_a_patient_are_combined(tmp_path: pathlib.Path) -> None:
    slides = rows(
        "a,P1,40,10,evaluated,80", "b,P1,60,30,evaluated,70", "c,P1,90,0,not evaluable,90", "d,P2,20,,evaluated,",
        header="name,patient_id,stroma_percentage,tumor_and_stroma_mm2,ratio,hot_spot_stroma_percentage",
    )  # fmt: skip
    paths = write_tables(tmp_path, slides, rows("P1,5,1", "P2,5,1", header="patient_id,time,event"))

    def percentages(**changes: Any) -> list[float | None]:
        return [patient.percentage for patient in tables.join(*paths, dataclasses.replace(SPEC, **changes)).patients]

    assert percentages() == [60, 20]
    assert percentages(combine="area") == [(40 * 10 + 60 * 30) / 40, 20]
    assert percentages(part="hot_spot") == [90, None]
    slides.drop(columns="tumor_and_stroma_mm2").to_csv(paths[0], index=False)
    with pytest.raises(
        RunError, match=r"line 2: column tumor_and_stroma_mm2 is missing.*Rerun the same histojax slide"
    ):
        percentages(combine="area")
    with pytest.raises(RunError, match=r"no column region_stroma_percentage: run histojax slide with --roi"):
        percentages(part="region")


SLIDES, CLINICAL = "name,patient_id,stroma_percentage", "patient_id,time,event"


@pytest.mark.parametrize(
    ("slides", "clinical", "changes", "message"),
    [
        (
            [],
            ["P1,5,dead", "P2,5,1", "P3,5,2"],
            {},
            r"line 2, column event: 'dead'\n.*line 4.*\n2 cells of column event",
        ),
        ([], ["P1,5,1", "P1,6,1"], {}, r"line 2, and .*line 3: patient 'P1'\n1 rows of .*keep one of each"),
        ([], ["P1,x,1"], {}, r"line 2, column time: 'x' is not a time in months; leave unknown cells empty"),
        ([], ["P1,inf,1"], {}, r"'inf' is not a time in months"),
        ([], [",5,1"], {}, r"line 2, column patient_id: empty"),
        ([], ["P2,5,1"], {}, r"no slide of .* the slides' patients are 'P1', those of the table 'P2'"),
        ([], [], {}, r"clinical.csv: no rows"),
        (
            [],
            ["P1,5,1"],
            {"time_column": "tme"},
            r"no column tme \(did you mean 'time'\?\); name it with --time_column",
        ),
        (
            [],
            ["P1,5,1"],
            {"adjust": ["age"]},
            r"no column age; name it with --adjust. The columns are patient_id, time",
        ),
        (["a,P1,120"], ["P1,5,1"], {}, r"slides.csv, line 2, column stroma_percentage: 120 is not between 0 and 100"),
        (["a,P1,much"], ["P1,5,1"], {}, r"line 2, column stroma_percentage: 'much' is not a percentage"),
        (["a,P1,40", "a,P1,41"], ["P1,5,1"], {}, r"line 2, and .*line 3: two different rows of slide 'a'"),
    ],
)
def test_a_bad_cell_is_named_with_its_place(
    slides: list[str], clinical: list[str], changes: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    paths = write_tables(tmp_path, rows(*slides or ["a,P1,40"], header=SLIDES), rows(*clinical, header=CLINICAL))
    with pytest.raises(RunError, match=message):
        tables.join(*paths, dataclasses.replace(SPEC, **changes))


def test_a_decimal_comma_is_explained(tmp_path: pathlib.Path) -> None:
    slides, clinical = write_tables(tmp_path)
    clinical.write_text("patient_id;time;event\nP01;12,5;1\n")
    with pytest.raises(RunError, match=r"'12,5' is not a time in months; write a decimal point"):
        tables.join(slides, clinical, SPEC)


def test_tables_that_cannot_be_joined_are_refused(tmp_path: pathlib.Path) -> None:
    slides, clinical = write_tables(tmp_path)
    with pytest.raises(DataError, match=r"none.csv: cannot be read"):
        tables.join(tmp_path / "none.csv", clinical, SPEC)
    with pytest.raises(RunError, match=r"no column name: give slides.csv of histojax slide"):
        tables.join(clinical, clinical, SPEC)
    table = pd.read_csv(slides)
    for without in (table.drop(columns="patient_id"), table.assign(patient_id=None)):
        without.to_csv(slides, index=False)
        with pytest.raises(
            RunError, match=r"which patient a slide belongs to. Give --patient_pat.*--slide_col.*list of"
        ):
            tables.join(slides, clinical, SPEC)
    slides.write_text("name,patient_id,stroma_percentage\n")
    with pytest.raises(RunError, match="no rows; histojax slide has analysed no slide"):
        tables.join(slides, clinical, SPEC)


def test_a_slide_of_two_patients_is_refused(tmp_path: pathlib.Path) -> None:
    clinical = rows("P1,a,5,1", "P2,a,5,1", header="patient_id,slide,time,event")
    paths = write_tables(tmp_path, rows("a,,40", header=SLIDES), clinical)
    with pytest.raises(RunError, match=r"line 3: slide 'a' of both 'P1' and 'P2'"):
        tables.join(*paths, dataclasses.replace(SPEC, slide_column="slide"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_unit": "month"}, "--time_unit 'month' is not one of days, weeks, months, years"),
        ({"part": "tumor"}, "--part 'tumor' is not one of"),
        ({"combine": "mean"}, "--combine 'mean' is not one of highest, area"),
        ({"patient_pattern": "P"}, r"has no group \(\?P<patient>…\)"),
        ({"patient_pattern": "("}, "--patient_pattern '\\('"),
        ({"patient_pattern": PATTERN, "slide_column": "s"}, "give one of them"),
        ({"adjust": ["time"]}, "column time is named for two purposes"),
        ({"categorical": ["stage"]}, "--categorical stage is not among the columns of --adjust"),
        ({"cutoffs": []}, "--cutoff is empty"),
        ({"cutoffs": ["colno"]}, r"neither a percentage nor one of default, colon, hcc \(did you mean 'colon'\?\)"),
        ({"cutoffs": ["100"]}, "--cutoff 100 must lie between 0 and 100 %"),
        ({"cutoffs": ["default", "50"]}, "--cutoff default and 50 are the same rule"),
    ],
)
def test_illegal_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        dataclasses.replace(SPEC, **changes)


# --- Figures ------------------------------------------------------------------------------------------------


def test_figures_equal_lifelines(tmp_path: pathlib.Path) -> None:
    figures = analysed(tmp_path, dataclasses.replace(SPEC, adjust=["age", "stage"]))
    expected, sd = EXPECTED["cox"], TABLE["stroma"].std()
    assert figures["stroma_percentage"]["sd"] == pytest.approx(sd)
    for model, name in (("unadjusted", "stroma"), ("adjusted", "adjusted")):
        found = figures["per_sd"][model]
        assert found["beta"] == pytest.approx(expected[name]["beta"][0], abs=1e-8)
        ends = [np.exp(sd * (found["beta"] + sign * Z95 * found["standard_error"])) for sign in (0, -1, 1)]
        assert [found["hazard_ratio"][key] for key in ("value", "low", "high")] == pytest.approx(ends)
        assert found["standard_error"] == pytest.approx(expected[name]["standard_error"][0], abs=1e-8)
    adjusted = figures["per_sd"]["adjusted"]
    assert [(one["name"], one["reference"]) for one in adjusted["covariates"]] == [
        ("age", None), ("stage II", "I"), ("stage III", "I"),
    ]  # fmt: skip
    ratios = [one["hazard_ratio"]["value"] for one in adjusted["covariates"]]
    np.testing.assert_allclose(ratios, np.exp(expected["adjusted"]["beta"][1:]), rtol=1e-7)
    chi2 = 2 * (expected["adjusted"]["log_likelihood"] - expected["covariates"]["log_likelihood"])
    assert adjusted["p"] == pytest.approx(analysis.survival.chi2_p(chi2), rel=1e-6)
    block = figures["cutoffs"]["default"]
    assert block["log_rank"]["p"] == pytest.approx(EXPECTED["log_rank"]["p"], abs=1e-9)
    ratio = block["hazard_ratio"]["unadjusted"]["hazard_ratio"]
    assert ratio["value"] == pytest.approx(np.exp(expected["high"]["beta"][0]), abs=1e-7)
    assert (ratio["low"], ratio["high"]) == pytest.approx((expected["high"]["low"][0], expected["high"]["high"][0]))
    for name, group in (("high", "stroma-high"), ("low", "stroma-low")):
        curve, median = block["groups"][group]["curve"], block["groups"][group]["median"]
        np.testing.assert_allclose(curve["low"], EXPECTED["curves"][name]["low"], atol=1e-9)
        assert [median[key] for key in ("value", "low", "high")] == EXPECTED["curves"][name]["median"]
        at_risk = [int((TABLE["time"][(TABLE["stroma"] > 50) == (name == "high")] >= t).sum()) for t in (0, 12, 24)]
        assert block["at_risk"]["time"][:3] == [0, 12, 24]
        assert block["at_risk"][group][:3] == at_risk
    reverse = scipy.stats.ecdf(scipy.stats.CensoredData.right_censored(TABLE["time"], TABLE["event"] == 1)).sf
    assert figures["median_follow_up"] == reverse.quantiles[reverse.probabilities <= 0.5][0]
    assert figures["concordance"]["value"] == pytest.approx(EXPECTED["concordance"], abs=1e-9)
    assert figures["concordance"]["low"] < EXPECTED["concordance"] < figures["concordance"]["high"]


def test_the_direction_of_the_concordance_is_fixed(tmp_path: pathlib.Path) -> None:
    slides = pd.DataFrame({"name": TABLE["patient_id"], "patient_id": TABLE["patient_id"]})
    figures = analysed(tmp_path, slides=slides.assign(stroma_percentage=100 - TABLE["stroma"]))
    assert figures["concordance"]["value"] == pytest.approx(1 - EXPECTED["concordance"])
    assert figures["concordance"]["value"] < 0.5
    assert figures["per_sd"]["unadjusted"]["hazard_ratio"]["value"] < 1


def test_numbers_that_are_names_are_categories_when_asked(tmp_path: pathlib.Path) -> None:
    clinical = TABLE.assign(stage=TABLE["stage"].str.len())
    spec = dataclasses.replace(SPEC, adjust=["age", "stage"])
    as_numbers = analysed(tmp_path, spec, clinical=clinical)["per_sd"]["adjusted"]
    assert [one["name"] for one in as_numbers["covariates"]] == ["age", "stage"]
    as_names = analysed(tmp_path, dataclasses.replace(spec, categorical=["stage"]), clinical=clinical)
    beta = as_names["per_sd"]["adjusted"]["beta"]
    assert beta == pytest.approx(EXPECTED["cox"]["adjusted"]["beta"][0], abs=1e-8)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["63", "old"] * 45, r"line 3, column x: 'old' is no number, but other cells are.*--categorical \(45 such"),
        (["II"] * 90, "--adjust x: all 90 patients have 'II'; drop the column"),
    ],
)
def test_a_column_that_cannot_be_a_covariate_is_refused(
    column: list[str], message: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(RunError, match=message):
        analysed(tmp_path, dataclasses.replace(SPEC, adjust=["x"]), clinical=TABLE.assign(x=column))


def with_events(n: int) -> pd.DataFrame:
    """The clinical table with only its first n events."""
    return TABLE.assign(event=TABLE["event"] * (TABLE["event"].cumsum() <= n))


def test_few_events_warn_in_every_output_and_very_few_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RunError, match="4 events in 90 patients: at least 5 are needed"):
        analysed(tmp_path, clinical=with_events(4))
    spec = dataclasses.replace(SPEC, adjust=["age", "stage"])
    assert analysed(tmp_path, clinical=with_events(10))["warnings"] == []
    (warning,) = analysed(tmp_path, spec, clinical=with_events(39))["warnings"]
    assert warning.startswith("39 events for 4 coefficients of the adjusted model: with fewer than 10 per coefficient")
    assert analysed(tmp_path, spec, clinical=with_events(40))["warnings"] == []
    result = write.outcome(*write_tables(tmp_path, clinical=with_events(9)), SPEC, tmp_path / "out")
    warning = "9 events for 1 coefficient of the model: with fewer than 10 per coefficient"
    assert warning in json.loads((tmp_path / "out" / "outcome.json").read_text())["figures"]["warnings"][0]
    assert pd.read_csv(tmp_path / "out" / "outcome.csv")["warnings"].str.contains(warning).all()
    assert warning in svg_text(tmp_path / "out" / "outcome.svg")
    assert f"warning: {warning}" in "\n".join(text.lines(result))


def test_groups_without_patients_or_events_have_a_reason_and_no_number(tmp_path: pathlib.Path) -> None:
    clinical = TABLE.assign(event=TABLE["event"] * (TABLE["stroma"] > 50))
    spec = dataclasses.replace(SPEC, cutoffs=["default", "99"])
    result = write.outcome(*write_tables(tmp_path, clinical=clinical), spec, tmp_path / "out")
    blocks = result["figures"]["cutoffs"]
    found = blocks["default"]["hazard_ratio"]["unadjusted"]["hazard_ratio"]
    assert found["value"] is None
    assert found["reason"] == "no estimate: no patient outside stroma-high has an event"
    assert blocks["default"]["log_rank"]["p"] < 0.001
    assert blocks["default"]["groups"]["stroma-low"]["median"]["reason"] == "the curve does not fall to 0.5"
    assert blocks["99"]["hazard_ratio"]["unadjusted"]["hazard_ratio"]["reason"] == "all patients are stroma-low"
    assert blocks["99"]["log_rank"] == {"chi2": None, "p": None, "reason": "all patients are stroma-low"}
    assert blocks["99"]["groups"]["stroma-high"]["curve"] is None
    assert "hazard ratio - (all patients are stroma-low)" in svg_text(tmp_path / "out" / "outcome.svg")


def test_patients_in_perfect_order_have_no_hazard_ratio_and_no_interval(tmp_path: pathlib.Path) -> None:
    slides = pd.DataFrame({"name": TABLE["patient_id"], "patient_id": TABLE["patient_id"]})
    slides = slides.assign(stroma_percentage=80 - np.arange(90) / 2)
    clinical = TABLE.assign(time=np.arange(90) + 1.0, event=1)
    figures = analysed(tmp_path, slides=slides, clinical=clinical)
    assert figures["concordance"] == {
        "value": 1.0, "low": None, "high": None, "reason": "no interval: all resamples are equal",
    }  # fmt: skip
    for model in (figures["per_sd"], figures["cutoffs"]["default"]["hazard_ratio"]):
        reason = model["unadjusted"]["hazard_ratio"]["reason"]
        assert reason == "no estimate: the likelihood has no finite maximum"
    censored = clinical.assign(event=[*[0] * 85, *[1] * 5], time=[*[1] * 85, *[2] * 5])
    found = analysed(tmp_path, slides=slides, clinical=censored)["concordance"]
    assert found == {"value": None, "low": None, "high": None, "reason": "no two patients can be compared"}


def test_equal_percentages_are_refused(tmp_path: pathlib.Path) -> None:
    slides = pd.DataFrame({"name": TABLE["patient_id"], "patient_id": TABLE["patient_id"], "stroma_percentage": 40})
    with pytest.raises(RunError, match="all 90 patients have the stroma percentage 40"):
        analysed(tmp_path, slides=slides)


def test_own_and_several_cut_offs_warn(tmp_path: pathlib.Path) -> None:
    figures = analysed(tmp_path, dataclasses.replace(SPEC, cutoffs=["hcc", "40"]))
    assert [warning[:20] for warning in figures["warnings"]] == ["cut-off 40 %: valid ", "2 cut-offs were test"]
    tests = [block["log_rank"] for block in figures["cutoffs"].values()]
    assert max(test["p_holm"] for test in tests) == pytest.approx(
        max(max(t["p"] for t in tests), 2 * min(t["p"] for t in tests))
    )
    assert figures["cutoffs"]["hcc"]["rule"].startswith("HCC")
    assert "p_holm" not in analysed(tmp_path)["cutoffs"]["default"]["log_rank"]


def test_numbers_at_risk_and_ticks() -> None:
    assert analysis.axis_ticks(69.3, "months") == [0, 12, 24, 36, 48, 60]
    assert analysis.axis_ticks(2000, "days") == [0, 365, 730, 1095, 1460, 1825]
    assert analysis.axis_ticks(1.2, "years") == [0, 0.25, 0.5, 0.75, 1.0]
    for unit in analysis._STEPS:
        for longest in (0.01, 1, 30, 400, 1e5):
            ticks = analysis.axis_ticks(longest, unit)
            assert ticks[0] == 0
            assert ticks[-1] <= longest
            assert len(ticks) <= 8


# --- Correction ---------------------------------------------------------------------------------------------


def slope(value: float = 0.5, error: float = 0.1) -> correction.Slope:
    return correction.Slope(value, error, value - 2 * error, value + 2 * error, 40, 18.0)


def test_the_corrected_interval_is_fieller_s() -> None:
    value, low, high = correction.correct(0.02, 0.005, slope())
    assert value == 0.04
    for end in (low, high):
        assert abs(0.02 - end * 0.5) == pytest.approx(Z95 * np.hypot(0.005, end * 0.1))
    assert low < value < high
    exact = correction.correct(0.02, 0.005, slope(error=1e-9))
    assert exact == pytest.approx((0.04, 0.04 - 2 * Z95 * 0.005, 0.04 + 2 * Z95 * 0.005))
    assert correction.correct(-0.02, 0.005, slope()) == pytest.approx((-value, -high, -low))


def write_agreement(path: pathlib.Path, n: int = 60, noise: float = 9.0, **changes: Any) -> pathlib.Path:
    """Write agreement.json of n pairs whose error has the standard deviation `noise`."""
    rng = np.random.default_rng(0)
    true = rng.normal(48, 15, n)
    figures = agreement.agreement(true + rng.normal(0, noise, n), true, resamples=200)
    path.write_text(json.dumps({"rules": [], "figures": figures | changes}))
    return path


def test_the_hazard_ratio_is_corrected_by_the_agreement_study(tmp_path: pathlib.Path) -> None:
    path = write_agreement(tmp_path / "agreement.json")
    result = write.outcome(*write_tables(tmp_path), SPEC, tmp_path / "out", path)
    corrected, model = result["figures"]["corrected"], result["figures"]["per_sd"]["unadjusted"]
    sd, lam = result["figures"]["stroma_percentage"]["sd"], corrected["slope"]["value"]
    assert 0.65 < lam < 0.8
    assert corrected["hazard_ratio"]["value"] == pytest.approx(np.exp(sd * model["beta"] / lam))
    assert corrected["hazard_ratio"]["high"] > model["hazard_ratio"]["high"]
    assert len(corrected["assumptions"]) == 4
    assert result["figures"]["warnings"] == []
    assert result["inputs"]["agreement"]["sha256"]
    assert "corrected for measurement error" in "\n".join(text.lines(result))


@pytest.mark.parametrize(
    ("n", "noise", "changes", "message"),
    [
        (60, 200.0, {}, "and may be 0, so a hazard ratio divided by it has no bounds"),
        (9, 1.0, {}, "only 9 images were compared, and a correction needs at least 10"),
        (60, 9.0, {"slope": None}, "no figure `slope`; run histojax slide agreement of this version again"),
        (60, 9.0, {"slope": {"value": None, "reason": "constant"}}, r"the slope is undefined \(constant\)"),
        (60, 9.0, {"units": None}, "not an agreement.json"),
    ],
)
def test_a_slope_that_cannot_correct_is_refused(
    n: int, noise: float, changes: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    path = write_agreement(tmp_path / "agreement.json", n, noise, **changes)
    with pytest.raises(RunError, match=message):
        write.outcome(*write_tables(tmp_path), SPEC, tmp_path / "out", path)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_agreement_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RunError, match=r"absent.json: cannot be read"):
        correction.read_slope(tmp_path / "absent.json")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(RunError, match=r"not an agreement.json of histojax slide agreement"):
        correction.read_slope(tmp_path / "other.json")


def test_a_correction_that_may_not_carry_over_warns(tmp_path: pathlib.Path) -> None:
    path = write_agreement(tmp_path / "agreement.json", predicted_sd=40.0)
    slides, clinical = write_tables(tmp_path)
    table = pd.read_csv(slides)
    pd.concat([table, table[:3].assign(name=["x", "y", "z"])]).to_csv(slides, index=False)
    warnings = write.outcome(slides, clinical, SPEC, tmp_path / "out", path)["figures"]["warnings"]
    assert len(warnings) == 2
    assert "in the cohort and 40.0 in the agreement study" in warnings[0]
    assert "3 patients have several slides" in warnings[1]


# --- Outputs ------------------------------------------------------------------------------------------------


def svg_text(path: pathlib.Path) -> str:
    """The text of an SVG file, its lines joined."""
    root = xml.etree.ElementTree.parse(path).getroot()
    return " ".join("".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text"))


def test_the_outputs(tmp_path: pathlib.Path) -> None:
    slides, clinical = write_tables(tmp_path, clinical=TABLE.assign(time=TABLE["time"].mask(TABLE.index == 1)))
    table = pd.read_csv(slides)
    table.loc[0, ["ratio", "stroma_percentage"]] = ["not evaluable", None]
    pd.concat([table, table[2:3]]).to_csv(slides, index=False)
    result = write.outcome(slides, clinical, dataclasses.replace(SPEC, adjust=["stage"]), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "outcome.csv", "outcome.json", "outcome.png", "outcome.svg",
    ]  # fmt: skip
    saved = json.loads((tmp_path / "out" / "outcome.json").read_text())
    assert saved == json.loads(json.dumps(result))
    assert saved["counts"] == {"slides": 90, "slides_used": 88, "patients": 90}
    assert saved["settings"]["time_unit"] == saved["figures"]["time_unit"] == "months"
    assert USE in (tmp_path / "out" / "outcome.json").read_text()
    csv = pd.read_csv(tmp_path / "out" / "outcome.csv")
    assert csv["patient_id"].tolist() == TABLE["patient_id"].tolist()
    assert csv["status"].value_counts().to_dict() == {"analysed": 88, "left out": 2}
    assert csv["reason"].tolist()[:3] == ["no slide is evaluable", "time or event is empty", np.nan]
    assert csv["class_default"].isna().tolist() == [True, *[False] * 89]
    high = csv.loc[2:, "class_default"] == "stroma-high"
    assert (high == (TABLE["stroma"][2:] > 50)).all()
    assert csv["adjust_stage"].tolist() == TABLE["stage"].tolist()
    assert csv["warnings"].str.startswith(USE).all()
    picture = svg_text(tmp_path / "out" / "outcome.svg")
    count = f"stroma-high: {high.sum()} patients"
    for part in (USE, "stroma-high if stroma percentage > 50 %", count, "at risk", "months"):
        assert part in picture
    assert (tmp_path / "out" / "outcome.png").read_bytes().startswith(b"\x89PNG")
    lines = text.lines(result)
    assert lines[0] == USE
    assert "88 of 90 patients with 50 events, 88 of 90 slides" in lines[2]
    assert any(line.startswith("left out: 1 slide, not evaluable (") for line in lines)
    assert any(line.endswith("line 92: repeats the row of slide 'P02_a'; it counts once") for line in lines)


def test_a_curve_that_falls_to_0_is_written_and_drawn(tmp_path: pathlib.Path) -> None:
    result = write.outcome(*write_tables(tmp_path, clinical=TABLE.assign(event=1)), SPEC, tmp_path / "out")
    curve = result["figures"]["cutoffs"]["default"]["groups"]["stroma-low"]["curve"]
    assert (curve["survival"][-1], curve["low"][-1], curve["high"][-1]) == (0, None, None)
    assert json.loads((tmp_path / "out" / "outcome.json").read_text())["figures"]["median_follow_up"] is None
    assert "median follow-up (reverse Kaplan-Meier) not reached" in "\n".join(text.lines(result))


def test_nothing_is_written_where_nothing_can_be_computed(tmp_path: pathlib.Path) -> None:
    clinical = with_events(2).assign(time=TABLE["time"].mask(TABLE.index == 1))
    with pytest.raises(
        RunError, match=r"or add patients\nleft out: 1 patient, time or event is empty \(fill in both\)$"
    ):
        write.outcome(*write_tables(tmp_path, clinical=clinical), SPEC, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_of_patients_are_kept_as_they_are(tmp_path: pathlib.Path) -> None:
    ids = [f"{i:03}" for i in range(90)]
    slides = pd.DataFrame({"name": ids, "patient_id": ids, "stroma_percentage": TABLE["stroma"]})
    write.outcome(*write_tables(tmp_path, slides, TABLE.assign(patient_id=ids)), SPEC, tmp_path / "out")
    csv = pd.read_csv(tmp_path / "out" / "outcome.csv", dtype=str)
    assert csv["patient_id"].tolist() == csv["slides"].tolist() == ids


def test_covariates_keep_the_order_of_the_columns(tmp_path: pathlib.Path) -> None:
    spec = dataclasses.replace(SPEC, adjust=["stage", "age"])
    found = covariates.covariates(tables.join(*write_tables(tmp_path), spec).included, spec)
    assert [one.name for one in found] == ["stage II", "stage III", "age"]
    np.testing.assert_array_equal(found[2].values, TABLE["age"])
