"""Tissue, ink, blur and folds are found where they were planted; areas and fractions are checked by hand."""

import pathlib

import cv2
import numpy as np
import pytest
from PIL import Image

from histojax.slides.readers.reader import open_slide
from histojax.slides.tissue import KINDS, Tissue, TissueSpec, find_tissue
from tests.conftest import SHARED
from tests.helpers.slide_files import write_pyramid
from tests.helpers.tissue_pictures import GLASS, tissue_picture, tissue_texture

SLIDES = SHARED / "slides"
MPP = 1.0
BACKGROUND, TISSUE, PEN, BLUR, FOLD = range(5)


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """2 × 2.4 mm of tissue within 0.2 mm of glass."""
    picture = np.full((2400, 2800, 3), GLASS, np.uint8)
    picture[200:2200, 200:2600] = tissue_texture(2000, 2400, MPP)
    return picture


def find(folder: pathlib.Path, picture: np.ndarray, mpp: float = MPP, spec: TissueSpec | None = None) -> Tissue:
    with open_slide(write_pyramid(folder / "a.tif", picture, mpp, compressionargs={"level": 85})) as slide:
        return find_tissue(slide, spec or TissueSpec())


def fraction(found: Tissue, kind: int, where: np.ndarray) -> float:
    """The fraction of a region `bool [height, width]` of level 0 that has a kind."""
    size = found.kinds.shape[::-1]
    inside = cv2.resize(where.astype(np.uint8), size, interpolation=cv2.INTER_AREA) > 0
    return float((found.kinds[inside] == kind).mean())


def stroke(shape: tuple[int, ...], width: int, start: tuple[int, int], end: tuple[int, int]) -> np.ndarray:
    canvas = np.zeros(shape[:2], np.uint8)
    cv2.line(canvas, start, end, 1, width)
    return canvas > 0


def test_tissue_is_found_and_measured(tmp_path: pathlib.Path, tissue: np.ndarray) -> None:
    found = find(tmp_path, tissue)
    assert found.kinds.shape == (300, 350)
    assert (found.scale_x, found.scale_y) == (8, 8)
    areas = found.mm2(MPP**2 / 1e6)
    assert tuple(areas) == KINDS
    assert areas["tissue"] == pytest.approx(4.8, rel=0.01)
    assert areas["pen"] == areas["blur"] == areas["fold"] == 0
    assert sum(areas.values()) == pytest.approx(2.4 * 2.8)


def test_small_debris_and_holes_are_removed(tmp_path: pathlib.Path, tissue: np.ndarray) -> None:
    picture = tissue.copy()
    picture[600:660, 600:660] = GLASS  # 0.0036 mm²
    picture[1200:1300, 1200:1300] = GLASS  # 0.01 mm²
    picture[20:120, 20:120] = tissue[300:400, 300:400]  # 0.01 mm²
    picture[20:180, 1000:1160] = tissue[300:460, 300:460]  # 0.0256 mm²
    found = find(tmp_path, picture)
    at = {name: found.kinds[y // 8, x // 8] for name, (y, x) in {
        "small hole": (630, 630), "large hole": (1250, 1250), "debris": (70, 70), "piece": (100, 1080),
    }.items()}  # fmt: skip
    assert at == {"small hole": TISSUE, "large hole": BACKGROUND, "debris": BACKGROUND, "piece": TISSUE}


@pytest.mark.parametrize("ink", [(40, 70, 190), (30, 140, 70), (25, 25, 30), (220, 40, 50)], ids=str)
def test_ink_over_glass_and_tissue_is_pen(tmp_path: pathlib.Path, tissue: np.ndarray, ink: tuple[int, ...]) -> None:
    line = stroke(tissue.shape, 200, (0, 500), (2800, 1100))
    picture = tissue.copy()
    picture[line] = picture[line].astype(np.float32) * np.float32(ink) / 255
    found = find(tmp_path, picture)
    assert fraction(found, PEN, line) > 0.97
    assert found.mm2(MPP**2 / 1e6)["pen"] < 1.6 * line.sum() / 1e6  # the stroke and its rim
    assert fraction(found, TISSUE, stroke(tissue.shape, 100, (300, 1500), (2500, 2000))) == 1


def test_pale_ink_on_glass_is_pen(tmp_path: pathlib.Path) -> None:
    line = stroke((1000, 1500), 200, (0, 300), (1500, 700))
    picture = np.full((1000, 1500, 3), GLASS, np.uint8)
    picture[line] = (150, 190, 240)
    found = find(tmp_path, picture)
    assert fraction(found, PEN, line) > 0.97
    assert found.mm2(MPP**2 / 1e6)["tissue"] == 0


@pytest.mark.parametrize("sigma", [4, 8, 12])
def test_blurred_tissue_is_blur(tmp_path: pathlib.Path, tissue: np.ndarray, sigma: float) -> None:
    picture, where = tissue.copy(), np.zeros(tissue.shape[:2], bool)
    where[800:1500, 900:1900] = True
    picture[where] = cv2.GaussianBlur(picture, (0, 0), sigma / MPP)[where]
    found = find(tmp_path, picture)
    assert fraction(found, BLUR, where) > 0.9
    assert fraction(found, BLUR, ~where) < 0.005
    assert find(tmp_path, picture, spec=TissueSpec(sharpness=0)).mm2(MPP**2 / 1e6)["blur"] == 0


