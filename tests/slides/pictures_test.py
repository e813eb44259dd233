"""Pictures: colours on the map are those of the legend, and the slide shows between and below the tiles."""

import pathlib

import cv2
import numpy as np
import pytest
import shapely

from histojax.slides import pictures
from histojax.slides.geometry import Geometry
from tests.helpers.tile_tables import make_table

GEOMETRY = Geometry(width=410, height=290, mpp=0.5, tile=100, stride=100)  # 3 × 5 cells, the last column is cut off
OVERLAPPING = Geometry(width=410, height=290, mpp=0.5, tile=200, stride=100)
SMALL = Geometry(200, 200, 0.5, 100, 100)
THRESHOLDS = {"tumor": 0.5, "stroma": 0.5}
PURPLE = (150, 90, 160)
SLIDE = np.full((200, 200, 3), PURPLE, np.uint8)


def read(path: pathlib.Path) -> np.ndarray:
    return cv2.imread(str(path))[..., ::-1].astype(int)


def find(image: np.ndarray, colour: object, tolerance: int = 2) -> tuple[int, float, float]:
    """Count the pixels of a colour, and return their mean row and column."""
    rows, columns = np.nonzero(np.abs(image - np.asarray(colour)).max(axis=2) <= tolerance)
    return len(rows), rows.mean(), columns.mean()


def labelled(colour: tuple[int, int, int]) -> np.ndarray:
    """The colour of a labelled tile on purple tissue: half the label's, half of grey with a quarter of its purple."""
    grey = np.mean(PURPLE)
    return (np.array(colour) + 0.75 * grey + 0.25 * np.array(PURPLE)) / 2


def test_an_overlay_shows_the_slide_between_tiles(tmp_path: pathlib.Path) -> None:
    table = make_table(2, 2).iloc[[0, 3]].assign(prob_tumor=[1.0, 0.0], prob_stroma=[0.0, 1.0])
    pictures.write_overlay(tmp_path / "a.png", table, SMALL, SLIDE, slide="S1", thresholds=THRESHOLDS)
    image = read(tmp_path / "a.png")
    slide, tumor, stroma = (
        find(image[:, :1000], colour) for colour in (PURPLE, labelled((200, 0, 0)), labelled((150, 200, 150)))
    )
    assert slide[0] == pytest.approx(2 * tumor[0], rel=0.08)
    assert tumor[0] == pytest.approx(stroma[0], rel=0.05)
    assert tumor[1] < slide[1] < stroma[1]
    assert tumor[2] < slide[2] < stroma[2]
    # The legend to the right has the same colours.
    assert min(find(image[:, 1020:], labelled(colour))[0] for colour in ((200, 0, 0), (150, 200, 150))) > 1000


def test_the_slide_alone_has_the_place_and_size_that_it_has_in_the_overlay(tmp_path: pathlib.Path) -> None:
    pictures.write_slide(tmp_path / "slide.png", SMALL, SLIDE, slide="S1")
    no_tiles = make_table(2, 2).iloc[:0]
    pictures.write_overlay(tmp_path / "overlay.png", no_tiles, SMALL, SLIDE, slide="S1", thresholds=THRESHOLDS)
    alone, beside = (find(read(tmp_path / f"{name}.png"), PURPLE) for name in ("slide", "overlay"))
    assert alone == pytest.approx(beside, rel=0.01)


def test_a_tile_with_two_labels_has_stripes_of_both_and_one_without_none(tmp_path: pathlib.Path) -> None:
    table = make_table(1, 2).assign(prob_tumor=[1.0, 0.0], prob_stroma=[1.0, 0.0])
    geometry = Geometry(200, 100, 0.5, 100, 100)
    pictures.write_overlay(tmp_path / "a.png", table, geometry, SLIDE, slide="S1", thresholds=THRESHOLDS)
    image = read(tmp_path / "a.png")[:, :1000]
    tumor, stroma = find(image, labelled((200, 0, 0))), find(image, labelled((150, 200, 150)))
    assert tumor[0] == pytest.approx(stroma[0], rel=0.05)
    assert tumor[2] == pytest.approx(stroma[2], abs=10), "in the same tile"
    assert find(image, PURPLE)[0] == pytest.approx(2 * tumor[0], rel=0.08), "the tile without a label"


