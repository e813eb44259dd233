"""Tiles as GeoJSON, checked with a schema of QuPath 0.4, the `geojson` package and shapely."""

import gzip
import json
import pathlib
import tracemalloc
import uuid
from typing import Any

import geojson
import jsonschema
import numpy as np
import pandas as pd
import pytest
import shapely
import shapely.geometry

from histojax.slides.geojson import write_tiles
from histojax.slides.labels import carried_labels, label_colours, unique_file_names
from tests.helpers.tile_tables import make_table

THRESHOLDS = {"tumor": 0.5, "stroma": 0.25}
COLOUR = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}, "minItems": 3, "maxItems": 3}
NAME = {"type": "string", "minLength": 1}
# QuPath pull request 1099 (version 0.4): a class has `name` or `names`, measurements are a map, ids are UUIDs.
QUPATH_TILES: dict[str, Any] = {
    "type": "object",
    "required": ["type", "features"],
    "additionalProperties": False,
    "properties": {
        "type": {"const": "FeatureCollection"},
        "features": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "id", "geometry", "properties"],
                "additionalProperties": False,
                "properties": {
                    "type": {"const": "Feature"},
                    "id": {"type": "string", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"},
                    "geometry": {
                        "type": "object",
                        "required": ["type", "coordinates"],
                        "additionalProperties": False,
                        "properties": {
                            "type": {"const": "Polygon"},
                            "coordinates": {
                                "type": "array",
                                "minItems": 1,
                                "maxItems": 1,
                                "items": {
                                    "type": "array",
                                    "minItems": 5,
                                    "maxItems": 5,
                                    "items": {
                                        "type": "array",
                                        "items": {"type": "number"},
                                        "minItems": 2,
                                        "maxItems": 2,
                                    },
                                },
                            },
                        },
                    },
                    "properties": {
                        "type": "object",
                        "required": ["objectType", "measurements"],
                        "additionalProperties": False,
                        "properties": {
                            "objectType": {"const": "tile"},
                            "measurements": {"type": "object", "additionalProperties": {"type": "number"}},
                            "classification": {
                                "type": "object",
                                "required": ["color"],
                                "oneOf": [{"required": ["name"]}, {"required": ["names"]}],
                                "additionalProperties": False,
                                "properties": {
                                    "name": NAME,
                                    "names": {"type": "array", "items": NAME, "minItems": 2, "uniqueItems": True},
                                    "color": COLOUR,
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


def write(table: pd.DataFrame, path: pathlib.Path, **options: Any) -> Any:
    write_tiles(table, path, **{"slide": "S1", "thresholds": THRESHOLDS} | options)
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.name.endswith(".gz") else data)


def test_tiles_follow_the_conventions_of_qupath(tmp_path: pathlib.Path) -> None:
    collection = write(make_table(), tmp_path / "tiles.geojson")
    jsonschema.validate(collection, QUPATH_TILES)
    assert len({feature["id"] for feature in collection["features"]}) == len(make_table())


def test_the_geojson_package_and_shapely_find_every_polygon_valid(tmp_path: pathlib.Path) -> None:
    table = make_table()
    write(table, tmp_path / "tiles.geojson")
    collection = geojson.loads((tmp_path / "tiles.geojson").read_text(encoding="utf-8"))
    assert collection.is_valid
    shapes = np.array([shapely.geometry.shape(feature["geometry"]) for feature in collection["features"]])
    assert shapely.is_valid(shapes).all()
    boxes = np.column_stack([table["minx"], table["miny"], table["minx"] + 100, table["miny"] + 100])
    np.testing.assert_array_equal(shapely.bounds(shapes), boxes)
    np.testing.assert_array_equal(shapely.area(shapes), 100 * 100)


def test_classes_colours_and_measurements_match_the_table(tmp_path: pathlib.Path) -> None:
    table = make_table(1, 4).assign(prob_tumor=[0.5, 0.4999, 0.9, 0.1], prob_stroma=[0.1, 0.25, 0.9, 0.1], tissue=1.0)
    features = write(table, tmp_path / "tiles.geojson")["features"]
    colour = label_colours(["tumor", "stroma"])
    assert [feature["properties"].get("classification") for feature in features] == [
        {"name": "tumor", "color": list(colour["tumor"])},
        {"name": "stroma", "color": list(colour["stroma"])},
        {"names": ["tumor", "stroma"], "color": [175, 100, 75]},  # the mean of both
        None,
    ]
    assert features[1]["properties"]["measurements"] == {"prob_tumor": 0.4999, "prob_stroma": 0.25, "tissue": 1}


def test_without_thresholds_a_tile_has_its_most_probable_class(tmp_path: pathlib.Path) -> None:
    table = make_table(1, 2).assign(prob_tumor=[0.3, 0.2], prob_stroma=[0.2, 0.4])
    features = write(table, tmp_path / "tiles.geojson", thresholds=None)["features"]
    assert [f["properties"]["classification"]["name"] for f in features] == ["tumor", "stroma"]


def test_ids_depend_only_on_slide_and_box(tmp_path: pathlib.Path) -> None:
    def ids(table: pd.DataFrame, slide: str) -> list[str]:
        return [f["id"] for f in write(table, tmp_path / "tiles.geojson", slide=slide)["features"]]

    table = make_table()
    assert ids(table, "S1") == ids(table.assign(prob_tumor=0.0), "S1")
    assert not set(ids(table, "S1")) & set(ids(table, "S2"))
    assert uuid.UUID(ids(table, "S1")[0]).version == 5


def test_compressed_files_are_equal_and_reproducible(tmp_path: pathlib.Path) -> None:
    plain = write(make_table(), tmp_path / "tiles.geojson")
    assert write(make_table(), tmp_path / "a.geojson.gz") == plain
    write(make_table(), tmp_path / "b.geojson.gz")
    data = (tmp_path / "a.geojson.gz").read_bytes()
    assert data == (tmp_path / "b.geojson.gz").read_bytes()
    assert data[4:8] == bytes(4)  # no time


def test_odd_labels_and_no_tiles_give_valid_json(tmp_path: pathlib.Path) -> None:
    odd = 'a "b"\\\n\N{GREEK SMALL LETTER ALPHA}'
    table = make_table(1, 1).assign(**{f"prob_{odd}": 0.9})
    feature = write(table, tmp_path / "odd.geojson", thresholds={"tumor": 0, "stroma": 1, odd: 0.5})["features"][0]
    assert feature["properties"]["classification"]["names"] == ["tumor", odd]
    assert feature["properties"]["measurements"][f"prob_{odd}"] == 0.9
    assert write(make_table(0, 1), tmp_path / "none.geojson") == {"type": "FeatureCollection", "features": []}


def test_a_failure_leaves_no_partial_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyError):
        write_tiles(make_table(), tmp_path / "tiles.geojson", slide="S1", thresholds={"tumor": 0.5})
    assert not list(tmp_path.iterdir())


def test_the_text_is_never_held_in_memory(tmp_path: pathlib.Path) -> None:
    table = make_table(50, 100)
    tracemalloc.start()
    write_tiles(table, tmp_path / "tiles.geojson", slide="S1", thresholds=THRESHOLDS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = (tmp_path / "tiles.geojson").stat().st_size
    assert size > 1_500_000
    assert peak < size / 2


def test_colours_and_file_names_of_labels_do_not_collide() -> None:
    colours = label_colours(["Tumor", "stroma", "fat", "vessel"])
    assert colours["Tumor"] == (200, 0, 0)  # QuPath's
    assert len(set(colours.values())) == 4
    names = unique_file_names(["a/b", "a b", "A_B", "../x", "..", "ü", "y" * 300])
    assert names["a/b"] == "a_b"
    assert len({name.casefold() for name in names.values()}) == 7
    assert not any(set("/\\ ") & set(name) for name in names.values())
    assert not any(name.startswith(".") or not name for name in names.values())
    assert max(map(len, names.values())) <= 80


def test_a_probability_at_the_threshold_carries_the_label() -> None:
    table = make_table(1, 2).assign(prob_tumor=[0.5, 0.49], prob_stroma=0.0)
    assert carried_labels(table, THRESHOLDS).tolist() == [[True, False], [False, False]]
