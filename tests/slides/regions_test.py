"""Regions from GeoJSON: everything that QuPath exports is read, repaired or refused with a message."""

import gzip
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import shapely
from shapely.geometry import Polygon, mapping

from histojax.slides.annotations import regions
from histojax.slides.annotations.regions import RegionError
from histojax.slides.geojson import write_tiles
from tests.helpers.tile_tables import make_table

SQUARE = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
HOLE = [[2, 2], [4, 2], [4, 4], [2, 4], [2, 2]]
BOWTIE = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def write(path: pathlib.Path, content: Any) -> pathlib.Path:
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


SHAPES = {
    "collection": {"type": "FeatureCollection", "features": [feature(polygon(SQUARE, HOLE))]},
    "list": [feature(polygon(SQUARE, HOLE))],
    "feature": feature(polygon(SQUARE, HOLE)),
    "geometry": polygon(SQUARE, HOLE),
    "multi": feature({"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE]]}),
    "geometries": {"type": "GeometryCollection", "geometries": [polygon(SQUARE, HOLE)]},
    "no properties": {"type": "Feature", "geometry": polygon(SQUARE, HOLE), "properties": None},
    "not closed": feature(polygon(SQUARE[:-1], HOLE[:-1])),
    "image stack": feature(polygon([[x, y, 0] for x, y in SQUARE], HOLE)),
    "child": feature(polygon(HOLE), objectType="root", childObjects=[feature(polygon(SQUARE, HOLE))]),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("suffix", [".geojson", ".json.gz"])
def test_every_way_of_writing_a_polygon_with_a_hole_is_read(tmp_path: pathlib.Path, name: str, suffix: str) -> None:
    (found,), warnings = regions.read(write(tmp_path / f"a{suffix}", SHAPES[name]))
    assert shapely.equals(found.shape, Polygon(SQUARE, [HOLE]))
    assert found.name == ""
    assert not warnings


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"classification": {"name": "Tumor", "color": [200, 0, 0]}, "name": "mine"}, "Tumor"),
        ({"classification": {"names": ["Tumor", "Positive"]}}, "Tumor: Positive"),
        ({"classification": {"name": "Tumor: Positive", "colorRGB": -3670016}}, "Tumor: Positive"),
        ({"classification": "Tumor"}, "Tumor"),
        ({"name": " mine ", "isLocked": True}, "mine"),
        ({"classification": None}, ""),
    ],
)
def test_the_name_is_the_classification_or_else_the_objects_name(
    tmp_path: pathlib.Path, properties: dict[str, Any], name: str
) -> None:
    (found,), _ = regions.read(write(tmp_path / "a.geojson", [feature(polygon(SQUARE), **properties)]))
    assert found.name == name


def test_an_outline_that_crosses_itself_is_repaired_without_losing_area(tmp_path: pathlib.Path) -> None:
    turn = 2 * np.pi * np.arange(5) * 2 / 5
    star = np.column_stack([np.cos(turn), np.sin(turn)]).tolist()
    overlap = {"type": "MultiPolygon", "coordinates": [[SQUARE], [[[x + 5, y + 5] for x, y in SQUARE]]]}
    spike = [[0, 0], [10, 0], [10, 10], [10, 15], [10, 10], [0, 10]]
    contents = [feature(g) for g in (polygon(BOWTIE), polygon(star), overlap, polygon(spike))]
    found, warnings = regions.read(write(tmp_path / "a.geojson", contents))
    assert all(shapely.is_valid(region.shape) for region in found)
    assert [warning.split("json, ")[1] for warning in warnings] == [
        f"feature {n}: the outline crosses itself and was repaired" for n in range(4)
    ]
    pentagram = 1.12256994  # its middle included: a hole there would leave 0.776
    assert [region.shape.area for region in found] == pytest.approx([50, pentagram, 175, 100])


