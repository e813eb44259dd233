"""Multi-label tiles cut from images with masks: tiles, labels by area, overlap, invalid masks."""

import pathlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.images import check_image, decode_rgb
from data_pipelines.liver_tiles import layouts
from data_pipelines.liver_tiles.scan import scan, stored_bytes
from data_pipelines.liver_tiles.spec import TilesSpec
from tests.conftest import SHARED
from tests.helpers.tile_scans import labels_of

WSSS = [0, 64, 128, 64, 128, 0, 243, 152, 0, 255, 255, 255]  # the palette of WSSS4LUAD's masks


def write_mask(path: pathlib.Path, values: np.ndarray, palette: list[int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8), "L" if palette is None else "P")
    if palette is not None:
        image.putpalette(palette)
    image.save(path)


def halves(height: int, width: int, left: int, right: int) -> np.ndarray:
    values = np.full((height, width), right)
    values[:, : width // 2] = left
    return values


@pytest.fixture
def mask_root(tmp_path: pathlib.Path) -> pathlib.Path:
    rng = np.random.default_rng(0)
    for name, height, width in (("a", 40, 64), ("b", 20, 20), ("c", 15, 40)):
        (tmp_path / "img").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "img" / f"{name}.png"), rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        write_mask(tmp_path / "mask" / f"{name}.png", halves(height, width, 0, 3 if name == "b" else 1), WSSS)
    return tmp_path


def test_images_with_masks_are_cut_into_tiles(mask_root: pathlib.Path) -> None:
    found = scan(mask_root, TilesSpec(size=20))
    assert found.summary["layout"] == "masks"
    assert found.summary["labels"] == ["tumor", "stroma", "normal"]  # from the palette
    # a has 2 rows of 3 tiles; the boundary between the halves, at x = 32, crosses the second column. c is too low.
    assert labels_of(found) == {
        f"img/a@x{x}y{y}": label for y in (0, 20) for x, label in ((0, "tumor"), (20, "tumor+stroma"), (40, "stroma"))
    } | {"img/b@x0y0": "tumor"}
    assert found.summary["notes"] == {"image smaller than a tile left out (data.tiles.size)": 1}
    image = cv2.imread(str(mask_root / "img" / "a.png"))[..., ::-1]
    sources = set()
    for tile in found.tiles[:6]:
        x, y = tile.corner or (-1, -1)
        stored = decode_rgb(stored_bytes(tile))
        np.testing.assert_array_equal(stored, image[y : y + 20, x : x + 20])
        assert check_image(stored_bytes(tile)).pixel_hash == tile.record.pixel_hash
        sources.add(tile.record.source_id)
    assert len(sources) == 1
    # The source's name includes a hash of its pixels, because another set may also have an a.png.
    assert sources == {f"a-{check_image((mask_root / 'img' / 'a.png').read_bytes()).pixel_hash[:8]}"}


@pytest.mark.parametrize(("min_share", "expected"), [(0.39, "tumor+stroma"), (0.41, "tumor")])
def test_a_label_covers_at_least_min_share_of_its_tile(
    mask_root: pathlib.Path, min_share: float, expected: str
) -> None:
    found = labels_of(scan(mask_root, TilesSpec(size=20, min_share=min_share)))
    assert found["img/a@x20y0"] == expected  # 12 of 20 columns tumor, 8 stroma


def test_tiles_overlap_by_stride_and_empty_tiles_are_optional(mask_root: pathlib.Path) -> None:
    found = scan(mask_root, TilesSpec(size=10, stride=5))
    corners = {tile.corner for tile in found.tiles if tile.record.image_id.startswith("img/a@")}
    assert corners == {(x, y) for x in range(0, 55, 5) for y in range(0, 31, 5)}
    assert "img/b@x10y0" not in labels_of(found)
    notes = found.summary["notes"]
    assert notes == {"tile without a label left out (data.tiles.keep_empty=True keeps them)": 3}
    assert labels_of(scan(mask_root, TilesSpec(size=10, stride=5, keep_empty=True)))["img/b@x10y0"] == ""


def test_custom_mask_values(mask_root: pathlib.Path) -> None:
    for path in (mask_root / "mask").iterdir():
        path.unlink()
        write_mask(path, np.full(cv2.imread(str(mask_root / "img" / path.name)).shape[:2], 7))
    with pytest.raises(DataError, match=r"the meaning of the values in the masks is unknown .*mask_values"):
        scan(mask_root, TilesSpec(size=20))
    found = scan(mask_root, TilesSpec(size=20, labels=("fat", "vessel"), mask_values=(3, 7)))
    assert set(labels_of(found).values()) == {"vessel"}


def _two_pages(mask: pathlib.Path) -> None:
    mask.unlink()
    page = Image.fromarray(np.zeros((40, 64), np.uint8))
    page.save(mask.with_suffix(".tif"), save_all=True, append_images=[page])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda mask: mask.unlink(), r"img/a\.png: no mask a\.png beside it"),
        (
            lambda mask: write_mask(mask, np.zeros((40, 65)), WSSS),
            "a.png is 65×40 pixels, but the image is 64×40",
        ),
        (lambda mask: mask.write_bytes(mask.read_bytes()[:60]), r"its mask a\.png is unreadable"),
        (
            lambda mask: Image.fromarray(np.zeros((40, 64), np.uint16)).save(mask),
            r"its mask a\.png is a PNG of 16 bits per channel, but one of 8 bits is expected: convert it",
        ),
        (_two_pages, r"its mask a\.tif is a TIFF of 2 pages, but one"),
    ],
)
def test_an_image_with_an_invalid_mask_is_a_bad_image(
    mask_root: pathlib.Path, damage: Callable[[pathlib.Path], None], message: str
) -> None:
    spec = TilesSpec(size=20, labels=("tumor", "stroma", "normal"))
    damage(mask_root / "mask" / "a.png")
    with pytest.raises(DataError, match=message):
        scan(mask_root, spec)
    assert list(labels_of(scan(mask_root, spec, "skip"))) == ["img/b@x0y0"]


def test_real_images_with_masks_give_tiles_with_three_labels() -> None:
    root = SHARED / "wsss4luad_part"
    if not root.is_dir():
        # Real images are not part of the project; the tests above draw their own masks.
        pytest.skip(f"real images are absent: {root}")
    found = layouts.find(root, TilesSpec())
    assert (found.layout, found.labels, len(found.items)) == ("masks", ("tumor", "stroma", "normal"), 31)
    cut = scan(root, TilesSpec(size=112, stride=56))
    assert len({tile.record.source_id for tile in cut.tiles}) == 31
    assert len(cut.tiles) == 671