def test_pale_tissue_is_not_blurred(tmp_path: pathlib.Path, tissue: np.ndarray) -> None:
    pale = 255 * (tissue / np.float32(255)) ** 0.35
    assert find(tmp_path, pale.astype(np.uint8)).mm2(MPP**2 / 1e6)["blur"] == 0


def test_tissue_without_any_structure_is_not_blurred(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    colloid = np.array((205, 140, 185)) + rng.normal(0, 0.5, (1000, 1000, 1)) + np.linspace(0, 10, 1000)[:, None]
    found = find(tmp_path, np.rint(colloid).astype(np.uint8))
    assert found.mask.mean() > 0.99


def test_tissue_on_tissue_is_a_fold(tmp_path: pathlib.Path, tissue: np.ndarray) -> None:
    line = stroke(tissue.shape, 100, (600, 600), (2000, 1700))
    picture = tissue.copy()
    picture[line] = 255 * (picture[line] / np.float32(255)) ** 3  # three layers of tissue
    found = find(tmp_path, picture)
    assert fraction(found, FOLD, line) > 0.7
    assert fraction(found, FOLD, ~line) < 0.005


def test_glass_has_no_tissue(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    glass = np.clip(np.array(GLASS) + rng.normal(0, 3, (1500, 1500, 3)), 0, 255).astype(np.uint8)
    assert find(tmp_path, glass).mm2(MPP**2 / 1e6)["tissue"] == 0
    Image.new("RGB", (1, 1), (200, 100, 150)).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", 0.5) as slide:
        one = find_tissue(slide, TissueSpec())
    assert one.kinds.tolist() == [[BACKGROUND]]
    assert one.fractions(np.array([[0, 0, 1, 1]])).tolist() == [0]


def test_a_slide_full_of_tissue_is_not_split(tmp_path: pathlib.Path) -> None:
    picture = tissue_texture(1500, 1500, MPP)
    picture[:64, :64] = GLASS
    found = find(tmp_path, picture, spec=TissueSpec(max_hole_mm2=1))
    assert found.mask.mean() > 0.99
    assert not found.mask[:6, :6].any()  # open to the border, so not a hole


def test_a_small_region_keeps_its_small_pieces(tmp_path: pathlib.Path) -> None:
    found = find(tmp_path, tissue_picture(200, 300, 0.5), 0.5)
    assert found.mm2(0.5**2 / 1e6)["tissue"] == pytest.approx(np.pi * 0.04 * 0.06, rel=0.15)  # less than min_object_mm2


def test_a_slide_coarser_than_the_mask_keeps_its_own_pixels(tmp_path: pathlib.Path) -> None:
    found = find(tmp_path, tissue_picture(200, 300, 10), 10)
    assert found.kinds.shape == (200, 300)
    assert found.mm2(10**2 / 1e6)["tissue"] == pytest.approx(np.pi * 0.8 * 1.2, rel=0.1)


def test_fractions_count_parts_of_mask_pixels() -> None:
    kinds = np.array([[1, 0, 4], [1, 1, 0]], np.uint8)
    found = Tissue(kinds, 10.0, 20.0)
    boxes = [[0, 0, 30, 40], [0, 0, 10, 20], [5, 10, 10, 20], [20, 20, 20, 40], [-10, -20, 20, 40], [40, 0, 10, 10]]
    assert found.fractions(np.array(boxes)).tolist() == pytest.approx([3 / 6, 1, 0.75, 0, 0.25, 0])
    assert found.fractions(np.zeros((0, 4))).shape == (0,)


def test_the_kinds_are_written_as_a_palette(tmp_path: pathlib.Path) -> None:
    kinds = np.array([[0, 1, 2], [3, 4, 1]], np.uint8)
    Tissue(kinds, 1.0, 1.0).write(tmp_path / "tissue.png")
    with Image.open(tmp_path / "tissue.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), kinds)
        assert len(set(picture.convert("RGB").get_flattened_data())) == len(KINDS)
    assert [path.name for path in tmp_path.iterdir()] == ["tissue.png"]


@pytest.mark.parametrize(
    ("name", "mpp", "mm2"), [("cmu-1-small-region.svs", None, 0.57), ("C3L-00601-26_stitched_pyramid.tif", 1.0, 8.9)]
)
def test_real_slides_are_tissue_without_artefacts(name: str, mpp: float | None, mm2: float) -> None:
    if not SLIDES.is_dir():
        pytest.skip(f"no real slides in {SLIDES}")
    with open_slide(SLIDES / name, mpp) as slide:
        areas = find_tissue(slide, TissueSpec()).mm2(slide.pixel_mm2)
    assert areas["tissue"] == pytest.approx(mm2, rel=0.05)
    assert areas["pen"] + areas["blur"] + areas["fold"] < 0.01 * mm2
