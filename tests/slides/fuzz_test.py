"""Damaged slides and annotations are read or refused with the file's name, and never fail in another way."""

import json
import pathlib
import random
from typing import Any

import numpy as np
import pytest
import tifffile

from histojax.slides.annotations import regions
from histojax.slides.annotations.regions import RegionError
from histojax.slides.readers.reader import SlideError, open_slide
from tests.helpers.slide_files import write_ome, write_pyramid, write_svs
from tests.helpers.tissue_pictures import tissue_picture

PICTURE = tissue_picture(160, 200)
VALUES = (None, 1, -1, 1e300, "x", [], {}, True, [[1]], {"type": "Polygon"}, {"type": "Point"}, float("nan"), 10**30)
SQUARE = [[[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]]
ANNOTATIONS = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": SQUARE},
            "properties": {"objectType": "annotation", "classification": {"name": "Tumor"}},
        },
        {
            "type": "Feature",
            "geometry": {
                "type": "GeometryCollection",
                "geometries": [{"type": "MultiPolygon", "coordinates": [SQUARE]}, {"type": "Point"}],
            },
        },
    ],
}


def write_slides(folder: pathlib.Path) -> list[pathlib.Path]:
    planes = folder / "planes.tif"
    tifffile.imwrite(planes, np.moveaxis(PICTURE, 2, 0).copy(), photometric="rgb", planarconfig="separate")
    imagej = folder / "imagej.tif"
    tifffile.imwrite(imagej, PICTURE[None], imagej=True, resolution=(4, 4), metadata={"unit": "micron"})
    return [
        write_pyramid(folder / "pyramid.tif", PICTURE, 0.5, tile=(64, 64)),
        write_ome(folder / "a.ome.tif", PICTURE, (0.5, 0.5)),
        write_svs(folder / "a.svs", PICTURE, 0.5),
        planes,
        imagej,
    ]


def test_damaged_slides_are_refused_with_a_message(tmp_path: pathlib.Path) -> None:
    rng = random.Random(0)
    named = []
    for whole in write_slides(tmp_path):
        data = whole.read_bytes()
        path = tmp_path / f"damaged{whole.suffix}"
        for _ in range(40):
            damaged = bytearray(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)
            for _ in range(rng.randint(1, 4) if damaged else 0):
                # Headers are at both ends.
                end = rng.choice((min(600, len(damaged)), len(damaged)))
                damaged[rng.choice((rng.randrange(end), -1 - rng.randrange(end)))] = rng.randrange(256)
            path.write_bytes(damaged)
            try:
                with open_slide(path, 0.5) as slide:
                    slide.thumbnail(50)
            except SlideError as error:
                named.append(str(error).startswith(f"{path}: "))
    assert all(named)
    assert 20 < len(named) < 200


def changed(value: Any, rng: random.Random) -> Any:
    """A copy of JSON content in which some values are others and some keys are missing."""
    if rng.random() < 0.05:
        return rng.choice(VALUES)
    if isinstance(value, dict):
        return {key: changed(inner, rng) for key, inner in value.items() if rng.random() > 0.02}
    return [changed(inner, rng) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("seed", [0, 1])
def test_damaged_annotations_are_refused_with_a_message(tmp_path: pathlib.Path, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path / "a.geojson"
    named = []
    for _ in range(600):
        path.write_text(json.dumps(changed(ANNOTATIONS, rng)))
        try:
            found, _warnings = regions.read(path)
            assert found
        except RegionError as error:
            named.append(str(error).startswith(str(path)))
    assert all(named)
    assert 100 < len(named) < 600
