"""DeepZoom images: the arithmetic of their tiles, and pixels that are those of the slide."""

import concurrent.futures
import json
import pathlib
import time
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from histojax.slides.readers.reader import Slide, SlideError, open_slide
from histojax.slides.view import deep_zoom
from histojax.slides.view.deep_zoom import Pyramid, Tiles, pyramid_of
from tests.helpers.slide_files import write_scn

FACTS = {"width": 1200, "height": 900, "mpp": 0.5, "mpp_y": 0.5}


@pytest.fixture
def slide(tmp_path: pathlib.Path) -> pathlib.Path:
    """A slide of smooth colours, which JPEG keeps."""
    y, x = np.mgrid[0:900, 0:1200]
    pixels = np.stack([x * 255 // 1200, y * 255 // 900, np.full_like(x, 128)], axis=2).astype(np.uint8)
    tags = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(128, 128), photometric="rgb", compression="zlib", **tags)
    return tmp_path / "a.tif"


def decoded(jpeg: bytes | None) -> np.ndarray:
    assert jpeg is not None
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 1), (510, 510), (511, 510), (512, 1), (513, 3), (1200, 900), (5477, 5154)]
)
def test_tiles_cover_every_level_once(size: tuple[int, int]) -> None:
    pyramid = Pyramid(*size)
    assert pyramid.size(pyramid.finest) == size
    assert pyramid.size(0) == (1, 1)
    covered = {level: np.zeros(pyramid.size(level)[::-1], int) for level in range(pyramid.finest + 1)}
    for path in pyramid.paths():
        level, _, name = path.partition("/")
        column, row = map(int, name.removesuffix(".jpg").split("_"))
        box = pyramid.box(int(level), column, row)
        assert box is not None
        x, y, width, height = box
        assert max(width, height) <= deep_zoom.TILE + 2 * deep_zoom.OVERLAP
        assert covered[int(level)][y : y + height, x : x + width].shape == (height, width)
        inner = slice(row * 510, (row + 1) * 510), slice(column * 510, (column + 1) * 510)  # without the overlap
        covered[int(level)][inner] += 1
    assert all((counts == 1).all() for counts in covered.values())
    assert sum(counts.size for counts in covered.values()) == pyramid.pixels()


@pytest.mark.parametrize(
    "position", [(-1, 0, 0), (12, 0, 0), (11, 3, 0), (11, 0, 2), (11, -1, 0), (0, 1, 0), (99, 0, 0)]
)
def test_there_are_no_other_tiles(position: tuple[int, int, int], slide: pathlib.Path) -> None:
    tiles = Tiles()
    assert Pyramid(1200, 900).box(*position) is None
    assert tiles.read(slide, FACTS, Pyramid(1200, 900), position) is None
    tiles.close()


def test_the_finest_level_is_bounded_and_pixels_become_square() -> None:
    assert pyramid_of(FACTS, None) == Pyramid(1200, 900)
    assert pyramid_of(FACTS, 2.0) == Pyramid(300, 225)
    assert pyramid_of(FACTS, 0.1) == Pyramid(1200, 900)
    assert pyramid_of(FACTS | {"mpp_y": 1.0}, None) == Pyramid(1200, 1800)
    assert pyramid_of(FACTS | {"width": 3, "height": 3}, 20.0) == Pyramid(1, 1)


@pytest.mark.parametrize(("finest_mpp", "mpp_y"), [(None, 0.5), (1.3, 0.5), (None, 1.0)])
def test_tiles_have_the_pixels_of_the_slide(finest_mpp: float | None, mpp_y: float, slide: pathlib.Path) -> None:
    tiles, pyramid = Tiles(), pyramid_of(FACTS | {"mpp_y": mpp_y}, finest_mpp)
    for path in pyramid.paths():
        level, _, name = path.partition("/")
        position = (int(level), *map(int, name.removesuffix(".jpg").split("_")))
        found = decoded(tiles.read(slide, FACTS, pyramid, position)).astype(float)
        x, y, width, height = pyramid.box(*position) or (0, 0, 0, 0)
        assert found.shape == (height, width, 3)
        if int(level) < 7:
            continue  # a few pixels are mostly edge
        fraction = 2 ** (pyramid.finest - int(level)) / np.array([pyramid.width, pyramid.height])
        expected = [255 * (start + np.arange(side) + 0.5) * part for start, side, part in
                    zip((x, y), (width, height), fraction, strict=True)]  # fmt: skip
        inside = (slice(0, height - 2), slice(0, width - 2))  # the last pixels reach beyond the slide
        np.testing.assert_allclose(found[..., 0].mean(0)[inside[1]], expected[0][inside[1]], atol=4)
        np.testing.assert_allclose(found[..., 1].mean(1)[inside[0]], expected[1][inside[0]], atol=4)
    tiles.close()