def test_annotations_are_read_and_detections_skipped(tmp_path: pathlib.Path) -> None:
    contents = [
        feature(polygon(HOLE), objectType="tile"),
        feature(polygon(SQUARE), objectType="annotation", classification={"name": "Tumor"}),
        feature({"type": "Point", "coordinates": [1, 1]}, objectType="cell"),
        feature(polygon(HOLE), object_type="detection"),  # QuPath 0.3
        feature(polygon(HOLE), objectType="unknown"),
    ]
    found, _ = regions.read(write(tmp_path / "a.geojson", contents))
    assert [(region.name, region.feature) for region in found] == [("Tumor", "feature 1"), ("", "feature 4")]
    write_tiles(make_table(), tmp_path / "t.geojson", slide="S", thresholds=None)
    with pytest.raises(RegionError, match="all 12 objects are tiles"):
        regions.read(tmp_path / "t.geojson")


NAN = float("nan")
BAD: dict[str, tuple[Any, str]] = {
    "empty file": ("", "invalid JSON"),
    "half": ('[{"type": "Feat', "invalid JSON"),
    "deep text": ("[" * 100_000, "nested too deeply"),
    "long number": ("[" + "9" * 5000 + "]", "invalid JSON"),
    "deep lists": ("[" * 30 + "]" * 30, "more than 20 levels deep"),
    "number": (3, "top level: expected a Feature or one of Polygon"),
    "other object": ({"tiles": []}, "expected a Feature"),
    "nothing": ({"type": "FeatureCollection", "features": []}, "no annotation with an area .the file is empty"),
    "no list": ({"type": "FeatureCollection", "features": {}}, "'features' is not a list"),
    "second": ([feature(polygon(SQUARE)), 1], "feature 1: expected a Feature"),
    "properties": ({"type": "Feature", "geometry": polygon(SQUARE), "properties": [1]}, "is not an object"),
    "class": (feature(polygon(SQUARE), classification=3), "classification is not text"),
    "no geometry": (feature(None), "no annotation with an area .*top level: no geometry"),
    "no type": (feature({"coordinates": SQUARE}), "no geometry where an area is expected"),
    "point": ([feature({"type": "Point", "coordinates": [1, 2]})], "no annotation with an area .*feature 0: a Point"),
    "line": ({"type": "LineString", "coordinates": SQUARE}, "no annotation with an area .*a LineString"),
    "circle": ([feature(polygon(SQUARE)), feature({"type": "Circle"})], "feature 1: a Circle where an area is"),
    "no coordinates": (feature({"type": "Polygon"}), "a Polygon has no coordinates"),
    "no rings": (feature({"type": "MultiPolygon", "coordinates": [[]]}), "a polygon has no rings"),
    "flat": (feature(polygon([1, 2, 3, 4])), "not a list of number pairs"),
    "number ring": (feature(polygon(7)), "not a list of number pairs"),
    "single": (feature(polygon([[1], [2], [3]])), "not a list of number pairs"),
    "text": (feature(polygon([["0", "0"], ["1", "0"], ["1", "1"]])), "not a list of number pairs"),
    "truth": (feature(polygon([[True, False], [9, 0], [9, 9]])), "not a list of number pairs"),
    "null": (feature(polygon([[None, 0], [1, 0], [1, 1]])), "not a list of number pairs"),
    "NaN": (feature(polygon([[NAN, 0], [1, 0], [1, 1]])), "not a slide pixel"),
    "infinite": (feature(polygon([[0, 0], [1, 0], [1, float("inf")]])), "not a slide pixel"),
    "far": (feature(polygon([[0, 0], [1e300, 0], [1, 1]])), "not a slide pixel"),
    "huge integer": (feature(polygon([[0, 0], [10**40, 0], [1, 1]])), "not a list of number pairs"),
    "two corners": (feature(polygon([[0, 0], [1, 1], [0, 0]])), "fewer than three corners"),
    "tiny": (feature(polygon([[0, 0], [1e-200, 0], [0, 1e-200]])), "has no area"),
    "no area": (feature(polygon([[0, 0], [1, 1], [2, 2]])), "has no area"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_unusable_annotations_are_refused_with_file_and_feature(tmp_path: pathlib.Path, name: str) -> None:
    content, message = BAD[name]
    path = write(tmp_path / "a.geojson", content)
    with pytest.raises(RegionError, match=message) as raised:
        regions.read(path)
    assert str(path) in str(raised.value)


def test_objects_without_an_area_are_ignored_with_a_warning(tmp_path: pathlib.Path) -> None:
    points = {"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]}
    mixed = {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [1, 1]}, polygon(HOLE)]}
    contents = [feature(polygon(SQUARE)), feature(points), feature(None), feature(mixed)]
    path = write(tmp_path / "a.geojson", contents)
    found, warnings = regions.read(path)
    assert [(region.feature, region.shape.area) for region in found] == [("feature 0", 100), ("feature 3", 4)]
    assert warnings == [
        f"{path}, feature 1: a MultiPoint, which has no area; it is ignored",
        f"{path}, feature 2: no geometry; it is ignored",
        f"{path}, feature 3: a Point, which has no area; it is ignored",
    ]


def test_unreadable_files_are_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gzip.compress(json.dumps(SHAPES["list"]).encode())
    for data in (b"no gzip", whole[:-9], whole[:20] + b"\x00\x01" + whole[22:]):
        (tmp_path / "a.geojson.gz").write_bytes(data)
        with pytest.raises(RegionError, match=r"a\.geojson\.gz: cannot be read"):
            regions.read(tmp_path / "a.geojson.gz")
    with pytest.raises(RegionError, match=r"none\.geojson: cannot be read"):  # not: invalid JSON
        regions.read(tmp_path / "none.geojson")
    monkeypatch.setattr(regions, "_MAX_BYTES", 1 << 20)
    bomb = write(tmp_path / "bomb.geojson.gz", "[" + " " * (1 << 21))
    with pytest.raises(RegionError, match="more than 1 MB"):
        regions.read(bomb)


# --- On a slide ---------------------------------------------------------------------------------------------


def test_clipping_keeps_the_part_on_the_slide_and_warns_about_the_rest(tmp_path: pathlib.Path) -> None:
    beyond = shapely.box(-5, 0, 5, 10)
    content = [feature(mapping(s)) for s in (shapely.box(1, 1, 9, 9), beyond, shapely.box(30, 0, 40, 9))]
    kept, warnings = regions.clip(regions.read(write(tmp_path / "a.geojson", content))[0], 20, 10, "a.geojson")
    assert [region.shape.bounds for region in kept] == [(1, 1, 9, 9), (0, 0, 5, 10)]
    assert [warning.split(" lies")[0] for warning in warnings] == [
        "a.geojson, feature 1: 50 % of its area",
        "a.geojson, feature 2: 100 % of its area",
    ]
    with pytest.raises(RegionError, match="all annotations lie outside the slide of 20 × 10 pixels"):
        regions.clip(regions.read(write(tmp_path / "a.geojson", content[2:]))[0], 20, 10, "a.geojson")


def test_a_region_that_touches_the_slide_leaves_no_line(tmp_path: pathlib.Path) -> None:
    l_shape = [[-5, -5], [30, -5], [30, 0], [5, 0], [5, 5], [0, 5], [0, 0], [-5, 0]]  # also touches the edge y = 0
    kept, _ = regions.clip(regions.read(write(tmp_path / "a.geojson", polygon(l_shape)))[0], 20, 10, "a")
    assert kept[0].shape.geom_type == "Polygon"
    assert kept[0].shape.area == 25


def test_a_tile_is_inside_if_its_centre_is() -> None:
    table = make_table(3, 4)  # centres at 50, 150, 250, 350
    ring = shapely.box(0, 0, 299, 299).difference(shapely.box(101, 101, 199, 199))
    expected = [[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0]]
    np.testing.assert_array_equal(regions.inside(table, ring).reshape(3, 4), np.array(expected, bool))
    assert regions.inside(table.iloc[:0], ring).shape == (0,)
    assert not regions.inside(table, Polygon()).any()


def test_the_union_counts_overlaps_once(tmp_path: pathlib.Path) -> None:
    content = [feature(mapping(shapely.box(0, 0, 10, 10))), feature(mapping(shapely.box(5, 0, 15, 10)))]
    assert regions.union(regions.read(write(tmp_path / "a.geojson", content))[0]).area == 150
