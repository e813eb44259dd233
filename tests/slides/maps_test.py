"""The grid of probabilities, and an OME-TIFF of it that lies over the slide."""

import math
import pathlib
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
import tifffile

from histojax.slides import maps
from histojax.slides.geometry import Geometry
from tests.helpers.tile_tables import make_table

GEOMETRY = Geometry(width=410, height=290, mpp=0.5, tile=100, stride=100)  # 3 × 5 cells, the last column is cut off
OVERLAPPING = Geometry(width=410, height=290, mpp=0.5, tile=200, stride=100)


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


def test_a_failure_leaves_no_tiff(tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyError):
        maps.write_ome_tiff(tmp_path / "h.tif", make_table().drop(columns="row"), GEOMETRY, slide="S1")
    assert not list(tmp_path.iterdir())


def test_an_odd_name_and_no_tissue_give_a_valid_tiff(tmp_path: pathlib.Path) -> None:
    table = make_table(0, 1).assign(**{"prob_$x_{2$": []})
    slide = '<b>"$\\frac{1}$ \N{CJK UNIFIED IDEOGRAPH-6F22}\n\x07'
    for geometry in (GEOMETRY, OVERLAPPING, Geometry(1, 1, 0.25, 448, 448), Geometry(100_000, 50, 0.25, 40, 40)):
        maps.write_ome_tiff(tmp_path / "h.tif", table, geometry, slide=slide)
        with tifffile.TiffFile(tmp_path / "h.tif") as file:
            image = ET.fromstring(file.ome_metadata or "").find("{*}Image")  # well-formed, whatever the name
            assert image is not None
            assert str(image.get("Name")).startswith('<b>"$\\frac')
            assert file.asarray().max() == 0