def test_tiles_and_slides_are_kept_in_bounds(
    slide: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    opened, closed = [], []
    monkeypatch.setattr(
        deep_zoom, "open_slide", lambda path, mpp, **how: opened.append(path) or open_slide(path, mpp, **how)
    )
    close = Slide.close
    monkeypatch.setattr(Slide, "close", lambda slide: (closed.append(slide.path), close(slide)))
    monkeypatch.setattr(deep_zoom, "_CACHED_TILES", 2)
    others = [tmp_path / f"{i}.tif" for i in range(2)]
    for other in others:
        other.write_bytes(slide.read_bytes())
    tiles, pyramid = Tiles(), Pyramid(1200, 900)
    for path in (slide, slide, *others, others[0]):
        assert tiles.read(path, FACTS, pyramid, (11, 0, 0)) == tiles.read(path, FACTS, pyramid, (11, 0, 0))
    assert opened == [slide, *others]
    assert closed == [slide]
    assert len(tiles._cache) == 2
    tiles.read(slide, FACTS, pyramid, (11, 0, 0))  # neither its tile nor the slide itself were kept
    assert opened == [slide, *others, slide]
    tiles.close()
    assert sorted(closed) == sorted([slide, *others, slide])


def test_threads_read_one_after_the_other(slide: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slide may be closed for another one while a thread waits, but never while one reads."""
    reading, most, read_pixels = 0, 0, Slide.read

    def read(*words: Any) -> np.ndarray:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        time.sleep(0.01)
        pixels = read_pixels(*words)
        reading -= 1
        return pixels

    monkeypatch.setattr(Slide, "read", read)
    tiles, pyramid = Tiles(), Pyramid(1200, 900)
    positions = [(11, i % 3, i // 3) for i in range(6)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda position: tiles.read(slide, FACTS, pyramid, position), positions * 4))
    assert all(tile is not None and tile == found[i % 6] for i, tile in enumerate(found))
    assert most == 1
    tiles.close()


def test_a_slide_that_cannot_be_read_is_an_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.tif").write_text("no slide")
    with pytest.raises(SlideError, match=r"a\.tif"):
        Tiles().read(tmp_path / "a.tif", FACTS, Pyramid(1200, 900), (0, 0, 0))


def test_the_description_is_json() -> None:
    image = json.loads(json.dumps(Pyramid(1200, 900).description("slide_files/")))["Image"]
    assert (image["TileSize"], image["Overlap"], image["Size"]) == (510, 1, {"Width": 1200, "Height": 900})


def test_tiles_count_from_the_origin_of_the_results(tmp_path: pathlib.Path) -> None:
    pixels = np.full((512, 512, 3), 200, np.uint8)
    path = write_scn(tmp_path / "a.scn", pixels, 0.5, offset=(512, 0), whole=(1536, 512))
    for origin, width in (("qupath", 512), ("level0", 1536), (None, 1536)):
        facts = {"width": width, "height": 512, "mpp": 0.5, "mpp_y": 0.5} | ({"origin": origin} if origin else {})
        pyramid = pyramid_of(facts, None)
        whole = decoded(Tiles().read(path, facts, pyramid, (pyramid.whole, 0, 0)))
        scanned = np.abs(whole.astype(int) - 200).max(axis=2) < 8
        assert scanned.mean() == pytest.approx(512 / width, abs=0.02), origin
