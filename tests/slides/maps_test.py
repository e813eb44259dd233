"""Maps: the grid, the pictures of it, and an OME-TIFF that lies over the slide."""

import math
import pathlib
import xml.etree.ElementTree as ET

import cv2
import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile

from histojax.slides import maps
from histojax.slides.geometry import Geometry
from tests.helpers.tile_tables import make_table

GEOMETRY = Geometry(width=410, height=290, mpp=0.5, tile=100, stride=100)  # 3 × 5 cells, the last column is cut off
OVERLAPPING = Geometry(width=410, height=290, mpp=0.5, tile=200, stride=100)
THRESHOLDS = {"tumor": 0.5, "stroma": 0.5}


def write_tiff(path: pathlib.Path, table: pd.DataFrame, geometry: Geometry) -> tifffile.TiffFile:
    maps.write_ome_tiff(path, table, geometry, slide="S <1>")
    return tifffile.TiffFile(path)


def test_the_grid_has_one_value_per_tile_and_nan_elsewhere() -> None:
    table = make_table().query("row != 1")
    grid = maps.grid_of(table, GEOMETRY, "prob_tumor")
    assert grid.dtype == np.float32
    assert grid.shape == (3, 5)
    np.testing.assert_array_equal(grid[[0, 2], :4].ravel(), table["prob_tumor"])
    assert np.isnan(grid[1]).all()
    assert np.isnan(grid[:, 4]).all()


# --- OME-TIFF -----------------------------------------------------------------------------------------------


def test_the_tiff_is_tiled_pyramidal_and_names_its_channels(tmp_path: pathlib.Path) -> None:
    table = make_table(100, 120)
    geometry = Geometry(width=12_000, height=10_000, mpp=0.5, tile=100, stride=100)
    with write_tiff(tmp_path / "heatmap.tif", table, geometry) as file:
        assert file.is_ome
        series = file.series[0]
        assert series.axes == "CYX"
        assert series.dtype == np.uint8
        assert [level.shape for level in series.levels] == [(2, 600, 720), (2, 300, 360), (2, 150, 180), (2, 75, 90)]
        assert all(level.pages[0].is_tiled for level in series.levels)  # type: ignore[union-attr]
        assert len(file.pages[0].subifds) == 3  # type: ignore[arg-type, union-attr]
        whole, *_, smallest = (level.asarray() for level in series.levels)
    expected = np.rint(table["prob_stroma"].to_numpy().reshape(100, 120) * 255)
    np.testing.assert_array_equal(whole[1], expected.repeat(6, axis=0).repeat(6, axis=1))
    np.testing.assert_allclose(smallest[1], whole[1].reshape(75, 8, 90, 8).mean((1, 3)), atol=2)


@pytest.mark.parametrize("geometry", [GEOMETRY, OVERLAPPING])
def test_the_tiff_lies_over_the_slide(tmp_path: pathlib.Path, geometry: Geometry) -> None:
    table = make_table(2, 3)
    with write_tiff(tmp_path / "heatmap.tif", table, geometry) as file:
        channel = file.series[0].asarray()[0]
        pixels = ET.fromstring(file.ome_metadata or "").find(".//{*}Pixels")
        names = [c.get("Name") for c in ET.fromstring(file.ome_metadata or "").findall(".//{*}Channel")]
    assert pixels is not None
    assert names == ["tumor", "stroma"]
    assert pixels.get("PhysicalSizeXUnit") == pixels.get("PhysicalSizeYUnit") == "µm"
    side = float(pixels.get("PhysicalSizeX") or "nan") / geometry.mpp  # level-0 pixels of a pixel
    assert pixels.get("PhysicalSizeX") == pixels.get("PhysicalSizeY")
    assert channel.shape == (math.ceil(geometry.height / side), math.ceil(geometry.width / side))
    for tile in table.itertuples():  # the centre of the tile's cell, and just within its corners
        for share in (-0.49, 0, 0.49):
            x = float(tile.minx) + geometry.tile / 2 + share * geometry.stride  # type: ignore[arg-type]
            y = float(tile.miny) + geometry.tile / 2 + share * geometry.stride  # type: ignore[arg-type]
            assert channel[int(y / side), int(x / side)] == round(float(tile.prob_tumor) * 255)  # type: ignore[arg-type]
    beyond = float(table["minx"].max()) + geometry.tile / 2 + 0.51 * geometry.stride
    assert not channel[:, int(beyond / side) + 1 :].any()


def test_tiles_that_overlap_much_leave_the_edge_empty(tmp_path: pathlib.Path) -> None:
    geometry = Geometry(width=500, height=500, mpp=0.5, tile=400, stride=100)
    with write_tiff(tmp_path / "heatmap.tif", make_table(5, 5), geometry) as file:
        channel = file.series[0].asarray()[0]
    edge = 150 * len(channel) // 500  # the first cell begins 150 pixels into the slide
    assert not channel[:edge].any()
    assert not channel[:, :edge].any()
    assert channel[edge:, edge:].all()


def test_the_same_tiles_give_the_same_bytes(tmp_path: pathlib.Path) -> None:
    for name in ("a.tif", "b.tif"):
        maps.write_ome_tiff(tmp_path / name, make_table(), GEOMETRY, slide="S1")
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_a_huge_slide_needs_no_dense_canvas(tmp_path: pathlib.Path) -> None:
    geometry = Geometry(width=200_000, height=150_000, mpp=0.25, tile=448, stride=448)
    table = make_table(1, 1).assign(row=300, column=400)
    with write_tiff(tmp_path / "heatmap.tif", table, geometry) as file:
        assert file.series[0].shape == (2, 4688, 6250)
        assert file.series[0].asarray()[0].max() == round(table["prob_tumor"][0] * 255)
    assert (tmp_path / "heatmap.tif").stat().st_size < 1_000_000


