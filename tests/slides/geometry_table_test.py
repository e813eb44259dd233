"""Known rectangles are found where they are: pyramids, overlap, regions, oblong pixels, cropped slides, odd tiles."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable

import cv2
import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile

from histojax.slides import cohort, cohort_jobs
from tests.helpers import planted
from tests.helpers.colour_slide_model import SMALL, model
from tests.helpers.slide_files import write_pyramid, write_scn
from tests.helpers.tissue_pictures import GLASS

pytestmark = pytest.mark.usefixtures("coarse_pictures")
MPP = 1.0
SLIDE = (1200.0, 900.0)  # µm, width and height
TISSUE = (76.0, 66.0, 1130.0, 846.0)  # µm: left, top, right, bottom
TUMOR = (306.0, 243.0, 896.0, 700.0)
REGION = (200.0, 150.0, 608.0, 750.0)
AXES = (("x", "width", "mpp"), ("y", "height", "mpp_y"))  # columns of the tile table and of slides.csv
HALF = {"tumor": 0.345, "stroma": 0.655}  # the probabilities of a tile that is half tumor, half stroma


@functools.cache
def picture(mpp: tuple[float, float] = (MPP, MPP)) -> np.ndarray:
    """`uint8 [h, w, 3]`: stroma on glass, with a rectangle of tumor."""
    width, height = (round(side / MPP) for side in SLIDE)
    rng = np.random.default_rng(0)
    out = np.full((height, width, 3), GLASS, np.uint8)
    for box, boundary in ((TISSUE, 0), (TUMOR, width)):
        left, top, right, bottom = (round(side / MPP) for side in box)
        out[top:bottom, left:right] = planted.tissue(bottom - top, right - left, boundary, rng)
    size = (round(SLIDE[0] / mpp[0]), round(SLIDE[1] / mpp[1]))
    return out if size == (width, height) else cv2.resize(out, size, interpolation=cv2.INTER_AREA)


def write_levels(path: pathlib.Path, factors: tuple[float, ...]) -> pathlib.Path:
    """A TIFF file whose levels are smaller by these factors, rounded down as scanners do."""
    pixels, mpp = picture(), MPP
    how = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        for factor in factors:
            size = (int(pixels.shape[1] / factor), int(pixels.shape[0] / factor))
            level = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
            resolution = (1e4 / mpp / factor, 1e4 / mpp / factor)
            file.write(level, subfiletype=int(factor > 1), resolution=resolution, resolutionunit=3, **how)
    return path


@dataclasses.dataclass(frozen=True)
class Case:
    write: Callable[[pathlib.Path], pathlib.Path]
    tile_um: float = 24.0
    image_size: int = 16
    overlap: float = 0.0
    region: bool = False


def _oblong(x: float, y: float) -> Callable[[pathlib.Path], pathlib.Path]:
    return lambda path: write_pyramid(path, picture((x, y)), (x, y), compression="zlib")


def _cropped(path: pathlib.Path) -> pathlib.Path:
    return write_scn(path.with_suffix(".scn"), picture(), MPP, offset=(480, 192), whole=(2400, 1800))


CASES = {
    "one level": Case(lambda path: write_levels(path, (1,))),
    "factors 1-3-9": Case(lambda path: write_levels(path, (1, 3, 9)), overlap=0.5),
    "factors 1-3-9, coarse": Case(lambda path: write_levels(path, (1, 3, 9)), 36.0, 8, 0.5),
    "factors 1-3-10, rounded": Case(lambda path: write_levels(path, (1, 3.0007, 10.013)), 40.0, 8, 0.75),
    "region": Case(lambda path: write_levels(path, (1, 4)), overlap=0.5, region=True),
    "oblong pixels, wide": Case(_oblong(2.0, 1.0), overlap=0.5),
    "oblong pixels, high": Case(_oblong(1.0, 2.0), overlap=0.5),
    "cropped": Case(_cropped, overlap=0.5),
    "cropped region": Case(_cropped, overlap=0.5, region=True),
    "odd tiles": Case(lambda path: write_levels(path, (1, 2)), 23.5, 17, 0.5),
    "odd tiles without overlap": Case(lambda path: write_levels(path, (1, 2)), 27.3, 19),
}


def area(box: shapely.Geometry) -> float:
    return float(box.area) / 1e6  # mm²


@pytest.mark.parametrize("name", CASES)
def test_rectangles_are_measured_and_mapped_where_they_are(name: str, tmp_path: pathlib.Path) -> None:
    case = CASES[name]
    slide = case.write(tmp_path / "slide.tif")
    roi = None
    if case.region:
        roi = tmp_path / "roi.geojson"
        corners = [[x / MPP, y / MPP] for x, y in shapely.box(*REGION).exterior.coords]
        roi.write_text(json.dumps({"type": "Polygon", "coordinates": [corners]}))
    by_colour = model(thresholds=HALF, tile_um=case.tile_um, image_size=case.image_size)
    spec = dataclasses.replace(SMALL, thresholds=HALF, hot_spot_um=240.0)
    settings = cohort.Settings(tsr=spec, overlap=case.overlap, min_tissue=0.5)
    assert cohort.run([cohort_jobs.Job("slide", slide, roi=roi)], by_colour, settings, tmp_path / "out") == 0
    folder = tmp_path / "out" / "slide"
    table = pd.read_parquet(folder / "tiles.parquet")
    row = pd.read_csv(tmp_path / "out" / "slides.csv").iloc[0]
    stride_um = case.tile_um * (1 - case.overlap)

    tumor, tissue = shapely.box(*TUMOR), shapely.box(*TISSUE)
    within = shapely.box(*REGION) if case.region else tissue
    expected = {"tumor": tumor & within, "stroma": (tissue - tumor) & within}
    measured = json.loads((folder / "tsr.json").read_text())["areas"]["region" if case.region else "whole tissue"]
    for label, shape in expected.items():
        # An edge lies at most half a cell beside the cell's edge, all the way round.
        assert measured[f"{label}_mm2"] == pytest.approx(area(shape), abs=shape.length * stride_um / 2 / 1e6), label

    assert (table["width"] * row["mpp"]).iloc[0] == pytest.approx(case.tile_um, abs=row["mpp"] / 2 + 1e-9)
    is_tumor = table["prob_tumor"] >= HALF["tumor"]
    centre = [((table[f"min{axis}"] + table[side] / 2) * row[mpp])[is_tumor].mean() for axis, side, mpp in AXES]
    assert centre == pytest.approx([tumor.centroid.x, tumor.centroid.y], abs=case.tile_um / 2)

    with tifffile.TiffFile(folder / "heatmap.tif") as file:
        found = file.series[0].asarray()[0] >= HALF["tumor"] * 255
        page = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
    x = (np.arange(found.shape[1]) + 0.5) * page["PhysicalSizeX"]
    y = (np.arange(found.shape[0]) + 0.5) * page["PhysicalSizeY"]
    true = ((y > TUMOR[1]) & (y < TUMOR[3]))[:, None] & ((x > TUMOR[0]) & (x < TUMOR[2]))
    assert (found & true).sum() / (found | true).sum() >= 0.95  # intersection over union
