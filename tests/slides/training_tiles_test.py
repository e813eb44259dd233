"""Training tiles from slides and annotations: placed, labelled and stored so that liver_tiles reads them."""

import csv
import dataclasses
import json
import pathlib
from typing import Any

import cv2
import numpy as np
import pytest
import shapely
import tifffile
from shapely.geometry import mapping

from data_pipelines.images import decode_rgb
from data_pipelines.liver_tiles.scan import scan
from data_pipelines.liver_tiles.spec import TilesSpec
from histojax.core.errors import RunError
from histojax.slides.annotations import training_tiles
from histojax.slides.annotations.regions import RegionError
from histojax.slides.annotations.training_tiles import AnnotatedSlide, AnnotationError, CutSpec
from histojax.slides.readers.reader import SlideError, open_slide
from tests.conftest import SHARED
from tests.helpers import planted

LABELS = ("tumor", "stroma")
SPEC = CutSpec(labels=LABELS, size=50, mpp=1.0, min_tissue=0)  # of slides with 0.5 µm/px: tiles of 100 level-0 pixels
CMU = SHARED / "slides" / "cmu-1-small-region.svs"


def make_slide(path: pathlib.Path, width: int = 400, height: int = 300, seed: int = 0) -> pathlib.Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    return path


def annotate(path: pathlib.Path, *named: tuple[str, Any]) -> pathlib.Path:
    features = [
        {"type": "Feature", "geometry": mapping(shape), "properties": {"classification": {"name": name}}}
        for name, shape in named
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.fixture
def annotated(tmp_path: pathlib.Path) -> AnnotatedSlide:
    """Tumor on the left (and on 4 % and 6 % of two tiles in the middle), stroma next to it, nothing on the right."""
    path = annotate(
        tmp_path / "P1_a.geojson",
        ("Tumor", shapely.box(0, 0, 100, 300)),
        ("STROMA", shapely.box(100, 0, 200, 300).difference(shapely.box(100, 0, 160, 100))),
        ("tumor", shapely.box(160, 0, 200, 100)),  # again: no part of a tile counts twice
        ("Tumor", shapely.box(100, 100, 104, 200)),
        ("Tumor", shapely.box(100, 200, 106, 300)),
    )
    return AnnotatedSlide(make_slide(tmp_path / "P1_a.tif"), path)


def rows_of(folder: pathlib.Path) -> list[dict[str, str]]:
    with open(folder / "tiles.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_tiles_have_the_labels_that_cover_them(annotated: AnnotatedSlide, tmp_path: pathlib.Path) -> None:
    record = training_tiles.cut([annotated], tmp_path / "out", SPEC)
    labels = {(int(r["minx"]), int(r["miny"])): (r["tumor"], r["stroma"]) for r in rows_of(tmp_path / "out")}
    assert labels == {
        (0, 0): ("1", "0"),
        (0, 100): ("1", "0"),
        (0, 200): ("1", "0"),
        # (100, 0) is annotated on 40 % only
        (100, 100): ("0", "1"),  # 4 % tumor
        (100, 200): ("1", "1"),  # 6 % tumor
    }
    facts = record["slides"]["P1_a"]
    assert (facts["tile"], facts["stride"], facts["tiles"]) == (100, 100, 5)
    assert facts["tiles_of_label"] == {"tumor": 4, "stroma": 2}
    assert facts["warnings"] == []
    assert json.loads((tmp_path / "out" / "train_tiles.json").read_text()) == json.loads(json.dumps(record))


def test_labels_do_not_depend_on_the_chunk_size(
    annotated: AnnotatedSlide, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_tiles.cut([annotated], tmp_path / "a", SPEC)
    monkeypatch.setattr(training_tiles, "_CHUNK", 2)
    training_tiles.cut([annotated], tmp_path / "b", SPEC)
    assert (tmp_path / "a" / "tiles.csv").read_bytes() == (tmp_path / "b" / "tiles.csv").read_bytes()


def test_labels_are_matched_ignoring_case(annotated: AnnotatedSlide, tmp_path: pathlib.Path) -> None:
    record = training_tiles.cut([annotated], tmp_path / "out", dataclasses.replace(SPEC, labels=("TUMOR", "Stroma")))
    assert record["slides"]["P1_a"]["tiles_of_label"] == {"TUMOR": 4, "Stroma": 2}


def test_pixels_are_the_slide_at_the_resolution_of_the_tiles(annotated: AnnotatedSlide, tmp_path: pathlib.Path) -> None:
    training_tiles.cut([annotated], tmp_path / "out", SPEC)
    slide = tifffile.imread(annotated.slide)
    for row in rows_of(tmp_path / "out"):
        x, y = int(row["minx"]), int(row["miny"])
        tile = decode_rgb((tmp_path / "out" / row["path"]).read_bytes())
        expected = slide[y : y + 100, x : x + 100].reshape(50, 2, 50, 2, 3).mean((1, 3))
        np.testing.assert_allclose(tile, expected, atol=1)


def test_liver_tiles_reads_the_folder(annotated: AnnotatedSlide, tmp_path: pathlib.Path) -> None:
    other = AnnotatedSlide(
        make_slide(tmp_path / "b, c.tif", seed=1),
        annotate(tmp_path / "b.geojson", ("tumor", shapely.box(0, 0, 400, 300))),
        patient_id="P2",
    )
    spec = dataclasses.replace(SPEC, overlap=0.5, patient_pattern=r"^(?P<patient>[^_]+)_")
    training_tiles.cut([annotated, other], tmp_path / "out", spec)
    found = scan(tmp_path / "out", TilesSpec(labels=LABELS))
    assert found.summary["layout"] == "table"
    assert found.summary["bad_images"] == {}
    records = [tile.record for tile in found.tiles]
    assert {(r.patient_id, r.slide_id) for r in records} == {("P1", "P1_a"), ("P2", "b, c")}
    assert {r.label for r in records} == {"tumor", "stroma", "tumor+stroma"}
    assert sum(r.slide_id == "b, c" for r in records) == 7 * 5  # every 50 pixels, whole tiles only


def test_all_tiles_are_kept_if_no_annotation_is_required(annotated: AnnotatedSlide, tmp_path: pathlib.Path) -> None:
    training_tiles.cut([annotated], tmp_path / "out", dataclasses.replace(SPEC, min_annotated=0))
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 12
    assert [r["tumor"] + r["stroma"] for r in rows if int(r["minx"]) >= 200] == ["00"] * 6


def test_holes_clipping_and_repairs_are_respected(tmp_path: pathlib.Path) -> None:
    bow = shapely.Polygon([(200, 0), (400, 200), (400, 0), (200, 200)])
    ring = shapely.box(-50, 0, 200, 300).difference(shapely.box(0, 100, 100, 200))
    path = annotate(tmp_path / "a.geojson", ("tumor", ring), ("stroma", bow))
    record = training_tiles.cut([AnnotatedSlide(make_slide(tmp_path / "a.tif"), path)], tmp_path / "out", SPEC)
    places = [(int(r["minx"]), int(r["miny"])) for r in rows_of(tmp_path / "out") if r["tumor"] == "1"]
    assert places == [(0, 0), (100, 0), (100, 100), (0, 200), (100, 200)]
    assert [warning.split(": ", 1)[1] for warning in record["slides"]["a"]["warnings"]] == [
        "the outline crosses itself and was repaired",
        "23.1 % of its area lies outside the slide and is ignored",
    ]


# --- Classes ------------------------------------------------------------------------------------------------


def test_classes_are_mapped_refused_or_ignored(tmp_path: pathlib.Path) -> None:
    shapes = [shapely.box(100 * n, 0, 100 * n + 100, 300) for n in range(4)]
    path = annotate(tmp_path / "a.geojson", *zip(("Tumour", "Vessel", "Fat", ""), shapes, strict=True))
    item = AnnotatedSlide(make_slide(tmp_path / "a.tif"), path)
    classes = {"tumour": "tumor", "vessel": ""}
    spec = dataclasses.replace(SPEC, class_names=classes)
    with pytest.raises(AnnotationError, match=r"a\.geojson: the classes \(no class\), Fat are not among the labels"):
        training_tiles.cut([item], tmp_path / "out", spec)
    assert not (tmp_path / "out").exists()
    record = training_tiles.cut([item], tmp_path / "out", dataclasses.replace(spec, ignore_unknown=True))
    rows = [(r["minx"], r["tumor"], r["stroma"]) for r in rows_of(tmp_path / "out")]
    assert rows == [("0", "1", "0"), ("100", "0", "0")] * 3
    assert record["slides"]["a"]["ignored_annotations"] == {"Fat": 1, "(no class)": 1}


# --- What is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ()}, "--labels is empty: name at least one"),
        ({"labels": ("a+b",)}, "plain name"),
        ({"labels": ("a", "A")}, "differ only in case"),
        ({"labels": ("path",)}, "path is a column"),
        ({"size": 0}, "size=0"),
        ({"mpp": 0.0}, "--tile_mpp 0"),
        ({"mpp": float("nan")}, "--tile_mpp nan"),
        ({"overlap": 1.0}, r"--overlap 1\.0"),
        ({"min_share": 0.0}, r"min_share=0\.0"),
        ({"min_annotated": 1.5}, r"--min_annotated 1\.5"),
        ({"class_names": {"Fat": "fat"}}, "maps 'Fat' to 'fat', which is not one of the labels tumor, stroma"),
        ({"patient_pattern": "("}, "--patient_pattern"),
        ({"patient_pattern": "(?P<slide>.)"}, "has no group"),
    ],
)
def test_an_invalid_spec_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        CutSpec(**{"labels": LABELS, "size": 50, "mpp": 1.0} | fields)


def test_a_failure_leaves_nothing_behind(annotated: AnnotatedSlide, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "new" / "out"
    bad_slide = make_slide(tmp_path / "bad.tif")
    bad_slide.write_bytes(bad_slide.read_bytes()[:5000])
    tiny = make_slide(tmp_path / "tiny.tif", 99, 99)
    everywhere = annotate(tmp_path / "e.geojson", ("tumor", shapely.box(0, 0, 400, 300)))
    far = annotate(tmp_path / "far.geojson", ("tumor", shapely.box(9000, 0, 9400, 300)))
    (tmp_path / "sub").mkdir()
    same = AnnotatedSlide(make_slide(tmp_path / "sub" / "P1_a.tif"), everywhere)
    pattern = dataclasses.replace(SPEC, patient_pattern=r"^(?P<patient>\d+)")
    cases: list[tuple[list[AnnotatedSlide], CutSpec, type[Exception], str]] = [
        ([annotated, AnnotatedSlide(bad_slide, everywhere)], SPEC, SlideError, "bad.tif"),
        ([annotated, same], SPEC, AnnotationError, "P1_a: several slides have this name"),
        ([AnnotatedSlide(tiny, everywhere)], SPEC, AnnotationError, "no tile of 50 µm has 50% of its area annotated"),
        ([AnnotatedSlide(annotated.slide, far)], SPEC, RegionError, "far.geojson: all annotations lie outside"),
        ([annotated], pattern, AnnotationError, "the name does not match --patient_pattern"),
    ]
    for slides, spec, kind, message in cases:
        with pytest.raises(kind, match=message):
            training_tiles.cut(slides, out, spec)
        assert not list(out.parent.glob("*"))
        assert not list(out.parent.glob(".*"))
    training_tiles.cut([annotated], out, SPEC)
    before = sorted(out.rglob("*"))
    with pytest.raises(RunError, match="already exists; choose another --output"):
        training_tiles.cut([annotated], out, SPEC)
    assert sorted(out.rglob("*")) == before


def test_slides_are_paired_with_their_annotations(tmp_path: pathlib.Path) -> None:
    for name in ("a.svs", "a.geojson", "b.ome.tif", "b.ome.json.gz", "c.svs", "c.svs.geojson", "d.svs", "e.svs"):
        (tmp_path / name).touch()
    good = [tmp_path / name for name in ("a.svs", "b.ome.tif", "c.svs")]
    assert [item.annotations.name for item in training_tiles.pair(good)] == [
        "a.geojson",
        "b.ome.json.gz",
        "c.svs.geojson",
    ]
    (tmp_path / "e.geojson").touch()
    (tmp_path / "e.json").touch()
    with pytest.raises(
        AnnotationError, match=r"(?s)d\.svs: no d\.geojson in .*e\.svs: several files: e\.geojson, e\.json"
    ):
        training_tiles.pair([*good, tmp_path / "d.svs", tmp_path / "e.svs"])
    with pytest.raises(AnnotationError, match=r"no a\.geojson in .*elsewhere"):
        training_tiles.pair(good, tmp_path / "elsewhere")
    # One file for two slides of the same name could be either's.
    with pytest.raises(AnnotationError, match=r"a\.geojson: the annotations of both .*one.*a\.svs and .*two.*a\.svs"):
        training_tiles.pair([tmp_path / "one" / "a.svs", tmp_path / "two" / "a.svs"], tmp_path)


def test_slides_of_one_file_name_have_names_of_their_own(tmp_path: pathlib.Path) -> None:
    slides = []
    for case in ("case1", "case2"):
        (tmp_path / case).mkdir()
        path = make_slide(tmp_path / case / "a.tif", 100, 100, seed=len(slides))
        annotations = annotate(tmp_path / case / "a.geojson", ("tumor", shapely.box(0, 0, 100, 100)))
        slides.append(AnnotatedSlide(path, annotations, name=f"{case}_a"))
    record = training_tiles.cut(slides, tmp_path / "out", SPEC)
    assert list(record["slides"]) == ["case1_a", "case2_a"]
    rows = rows_of(tmp_path / "out")
    assert [(row["path"], row["slide_id"]) for row in rows] == [
        ("case1_a/case1_a_x0_y0.png", "case1_a"), ("case2_a/case2_a_x0_y0.png", "case2_a"),
    ]  # fmt: skip


def test_a_point_beside_areas_does_not_end_the_run(annotated: AnnotatedSlide, tmp_path: pathlib.Path) -> None:
    content = json.loads(annotated.annotations.read_text())
    content["features"].append(
        {"type": "Feature", "geometry": {"type": "MultiPoint", "coordinates": [[1, 2]]}, "properties": {}}
    )
    content["features"].append({"type": "Feature", "geometry": None, "properties": {}})
    annotated.annotations.write_text(json.dumps(content))
    facts = training_tiles.cut([annotated], tmp_path / "out", SPEC)["slides"]["P1_a"]
    assert facts["tiles"] == 5
    assert [warning.split("json, ")[1].split(";")[0] for warning in facts["warnings"]] == [
        "feature 5: a MultiPoint, which has no area", "feature 6: no geometry",
    ]  # fmt: skip


def test_tiles_of_pixels_that_are_not_square_show_squares(tmp_path: pathlib.Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    how = {"photometric": "rgb", "resolution": (20_000, 10_000), "resolutionunit": "CENTIMETER"}  # 0.5 × 1 µm
    tifffile.imwrite(tmp_path / "a.tif", pixels, **how)
    path = annotate(tmp_path / "a.geojson", ("tumor", shapely.box(0, 0, 400, 100)))
    record = training_tiles.cut([AnnotatedSlide(tmp_path / "a.tif", path)], tmp_path / "out", SPEC)
    rows = rows_of(tmp_path / "out")
    assert {(row["width"], row["height"]) for row in rows} == {("100", "50")}
    assert {(int(row["minx"]), int(row["miny"])) for row in rows} == {
        (x, y) for x in (0, 100, 200, 300) for y in (0, 50)
    }
    tile = cv2.imread(str(tmp_path / "out" / "a" / "a_x100_y50.png"))[..., ::-1]
    np.testing.assert_array_equal(tile, cv2.resize(pixels[50:100, 100:200], (50, 50), interpolation=cv2.INTER_AREA))
    assert "pixels are not square" in record["slides"]["a"]["warnings"][0]
    override = AnnotatedSlide(tmp_path / "a.tif", path, override_mpp=0.5)
    facts = training_tiles.cut([override], tmp_path / "other", SPEC)["slides"]["a"]
    assert (facts["tiles"], facts["mpp"], facts["mpp_y"]) == (4, 0.5, 0.5)
    assert facts["warnings"][0].startswith("override_mpp 0.5 replaces what the file stores: 0.5 × 1 µm/px")


@pytest.mark.skipif(not CMU.is_file(), reason=f"no real slide at {CMU}")
def test_a_real_slide_gives_tiles_that_look_like_it(tmp_path: pathlib.Path) -> None:
    tumor, stroma = shapely.box(900, 700, 1400, 1900), shapely.Point(900, 2400).buffer(400)
    path = annotate(tmp_path / "cmu.geojson", ("Tumor", tumor), ("Stroma", stroma))
    training_tiles.cut([AnnotatedSlide(CMU, path)], tmp_path / "out", CutSpec(LABELS, 112, 1.0))
    found = scan(tmp_path / "out", TilesSpec(labels=LABELS))
    assert len(found.tiles) == len(rows_of(tmp_path / "out")) >= 15
    row = rows_of(tmp_path / "out")[0]
    side = int(row["width"])
    assert side == round(112 / 0.499)
    tile = cv2.imread(str(tmp_path / "out" / row["path"]))[..., ::-1]
    with open_slide(CMU) as slide:
        whole = slide.read(int(row["minx"]), int(row["miny"]), side, side, side, side)
    assert tile.shape == (112, 112, 3)
    np.testing.assert_allclose(tile.mean((0, 1)), whole.mean((0, 1)), atol=2)


def test_tiles_without_tissue_are_left_out_and_counted(tmp_path: pathlib.Path) -> None:
    """An annotation is often drawn around a piece, and so on glass; glass must not become a tumor of the training."""
    slide = planted.write_slide(tmp_path / "a.tif", 0.5)  # tissue in 120 … 1080 × 90 … 810
    item = AnnotatedSlide(slide, annotate(tmp_path / "a.geojson", ("tumor", shapely.box(0, 0, 1200, 900))))
    record = training_tiles.cut([item], tmp_path / "out", dataclasses.replace(SPEC, min_tissue=0.5))
    facts = record["slides"]["a"]
    corners = [(int(row["minx"]), int(row["miny"])) for row in rows_of(tmp_path / "out")]
    assert min(corners) == (100, 100)
    assert max(corners) == (1000, 700)
    assert (facts["tiles"], facts["tiles_without_tissue"]) == (70, 38)
    assert facts["warnings"] == ["38 annotated tiles have less than 50% tissue and are left out"]
    with pytest.raises(AnnotationError, match=r"--min_tissue 2 must be between 0 and 1"):
        dataclasses.replace(SPEC, min_tissue=2)