# --- Pictures -----------------------------------------------------------------------------------------------


def test_a_heatmap_shows_high_and_low(tmp_path: pathlib.Path) -> None:
    table = make_table(2, 2).assign(prob_tumor=[0.0, 1.0, 1.0, 0.0])
    geometry = Geometry(200, 200, 0.5, 100, 100)
    maps.write_heatmap(tmp_path / "a.png", table, geometry, "tumor", slide="S1")
    image = cv2.imread(str(tmp_path / "a.png")).astype(int).sum(axis=2)
    rows, columns = np.nonzero(image < 30)  # the black of probability 0
    middle = rows.mean(), columns.mean()
    assert image.shape[0] > 800
    off = 100  # pixels from the middle into a cell
    corners = [image[int(middle[0] + y * off), int(middle[1] + x * off)] for y in (-1, 1) for x in (-1, 1)]
    assert corners[0] < 30 > corners[3]
    assert corners[1] > 500 < corners[2]


def test_an_overlay_shows_the_slide_between_tiles(tmp_path: pathlib.Path) -> None:
    thumbnail = np.full((200, 200, 3), (10, 20, 250), np.uint8)
    table = make_table(2, 2).iloc[[0, 3]].assign(prob_tumor=[1.0, 0.0], prob_stroma=[0.0, 1.0])
    geometry = Geometry(200, 200, 0.5, 100, 100)
    arguments = {"slide": "S1", "thresholds": THRESHOLDS}
    maps.write_overlay(tmp_path / "a.png", table, geometry, thumbnail, **arguments)  # type: ignore[arg-type]
    image = cv2.imread(str(tmp_path / "a.png"))[..., ::-1].astype(int)

    def middle(colour: tuple[int, int, int], share: float) -> tuple[int, float, float]:
        mixed = share * np.array(colour) + (1 - share) * np.array((10, 20, 250))
        rows, columns = np.nonzero(np.abs(image - mixed).max(axis=2) < 3)
        return len(rows), rows.mean(), columns.mean()

    slide, tumor, stroma = middle((10, 20, 250), 1), middle((200, 0, 0), 0.55), middle((150, 200, 150), 0.55)
    assert slide[0] == pytest.approx(2 * tumor[0], rel=0.05)
    assert tumor[0] == pytest.approx(stroma[0], rel=0.05)
    assert tumor[1] < slide[1] < stroma[1]
    assert tumor[2] < slide[2] < stroma[2]
    spot = shapely.box(110, 110, 190, 190)
    maps.write_overlay(
        tmp_path / "b.png", table, geometry, thumbnail, outlines={"hot spot": spot}, **arguments  # type: ignore[arg-type]
    )  # fmt: skip
    other = cv2.imread(str(tmp_path / "b.png"))[..., ::-1].astype(int)
    outline = np.abs(other - (0, 51, 255)).max(axis=2) < 3
    assert outline.sum() > 500


@pytest.mark.parametrize(
    "geometry", [GEOMETRY, OVERLAPPING, Geometry(1, 1, 0.25, 448, 448), Geometry(100_000, 50, 0.25, 40, 40)]
)
def test_no_tissue_and_odd_shapes_and_names_are_drawn(tmp_path: pathlib.Path, geometry: Geometry) -> None:
    table = make_table(0, 1).assign(**{"prob_$x_{2$": []})
    thresholds = THRESHOLDS | {"$x_{2$": 0.5}
    thumbnail = np.zeros((1, 1, 3), np.uint8)
    slide = '<b>"$\\frac{1}$ \N{CJK UNIFIED IDEOGRAPH-6F22}\n\x07'
    maps.write_heatmap(tmp_path / "h.png", table, geometry, "$x_{2$", slide=slide)
    maps.write_overlay(tmp_path / "o.png", table, geometry, thumbnail, slide=slide, thresholds=thresholds)
    maps.write_ome_tiff(tmp_path / "h.tif", table, geometry, slide=slide)
    drawn = cv2.imread(str(tmp_path / "h.png")).shape[:2]
    assert max(drawn) < 2000
    assert min(drawn) > 200
    with tifffile.TiffFile(tmp_path / "h.tif") as file:
        image = ET.fromstring(file.ome_metadata or "").find("{*}Image")  # well-formed, whatever the name
        assert image is not None
        assert str(image.get("Name")).startswith('<b>"$\\frac')
        assert file.asarray().max() == 0
    if geometry.width > 1:
        full = make_table(1, 1).assign(**{"prob_$x_{2$": [0.75]})
        maps.write_overlay(tmp_path / "o.png", full, geometry, thumbnail, slide=slide, thresholds=thresholds)


def test_many_labels_do_not_overflow_the_legend(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    table = make_table(30, 40).drop(columns=["prob_tumor", "prob_stroma"])
    table = table.assign(**{f"prob_l{k}": rng.random(len(table)) for k in range(9)})
    geometry = Geometry(4000, 3000, 0.5, 100, 100)
    thumbnail = np.full((30, 40, 3), 255, np.uint8)
    maps.write_overlay(
        tmp_path / "o.png", table, geometry, thumbnail, slide="S1", thresholds={f"l{k}": 0.5 for k in range(9)}
    )
    assert max(cv2.imread(str(tmp_path / "o.png")).shape) < 2000


def test_a_failure_leaves_no_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyError):
        maps.write_heatmap(tmp_path / "h.png", make_table(), GEOMETRY, "fat", slide="S1")
    with pytest.raises(KeyError):
        maps.write_ome_tiff(tmp_path / "h.tif", make_table().drop(columns="row"), GEOMETRY, slide="S1")
    assert not list(tmp_path.iterdir())
