"""Tiles have the right place and pixels in order; reading can fail or be stopped."""

import pathlib
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from histojax.core.errors import RunError
from histojax.slides.geometry import Geometry
from histojax.slides.grid import GridSpec, make_grid, read_tiles
from histojax.slides.readers.reader import Slide, SlideError, open_slide
from histojax.slides.tissue import Tissue, TissueSpec, find_tissue
from tests.helpers.slide_files import write_pyramid
from tests.helpers.tissue_pictures import tissue_picture

PICTURE = tissue_picture(1000, 1300)
COLUMNS = ["minx", "miny", "width", "height", "row", "column", "tissue"]


@pytest.fixture
def slide(tmp_path: pathlib.Path) -> Iterator[Slide]:
    with open_slide(write_pyramid(tmp_path / "case.tif", PICTURE, 0.5, compression="zlib")) as slide:
        yield slide


def everywhere(slide: Slide) -> Tissue:
    return Tissue(np.ones((slide.height, slide.width), np.uint8), 1.0, 1.0)


def test_tiles_cover_the_slide_at_the_models_resolution(slide: Slide) -> None:
    geometry, table = make_grid(slide, everywhere(slide), GridSpec(200, 1.0, min_tissue=0))
    assert geometry == Geometry(1300, 1000, 0.5, 400, 400)
    assert list(table) == COLUMNS
    assert [str(kind) for kind in table.dtypes] == ["int64"] * 6 + ["float64"]
    assert table[["row", "column"]].to_numpy().tolist() == [[r, c] for r in range(3) for c in range(4)]
    assert (table["minx"] == 400 * table["column"]).all()
    assert (table["miny"] == 400 * table["row"]).all()
    assert set(table["width"]) | set(table["height"]) == {400}
    # The last column has 100 of 400 pixels within the slide, the last row 200.
    np.testing.assert_allclose(table["tissue"].to_numpy().reshape(3, 4)[-1], [0.5, 0.5, 0.5, 0.125])


def test_overlap_moves_neighbours_together(slide: Slide) -> None:
    geometry, table = make_grid(slide, everywhere(slide), GridSpec(200, 0.5, overlap=0.25, min_tissue=1))
    assert (geometry.tile, geometry.stride) == (200, 150)
    assert geometry.cell_mm2 == pytest.approx(0.075**2)
    assert table["column"].max() == 7  # 7 · 150 + 200 = 1250
    assert table["row"].max() == 5


def test_a_cell_of_oblong_pixels_has_the_area_that_it_covers() -> None:
    geometry = Geometry(width=100, height=50, mpp=0.5, tile=5, stride=5, stretch=2.0)
    assert (geometry.tile_height, geometry.stride_height) == (2, 2)  # of 2.5
    assert geometry.cell_mm2 == pytest.approx(2.5 * 2.0 / 1e6)
    assert geometry.columns * geometry.rows * geometry.cell_mm2 == pytest.approx(0.05 * 0.05)


def test_only_tiles_with_enough_tissue_are_listed(slide: Slide) -> None:
    tissue = find_tissue(slide, TissueSpec())
    sizes = []
    for least in (0.0, 0.3, 0.9):
        _, table = make_grid(slide, tissue, GridSpec(50, 0.5, min_tissue=least))
        assert (table["tissue"] > 0).all()
        assert table["tissue"].min() >= least
        np.testing.assert_allclose(table["tissue"], tissue.fractions(table[COLUMNS[:4]].to_numpy()))
        assert table[["row", "column"]].apply(tuple, axis=1).is_monotonic_increasing
        sizes.append(len(table))
    assert sizes[0] > sizes[1] > sizes[2] > 100


def test_no_tissue_gives_no_tiles(slide: Slide) -> None:
    nothing = Tissue(np.zeros((10, 13), np.uint8), 100.0, 100.0)
    geometry, table = make_grid(slide, nothing, GridSpec(100, 0.5, min_tissue=0))
    assert geometry.tile == 100
    assert list(table) == COLUMNS
    assert [str(kind) for kind in table.dtypes] == ["int64"] * 6 + ["float64"]
    assert len(table) == 0
    assert list(read_tiles(slide, table, 32, 8, 2)) == []


def test_an_impossible_grid_is_refused(slide: Slide) -> None:
    for wrong in ({"overlap": 1.0}, {"overlap": -0.1}, {"min_tissue": 1.1}, {"min_tissue": float("nan")}):
        with pytest.raises(RunError, match="give a fraction"):
            GridSpec(100, 0.5, **wrong)
    for size, mpp in ((0, 0.5), (100, 0.0), (100, float("nan"))):
        with pytest.raises(RunError, match="greater than 0"):
            GridSpec(size, mpp)
    with pytest.raises(SlideError, match=r"case\.tif: a pixel of 0\.5 µm is larger than a tile of 0\.2 µm"):
        make_grid(slide, everywhere(slide), GridSpec(2, 0.1))


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (7, 3), (64, 2), (3, 5)])
def test_batches_hold_the_tiles_in_order(slide: Slide, batch: int, threads: int) -> None:
    _, table = make_grid(slide, everywhere(slide), GridSpec(100, 1.0, overlap=0.5, min_tissue=0))
    batches = list(read_tiles(slide, table, 100, batch, threads))
    assert {len(b) for b in batches[:-1]} <= {batch}
    tiles = np.concatenate(batches)
    assert tiles.shape == (len(table), 100, 100, 3)
    assert tiles.dtype == np.uint8
    for tile, row in zip(tiles, table.itertuples(), strict=True):
        np.testing.assert_array_equal(tile, slide.read(row.minx, row.miny, 200, 200, 100, 100))


def test_reading_stays_two_batches_ahead(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    _, table = make_grid(slide, everywhere(slide), GridSpec(50, 0.5, min_tissue=0))
    count, read = [0], slide.read

    def counted(*box: int) -> np.ndarray:
        count[0] += 1
        return read(*box)

    monkeypatch.setattr(slide, "read", counted)
    batches = read_tiles(slide, table, 16, 10, 2)
    assert count == [0]
    next(batches)
    deadline = time.monotonic() + 5
    while count[0] < 30 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert count == [30]
    batches.close()
    assert count == [30]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tiles")]


def test_closing_stops_the_threads_at_once(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    _, table = make_grid(slide, everywhere(slide), GridSpec(50, 0.5, min_tissue=0))
    count = [0]

    def slow(*box: int) -> np.ndarray:
        count[0] += 1
        time.sleep(0.005)
        return np.zeros((16, 16, 3), np.uint8)

    monkeypatch.setattr(slide, "read", slow)
    batches = read_tiles(slide, table, 16, 50, 2)
    next(batches)
    batches.close()
    assert 50 <= count[0] < 100  # of the 150 requested
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tiles")]


def test_an_unreadable_tile_is_named(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    _, table = make_grid(slide, everywhere(slide), GridSpec(256, 0.5, min_tissue=0))
    segment = slide._backend._segment

    def damaged(level: int, index: int) -> np.ndarray:
        if index == 8:
            raise SlideError("damaged tile 8 of level 0")
        return segment(level, index)

    monkeypatch.setattr(slide._backend, "_segment", damaged)
    with pytest.raises(SlideError, match=r"case\.tif: cannot read the 256×256 pixels at \(512, 256\): damaged tile 8"):
        list(read_tiles(slide, table, 256, 4, 2))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tiles")]
