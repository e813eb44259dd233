"""A cohort with an arithmetic model: failures are reported, results are kept, for every kind of model."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile

from histojax.core.errors import RunError
from histojax.slides import cohort, cohort_jobs
from histojax.slides.tsr.spec import TSRSpec
from tests.helpers import planted
from tests.helpers.colour_slide_model import SMALL, by_colour, model
from tests.helpers.slide_files import write_pyramid, write_scn

pytestmark = pytest.mark.usefixtures("coarse_pictures")


@pytest.fixture
def slides(tmp_path: pathlib.Path) -> list[cohort_jobs.Job]:
    return [
        cohort_jobs.Job(name, planted.write_slide(tmp_path / f"{name}.tif", share))
        for name, share in (("a", 0.25), ("<u>", 0.75))
    ]


def test_names_with_markup_and_exclusive_classes(slides: list[cohort_jobs.Job], tmp_path: pathlib.Path) -> None:
    settings = cohort.Settings(tsr=TSRSpec(measure="probability", min_tumor_mm2=0, min_tissue_mm2=0.01, resamples=50))
    assert cohort.run(slides, model(thresholds=None), settings, tmp_path / "out") == 0
    table = pd.read_csv(tmp_path / "out" / "slides.csv")
    assert table["name"].tolist() == ["<u>", "a"]
    assert "<u>" not in (tmp_path / "out" / "<u>" / "summary.html").read_text()
    assert table["tiles"].dtype == int


def test_a_model_without_the_labels_gives_everything_but_the_ratio(
    slides: list[cohort_jobs.Job], tmp_path: pathlib.Path
) -> None:
    warned = model(warnings=["tile_um 24 replaces the 48 µm"])
    assert cohort.run(slides[:1], warned, cohort.Settings(), tmp_path / "out") == 0
    names = {path.name for path in (tmp_path / "out" / "a").iterdir()}
    assert "tsr.json" not in names
    assert {"tiles.csv", "overlay.png", "summary.html"} <= names
    page = (tmp_path / "out" / "a" / "summary.html").read_text()
    assert page.count("<figure>") == 5, "the overlay, the slide, two heatmaps and the tissue"
    assert "analyzed and excluded areas: tissue pink, pen blue" in page
    assert "tile_um 24 replaces the 48 µm" in page
    assert pd.read_csv(tmp_path / "out" / "slides.csv")["warnings"].tolist() == ["tile_um 24 replaces the 48 µm"]


def test_a_region_on_a_slide_of_which_a_part_was_scanned_measures_the_same_pixels(tmp_path: pathlib.Path) -> None:
    """QuPath draws in the scanned part, so the same file of annotations is that of a plain TIFF of these pixels."""
    pixels = tifffile.imread(planted.write_slide(tmp_path / "planted.tif", 0.5))
    plain = write_pyramid(tmp_path / "plain.tif", pixels, planted.MPP, levels=1, compression="zlib")
    part = write_scn(tmp_path / "part.scn", pixels, planted.MPP, offset=(960, 384), whole=(3840, 2880))
    square = [[[110, 80], [612, 80], [612, 820], [110, 820], [110, 80]]]
    roi = tmp_path / "roi.geojson"
    roi.write_text(json.dumps({"type": "Polygon", "coordinates": square}))
    moved = tmp_path / "moved.geojson"
    moved.write_text(json.dumps({"type": "Polygon", "coordinates": [[[x + 960, y + 384] for x, y in square[0]]]}))
    jobs = [
        cohort_jobs.Job("plain", plain, roi=roi),
        cohort_jobs.Job("part", part, roi=roi),
        cohort_jobs.Job("whole", part, roi=moved, origin="level0"),
    ]
    out = tmp_path / "out"
    assert cohort.run(jobs[:2], model(), cohort.Settings(tsr=SMALL), out) == 0
    assert cohort.run(jobs[2:], model(), cohort.Settings(tsr=SMALL), tmp_path / "level0") == 0
    measured = {job.name: json.loads((out / job.name / "tsr.json").read_text()) for job in jobs[:2]}
    measured["whole"] = json.loads((tmp_path / "level0" / "whole" / "tsr.json").read_text())
    assert measured["part"]["plane"] == {"origin": "qupath", "x": 960, "y": 384}
    assert measured["part"]["areas"] == measured["plain"]["areas"]
    assert measured["whole"]["plane"] == {"origin": "level0", "x": 0, "y": 0}
    stroma = [each["areas"]["region"]["stroma_percentage"]["value"] for each in measured.values()]
    assert stroma[2] == pytest.approx(stroma[0], abs=0.01)
    collection = json.loads((out / "part" / "tiles.geojson").read_text())
    assert collection["histojax"] == {"plane": measured["part"]["plane"]}
    table = pd.read_csv(out / "slides.csv").set_index("name")
    assert table.loc["part", ["origin", "origin_x", "origin_y"]].tolist() == ["qupath", 960, 384]
    # Another plane is another result; where there is only one, the flag changes nothing.
    for number, job in enumerate(jobs[:2]):
        with pytest.raises(RunError, match="origin: saved 'qupath', now 'level0'") if number else nullcontext():
            cohort.run([dataclasses.replace(job, origin="level0")], model(), cohort.Settings(tsr=SMALL), out)


def test_a_model_that_cannot_tell_stroma_says_so_first(
    slides: list[cohort_jobs.Job], tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    blind = model(confusion={"tumor": [95, 5, 5, 95], "stroma": [7, 93, 1, 99]})
    assert cohort.run(slides[:1], blind, cohort.Settings(tsr=SMALL), tmp_path / "out") == 0
    said = "the model cannot tell stroma from the rest: sensitivity 0.99 [0.95, 1.00] and specificity 0.07 [0.03, 0.14]"
    (headline,) = [record.getMessage() for record in caplog.records if "(it gives" in record.getMessage()]
    assert f"tiles, {said}" in headline
    row = pd.read_csv(tmp_path / "out" / "slides.csv").iloc[0]
    assert row["model"] == "cannot tell"
    assert row["warnings"].startswith(said)
    measured = json.loads((tmp_path / "out" / "a" / "tsr.json").read_text())
    assert measured["model"]["status"] == "cannot tell"
    assert measured["warnings"][0].startswith(said)
    assert said in (tmp_path / "out" / "a" / "summary.html").read_text()


def test_an_unexpected_error_in_one_slide_does_not_stop_the_others(
    slides: list[cohort_jobs.Job], tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    def breaks_once(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        nonlocal calls
        calls += 1
        for rows in by_colour(batches):
            if calls == 1:
                raise KeyError("a bug")
            yield rows

    output = tmp_path / "out"
    settings = cohort.Settings(tsr=SMALL)
    assert cohort.run(slides, model(stream=breaks_once), settings, output) == 1
    record = json.loads((output / "a" / "slide.json").read_text())
    assert record["status"] == "failed"
    assert "KeyError" in record["reason"]
    assert [path.name for path in (output / "a").iterdir()] == ["slide.json"]
    assert (output / "<u>" / "tsr.json").is_file()
    assert "please report it" in caplog.text
    assert not list(output.glob(".*"))
    assert cohort.run(slides, model(stream=breaks_once), settings, output) == 0
    assert calls == 3, "only the failed slide was analyzed again"


def test_results_of_other_settings_are_kept_and_reported(slides: list[cohort_jobs.Job], tmp_path: pathlib.Path) -> None:
    output = tmp_path / "out"
    assert cohort.run(slides[:1], model(), cohort.Settings(tsr=SMALL), output) == 0
    before = (output / "a" / "tsr.json").read_bytes()
    other = cohort.Settings(tsr=SMALL, overlap=0.5)
    with pytest.raises(RunError, match=r"overlap: saved 0\.0, now 0\.5"):
        cohort.run(slides, model(), other, output)
    assert (output / "a" / "tsr.json").read_bytes() == before
    assert not (output / "<u>").exists()
    assert cohort.run(slides, model(), other, output, redo=True) == 0
    assert (output / "a" / "tsr.json").read_bytes() != before


def test_a_list_names_the_patient_of_a_slide_also_after_it_is_finished(
    slides: list[cohort_jobs.Job], tmp_path: pathlib.Path
) -> None:
    output, settings = tmp_path / "out", cohort.Settings(tsr=SMALL)
    cohort.run([slides[0], dataclasses.replace(slides[1], patient_id="007")], model(), settings, output)
    before = (output / "a" / "tsr.json").stat().st_mtime_ns
    for patient in ("P1", "P2", ""):  # a first one, a corrected one, and none, which keeps it
        named = dataclasses.replace(slides[0], patient_id=patient)
        assert cohort.run([named, slides[1]], model(), settings, output) == 0
        table = pd.read_csv(output / "slides.csv", dtype={"patient_id": str})
        assert dict(zip(table["name"], table["patient_id"], strict=True)) == {"a": patient or "P2", "<u>": "007"}
    assert (output / "a" / "tsr.json").stat().st_mtime_ns == before


def test_the_table_has_the_area_that_divides_the_percentage(
    slides: list[cohort_jobs.Job], tmp_path: pathlib.Path
) -> None:
    cohort.run(slides, model(), cohort.Settings(tsr=SMALL), tmp_path / "out")
    for row in pd.read_csv(tmp_path / "out" / "slides.csv").to_dict("records"):
        measured = json.loads((tmp_path / "out" / row["name"] / "tsr.json").read_text())["areas"]["whole tissue"]
        area = row["tumor_and_stroma_mm2"]
        assert area == pytest.approx(measured["tumor_mm2"] + measured["stroma_mm2"])
        assert row["stroma_percentage"] == pytest.approx(100 * measured["stroma_mm2"] / area)
        assert row["hot_spot_tumor_and_stroma_mm2"] < area


def test_a_slide_is_known_by_its_content(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "histojax")
    output, settings = tmp_path / "out", cohort.Settings(tsr=SMALL)

    def analyze(slide: pathlib.Path, name: str = "slide", redo: bool = False) -> list[dict[str, Any]]:
        assert cohort.run([cohort_jobs.Job(name, slide)], model(), settings, output, redo=redo) == 0
        return pd.read_csv(output / "slides.csv", keep_default_na=False).to_dict("records")

    first, second = (tmp_path / folder / "slide.tif" for folder in ("case1", "case2"))
    for path in (first, second):
        path.parent.mkdir()
    data = planted.write_slide(first, 0.5).read_bytes()
    second.write_bytes(data.replace(b"tifffile.py", b"other slide"))
    assert first.stat().st_size == second.stat().st_size
    (row,) = analyze(first)
    assert row["slide"] == str(first)
    with pytest.raises(RunError, match=rf"{output}/slide holds the results of another slide, {first}, not of {second}"):
        analyze(second)
    with pytest.raises(RunError, match="another slide"):
        analyze(second, redo=True)
    rows = analyze(second, name="case2_slide")
    assert [row["slide"] for row in rows] == [str(second), str(first)]
    assert rows[0]["content"] != rows[1]["content"]
    # The same slide, moved and renamed, is not counted twice.
    moved = first.rename(tmp_path / "moved.tif")
    assert analyze(moved, name="moved") == rows
    assert "moved: already finished as slide" in caplog.text
    # A slide that cannot be reached keeps its results; one that has changed is refused.
    assert analyze(first) == rows
    planted.write_slide(first, 0.25)
    with pytest.raises(RunError, match=f"{first} has changed since {output}/slide was made"):
        analyze(first)
    assert len(analyze(first, redo=True)) == 2


def test_a_bad_region_is_refused_before_any_prediction(slides: list[cohort_jobs.Job], tmp_path: pathlib.Path) -> None:
    def never(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        raise AssertionError("a slide was predicted")

    square = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 9]]]}
    roi = tmp_path / "roi.geojson"
    roi.write_text(json.dumps([square, {"type": "Polygon", "coordinates": [[[0, 0], [1, None]]]}]))
    jobs = [slides[0], dataclasses.replace(slides[1], roi=roi)]
    with pytest.raises(RunError, match=rf"{roi}, feature 1: a polygon ring is not a list of number pairs"):
        cohort.run(jobs, model(stream=never), cohort.Settings(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # Whether a region lies on the slide is known when the slide is open, still before its tissue is searched.
    square["coordinates"] = [[[x + 10_000, y] for x, y in square["coordinates"][0]]]  # type: ignore[index]
    roi.write_text(json.dumps(square))
    assert cohort.run(jobs[1:], model(stream=never), cohort.Settings(), tmp_path / "out") == 1
    record = json.loads((tmp_path / "out" / "<u>" / "slide.json").read_text())
    assert record["reason"].startswith(f"{roi}: all annotations lie outside the slide of 1200 × 900 pixels")


def test_no_threads_are_refused_once() -> None:
    with pytest.raises(RunError, match="--threads 0 must be 1 or more"):
        cohort.Settings(threads=0)


def write_oblong(path: pathlib.Path, mpp: tuple[float, float]) -> pathlib.Path:
    """Write the picture of `planted.write_slide`, resampled to pixels that are not square."""
    pixels = np.full((900, 1200, 3), 244, np.uint8)
    pixels[90:810, 120:1080] = planted.tissue(720, 960, 480, np.random.default_rng(0))
    size = (round(1200 * planted.MPP / mpp[0]), round(900 * planted.MPP / mpp[1]))
    return write_pyramid(path, cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), mpp, compression="zlib")


@pytest.mark.parametrize("mpp", [(1.0, 0.5), (0.5, 1.0)])
def test_pixels_that_are_not_square_are_measured_right(mpp: tuple[float, float], tmp_path: pathlib.Path) -> None:
    output = tmp_path / "out"
    jobs = [
        cohort_jobs.Job("square", planted.write_slide(tmp_path / "square.tif", 0.5)),
        cohort_jobs.Job("oblong", write_oblong(tmp_path / "oblong.tif", mpp), mpp=0.5),
    ]
    assert cohort.run(jobs, model(), cohort.Settings(tsr=SMALL, overlap=0.5), output) == 0
    table = pd.read_csv(output / "slides.csv").set_index("name")
    square, oblong = table.loc["square"], table.loc["oblong"]
    assert (oblong["mpp"], oblong["mpp_y"]) == mpp
    assert "pixels are not square" in oblong["warnings"]
    for column in ("tissue_mm2", "tumor_mm2", "stroma_mm2"):
        assert oblong[column] == pytest.approx(square[column], rel=0.06), column
    assert oblong["stroma_percentage"] == pytest.approx(square["stroma_percentage"], abs=3)
    tiles = pd.read_parquet(output / "oblong" / "tiles.parquet")
    assert (tiles["width"] * mpp[0] == tiles["height"] * mpp[1]).all()
    boxes = [json.loads((output / name / "tsr.json").read_text())["areas"]["hot spot"]["box"] for name in table.index]
    assert boxes[0]["width"] * mpp[0] == boxes[0]["height"] * mpp[1] == boxes[1]["width"] * planted.MPP


def test_mpp_changes_no_other_slide_and_override_mpp_warns(tmp_path: pathlib.Path) -> None:
    output, settings = tmp_path / "out", cohort.Settings(tsr=SMALL)
    slide = planted.write_slide(tmp_path / "stated.tif", 0.5)
    bare = tmp_path / "bare.png"
    cv2.imwrite(str(bare), np.full((300, 400, 3), 245, np.uint8))

    def rows(mpp: float | None, override_mpp: float | None = None, redo: bool = False) -> Any:
        jobs = cohort_jobs.find([str(slide), str(bare)], mpp, override_mpp=override_mpp)
        failed = cohort.run(jobs, model(), settings, output, redo=redo)
        return failed, pd.read_csv(output / "slides.csv").set_index("name")

    assert cohort.run(cohort_jobs.find([str(slide)], 3.0), model(), settings, output) == 0
    failed, table = rows(None)
    assert (failed, table.loc["stated", "mpp"]) == (1, 0.5)
    seconds = table.loc["stated", "seconds"]
    # The next command only adds what one slide lacks; the other one is not "made with different settings".
    failed, table = rows(2.0)
    assert (failed, table.loc["stated", "mpp"], table.loc["bare", "mpp"]) == (0, 0.5, 2.0)
    assert (table.loc["stated", "seconds"], table.loc["bare", "mpp_source"]) == (seconds, "given")
    with pytest.raises(RunError, match=r"override_mpp: saved None, now 2\.0"):
        rows(None, 2.0)
    with pytest.raises(RunError, match=r"mpp: saved 2\.0, now 3\.0"):
        rows(3.0)
    failed, table = rows(None, 1.0, redo=True)
    warning = "override_mpp 1 replaces what the file stores: 0.5 µm/px in its TIFF resolution tags"
    assert table["mpp"].tolist() == [1.0, 1.0]
    assert table.loc["stated", "warnings"].startswith(warning)
    assert warning in (output / "stated" / "summary.html").read_text()
    assert json.loads((output / "stated" / "tsr.json").read_text())["warnings"][0] == warning


def test_a_slide_without_tissue_finishes_as_not_evaluable(tmp_path: pathlib.Path) -> None:
    cv2.imwrite(str(tmp_path / "white.png"), np.full((300, 400, 3), 245, np.uint8))
    job = cohort_jobs.Job("white", tmp_path / "white.png", mpp=0.5)
    assert cohort.run([job], model(), cohort.Settings(tsr=SMALL), tmp_path / "out") == 0
    row = pd.read_csv(tmp_path / "out" / "slides.csv").iloc[0]
    assert (row["tiles"], row["ratio"], row["why_not"]) == (0, "not evaluable", "no tissue tiles")