def test_regions_are_outlined(tmp_path: pathlib.Path) -> None:
    outlines = {"hot spot": shapely.box(110, 110, 190, 190)}
    pictures.write_overlay(
        tmp_path / "a.png", make_table(2, 2), SMALL, SLIDE, slide="S1", thresholds=THRESHOLDS, outlines=outlines
    )
    assert find(read(tmp_path / "a.png"), (0, 51, 255))[0] > 500


def test_a_heatmap_lies_on_the_faint_slide_and_marks_the_threshold(tmp_path: pathlib.Path) -> None:
    table = make_table(2, 2).iloc[[0, 1]].assign(prob_tumor=[0.0, 1.0])
    images = []
    for threshold in (None, 0.25):
        pictures.write_heatmap(tmp_path / "a.png", table, SMALL, SLIDE, "tumor", slide="S1", threshold=threshold)
        images.append(read(tmp_path / "a.png"))
    map_, bar = images[0][:, :1000], images[0][:, 1010:]
    faint = 255 - 0.4 * (255 - np.array(PURPLE))
    low, high = (0.35 * faint.mean() + 0.65 * np.array(colour) for colour in ((252, 253, 191), (0, 0, 4)))
    below, first, second = (find(map_, colour, 3) for colour in (faint, low, high))
    assert below[0] == pytest.approx(2 * first[0], rel=0.05)
    assert first[0] == pytest.approx(second[0], rel=0.05)
    assert first[2] < second[2]
    assert first[1] < below[1]
    # The bar has the map's colours, 0 below 1.
    assert find(bar, low, 3)[1] > find(bar, high, 3)[1]
    # The threshold is drawn at a quarter of the bar's height.
    changed = np.abs(images[1][: len(images[0]), : images[0].shape[1]] - images[0]).max(axis=2) > 100
    rows = np.nonzero(changed[:, 1010:])[0]
    top, bottom = (np.nonzero((np.abs(bar - colour).max(axis=2) <= 3).any(axis=1))[0] for colour in (high, low))
    assert rows.mean() == pytest.approx(bottom.max() - 0.25 * (bottom.max() - top.min()), abs=12)


def test_a_scale_bar_has_a_round_length(tmp_path: pathlib.Path) -> None:
    lengths = [pictures._round_length(most) for most in (0.0137, 0.1, 0.9, 4.99, 5, 27)]
    assert lengths == pytest.approx([0.01, 0.1, 0.5, 2, 5, 20])


@pytest.mark.parametrize(
    "geometry", [GEOMETRY, OVERLAPPING, Geometry(1, 1, 0.25, 448, 448), Geometry(100_000, 50, 0.25, 40, 40)]
)
def test_no_tissue_and_odd_shapes_and_names_are_drawn(tmp_path: pathlib.Path, geometry: Geometry) -> None:
    table = make_table(0, 1).assign(**{"prob_$x_{2$": []})
    thresholds = THRESHOLDS | {"$x_{2$": 0.5}
    thumbnail = np.zeros((1, 1, 3), np.uint8)
    slide = '<b>"$\\frac{1}$ \N{CJK UNIFIED IDEOGRAPH-6F22}\n\x07'
    pictures.write_heatmap(tmp_path / "h.png", table, geometry, thumbnail, "$x_{2$", slide=slide, threshold=0.5)
    pictures.write_overlay(tmp_path / "o.png", table, geometry, thumbnail, slide=slide, thresholds=thresholds)
    drawn = read(tmp_path / "h.png").shape[:2]
    assert max(drawn) < 2000
    assert min(drawn) > 200
    if geometry.width > 1:
        full = make_table(1, 1).assign(**{"prob_$x_{2$": [0.75]})
        pictures.write_overlay(tmp_path / "o.png", full, geometry, thumbnail, slide=slide, thresholds=thresholds)


@pytest.mark.slow
def test_many_labels_do_not_overflow_the_legend(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    table = make_table(30, 40).drop(columns=["prob_tumor", "prob_stroma"])
    table = table.assign(**{f"prob_l{k}": rng.random(len(table)) for k in range(9)})
    geometry = Geometry(4000, 3000, 0.5, 100, 100)
    thresholds = {f"l{k}": 0.5 for k in range(9)}
    pictures.write_overlay(tmp_path / "o.png", table, geometry, SLIDE, slide="S1", thresholds=thresholds)
    assert max(read(tmp_path / "o.png").shape) < 2000


def test_a_failure_leaves_no_picture(tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyError):
        pictures.write_heatmap(tmp_path / "h.png", make_table(), GEOMETRY, SLIDE, "fat", slide="S1")
    assert not list(tmp_path.iterdir())
