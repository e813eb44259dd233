"""Slides of every format are read exactly or refused with a message."""

import concurrent.futures
import io
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import cv2
import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from histojax.slides.readers import reader
from histojax.slides.readers.reader import SlideError, open_slide
from tests.conftest import SHARED
from tests.helpers.slide_files import truncate, write_ome, write_pyramid, write_scn, write_svs
from tests.helpers.tissue_pictures import tissue_picture

SLIDES = SHARED / "slides"
PICTURE = tissue_picture(600, 800)


def whole(slide: reader.Slide) -> np.ndarray:
    return slide.read(0, 0, slide.width, slide.height, slide.width, slide.height)


@pytest.mark.parametrize(("name", "mpp"), [("cmu-1-small-region.svs", None), ("C3L-00601-26_stitched_pyramid.tif", 1)])
def test_a_real_slide_has_the_same_pixels_as_in_openslide(name: str, mpp: float | None) -> None:
    if not SLIDES.is_dir():
        pytest.skip(f"no real slides in {SLIDES}")
    reference = openslide.OpenSlide(SLIDES / name)
    with open_slide(SLIDES / name, mpp) as slide:
        assert [(a.width, a.height) for a in slide.levels] == list(reference.level_dimensions)
        expected = np.asarray(reference.read_region((901, 1003), 0, (700, 800)))[..., :3]
        np.testing.assert_array_equal(slide.read(901, 1003, 700, 800, 700, 800), expected)
        if len(slide.levels) > 1:
            # From the corner, as OpenSlide interpolates where a level-0 position is between pixels of the level.
            expected = np.asarray(reference.read_region((0, 0), 1, (1200, 1000)))[..., :3]
            np.testing.assert_array_equal(slide.read(0, 0, 2400, 2000, 1200, 1000), expected)


def test_the_scanner_header_gives_the_resolution(tmp_path: pathlib.Path) -> None:
    with open_slide(write_svs(tmp_path / "case 7.svs", PICTURE, 0.4990)) as slide:
        assert (slide.name, slide.width, slide.height, slide.mpp) == ("case 7", 800, 600, 0.499)
        assert slide.mpp_source == "the aperio header"
        assert slide.reader.startswith("OpenSlide")
        assert "its tiles by tifffile" in slide.reader
        assert np.abs(whole(slide).astype(int) - PICTURE).mean() < 6


def test_coordinates_count_from_the_scanned_part_or_from_level_0(tmp_path: pathlib.Path) -> None:
    path = write_scn(tmp_path / "a.scn", PICTURE, 0.5, offset=(500, 300), whole=(2000, 1500))
    with open_slide(path) as slide:
        assert slide.plane == {"origin": "qupath", "x": 500, "y": 300}
        assert (slide.width, slide.height) == (800, 600)
        np.testing.assert_array_equal(whole(slide), PICTURE)
        np.testing.assert_array_equal(slide.read(700, 10, 200, 50, 200, 50)[:, :100], PICTURE[10:60, 700:])
        assert (slide.read(700, 10, 200, 50, 200, 50)[:, 100:] == 255).all()
        assert slide.warnings == [
            "800 × 600 of 2000 × 1500 pixels were scanned: coordinates count from (500, 300) of level 0, as in QuPath; "
            "--origin level0 uses the whole"
        ]
    with open_slide(path, origin="level0") as slide:
        assert slide.plane == {"origin": "level0", "x": 0, "y": 0}
        assert (slide.width, slide.height) == (2000, 1500)
        np.testing.assert_array_equal(slide.read(500, 300, 800, 600, 800, 600), PICTURE)
        assert "not as in QuPath" in slide.warnings[0]


def test_without_a_stated_part_there_is_one_plane(tmp_path: pathlib.Path) -> None:
    for origin in reader.ORIGINS:
        with open_slide(write_svs(tmp_path / "a.svs", PICTURE, 0.5), origin=origin) as slide:
            assert (slide.plane, slide.warnings) == ({"origin": "level0", "x": 0, "y": 0}, [])


def test_jpeg_2000_is_read_through_openslide(tmp_path: pathlib.Path) -> None:
    path = write_svs(tmp_path / "a.svs", PICTURE, 0.5, "aperio_jp2000_rgb")
    with open_slide(path) as slide:
        assert slide.reader.startswith("OpenSlide")
        assert "tifffile" not in slide.reader
        assert np.abs(whole(slide).astype(int) - PICTURE).mean() < 2


@pytest.mark.parametrize("compression", ["jpeg2000", "zlib", "lzw", None])
def test_tiff_is_read_with_any_compression(tmp_path: pathlib.Path, compression: str | None) -> None:
    path = write_pyramid(tmp_path / "a.tif", PICTURE, 0.5, compression=compression)
    with open_slide(path) as slide:
        assert [level.width for level in slide.levels] == [800, 400, 200]
        np.testing.assert_array_equal(whole(slide), PICTURE)
        assert (slide.mpp, slide.mpp_source) == (pytest.approx(0.5), "its TIFF resolution tags")


@pytest.mark.parametrize(
    "how",
    [
        {"tile": (64, 128), "compression": "zlib"},
        {"rowsperstrip": 70, "compression": "lzw"},
        {"ome": True, "tile": (128, 128)},
    ],
)
def test_colours_in_planes_are_read(tmp_path: pathlib.Path, how: dict[str, Any]) -> None:
    metadata = {"axes": "SYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5} if "ome" in how else None
    planes = np.moveaxis(PICTURE, 2, 0).copy()
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", metadata=metadata, **how)
    with open_slide(path, None if "ome" in how else 0.5) as slide:
        assert (slide.width, slide.height, slide.mpp) == (800, 600, 0.5)
        np.testing.assert_array_equal(whole(slide), PICTURE)
        np.testing.assert_array_equal(slide.read(301, 77, 40, 30, 40, 30), PICTURE[77:107, 301:341])


@pytest.mark.parametrize(("unit", "um"), [("micron", 1), ("um", 1), ("\\u00B5m", 1), ("mm", 1000), ("pixel", None)])
def test_imagej_states_the_unit_of_its_resolution(tmp_path: pathlib.Path, unit: str, um: float | None) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PICTURE[None], imagej=True, resolution=(4 * (um or 1),) * 2, metadata={"unit": unit})
    if um is None:
        with pytest.raises(SlideError, match="stores no µm/px"):
            open_slide(path)
        return
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.25)
        assert slide.mpp_source == f"its ImageJ metadata (unit={unit})"


def test_strips_of_one_level_are_read_in_bands(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pyramid(tmp_path / "a.tif", PICTURE, levels=1, tile=None, rowsperstrip=7, compression="zlib")
    with open_slide(path, 0.5) as slide:
        at_once = slide.thumbnail(200)
        monkeypatch.setattr(reader, "_MAX_READ_PIXELS", 20_000)
        seen = []
        region = slide._backend.region
        monkeypatch.setattr(slide._backend, "region", lambda *box: seen.append(box[3] * box[4]) or region(*box))
        np.testing.assert_array_equal(slide.thumbnail(200), at_once)
        assert len(seen) == 25
        assert max(seen) <= 20_000
        np.testing.assert_array_equal(whole(slide), PICTURE)


@pytest.mark.parametrize(("size", "unit"), [((0.25, 0.25), "µm"), ((250.0, 250.0), "nm"), ((0.00025, 0.00025), "mm")])
def test_ome_tiff_gives_physical_size_in_its_unit(tmp_path: pathlib.Path, size: tuple[float, float], unit: str) -> None:
    with open_slide(write_ome(tmp_path / "a.ome.tif", PICTURE, size, unit)) as slide:
        assert slide.mpp == pytest.approx(0.25)
        assert slide.mpp_source == "its OME metadata (PhysicalSize)"
        assert [round(level.downsample) for level in slide.levels] == [1, 2, 4]
        np.testing.assert_array_equal(whole(slide), PICTURE)


def test_a_rectangle_is_averaged_from_the_coarsest_sufficient_level(tmp_path: pathlib.Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", PICTURE, 0.5, compression="zlib")
    with open_slide(path) as slide:
        expected = cv2.resize(PICTURE[80:400, 160:480], (80, 80), interpolation=cv2.INTER_AREA)
        assert np.abs(slide.read(160, 80, 320, 320, 80, 80).astype(int) - expected).max() <= 2
        fine = slide.read(160, 80, 320, 320, 300, 300)  # the next level would be too coarse
        assert np.abs(fine.astype(int) - cv2.resize(PICTURE[80:400, 160:480], (300, 300), interpolation=3)).max() == 0
        assert slide.read(160, 80, 10, 10, 40, 40).shape == (40, 40, 3)
        assert slide.thumbnail(100).shape == (75, 100, 3)
        assert slide.thumbnail(10_000).shape == (600, 800, 3)


def test_areas_outside_the_slide_are_white(tmp_path: pathlib.Path) -> None:
    with open_slide(write_pyramid(tmp_path / "a.tif", PICTURE, 0.5, compression="zlib")) as slide:
        corner = slide.read(700, 500, 200, 200, 200, 200)
        np.testing.assert_array_equal(corner[:100, :100], PICTURE[500:, 700:])
        assert (corner[100:] == 255).all()
        assert (corner[:, 100:] == 255).all()
        np.testing.assert_array_equal(slide.read(-30, -20, 50, 40, 50, 40)[20:, 30:], PICTURE[:20, :20])
        assert (slide.read(5000, 0, 10, 10, 10, 10) == 255).all()
        with pytest.raises(ValueError, match="every side must be at least 1 pixel"):
            slide.read(0, 0, 0, 10, 10, 10)


def test_transparent_pixels_become_white(tmp_path: pathlib.Path) -> None:
    pixels = np.zeros((300, 300, 4), np.uint8)
    pixels[..., 0], pixels[:100, :, 3], pixels[100:200, :, 3] = 200, 255, 51
    by_alpha = [(200, 0, 0), (244, 204, 204), (255, 255, 255)]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    how = {"compression": "zlib", "levels": 1}
    write_pyramid(tmp_path / "straight.tif", pixels, extrasamples=["unassalpha"], **how)
    premultiplied = (pixels * (pixels[..., 3:] / np.float32(255))).round().astype(np.uint8)
    premultiplied[..., 3] = pixels[..., 3]
    write_pyramid(tmp_path / "premultiplied.tif", premultiplied, extrasamples=["assocalpha"], **how)
    for name in ("a.png", "straight.tif", "premultiplied.tif"):
        with open_slide(tmp_path / name, 0.5) as slide:
            assert [tuple(whole(slide)[y, 5]) for y in (50, 150, 250)] == by_alpha, name


def test_a_photograph_is_rotated_by_its_exif_orientation(tmp_path: pathlib.Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).save(tmp_path / "a.jpg", exif=exif, quality=95)
    with open_slide(tmp_path / "a.jpg", 0.5) as slide:
        assert (slide.width, slide.height) == (600, 800)
        assert "(JPEG, rotated upright by its EXIF orientation 6)" in slide.reader
        assert np.abs(whole(slide).astype(int) - np.rot90(PICTURE, -1)).mean() < 5


def test_a_plain_jpeg_2000_is_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(PICTURE, level=0))
    with open_slide(tmp_path / "a.jp2", 0.5) as slide:
        assert "(JPEG2000)" in slide.reader
        np.testing.assert_array_equal(whole(slide), PICTURE)


def test_a_slide_of_one_pixel_is_read(tmp_path: pathlib.Path) -> None:
    Image.new("RGB", (1, 1), (200, 100, 150)).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", 0.5) as slide:
        assert slide.thumbnail(100).tolist() == [[[200, 100, 150]]]


def _plain(image: Image.Image, name: str) -> Callable[[pathlib.Path], pathlib.Path]:
    def write(folder: pathlib.Path) -> pathlib.Path:
        image.save(folder / name)
        return folder / name

    return write


def _tiff(pixels: np.ndarray, **how: Any) -> Callable[[pathlib.Path], pathlib.Path]:
    def write(folder: pathlib.Path) -> pathlib.Path:
        tifffile.imwrite(folder / "a.tif", pixels, **({"metadata": None, "tile": (64, 64)} | how))
        return folder / "a.tif"

    return write


def _pages(first: np.ndarray, second: np.ndarray, **how: Any) -> Callable[[pathlib.Path], pathlib.Path]:
    """A TIFF file of two pages, the second one stored as `how` says."""

    def write(folder: pathlib.Path) -> pathlib.Path:
        with tifffile.TiffWriter(folder / "a.tif") as file:
            file.write(first, photometric="rgb", metadata=None)
            file.write(second, photometric="rgb", metadata=None, **how)
        return folder / "a.tif"

    return write


def _file(name: str, data: bytes) -> Callable[[pathlib.Path], pathlib.Path]:
    def write(folder: pathlib.Path) -> pathlib.Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def _deep_png() -> bytes:
    return cv2.imencode(".png", PICTURE.astype(np.uint16) * 257)[1].tobytes()


def _half_jpeg() -> bytes:
    data = io.BytesIO()
    Image.fromarray(PICTURE).save(data, "JPEG")
    return data.getvalue()[:20_000]


SMALL = PICTURE[:128, :128]


def _damaged_height(folder: pathlib.Path) -> pathlib.Path:
    path = _tiff(SMALL, photometric="rgb")(folder)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["ImageLength"].overwrite(1_000_000)
    return path


REFUSED = {
    "absent": (lambda folder: folder / "a.svs", "cannot be opened"),
    "folder": (lambda folder: folder, "is a folder"),
    "empty": (_file("a.svs", b""), "the file is empty"),
    "text": (_file("a.svs", b"not a slide at all\n"), "is not a slide or image"),
    "TIFF of 16 bits": (_tiff(SMALL.astype(np.uint16), photometric="rgb"), "has uint16 pixels.*convert it"),
    "TIFF of floats": (_tiff(SMALL.astype(np.float32), photometric="rgb"), "has float32 pixels"),
    "greyscale TIFF": (_tiff(SMALL[..., 0]), "greyscale"),
    "TIFF of two pages": (_pages(SMALL, SMALL), r"shape \(2, 128, 128, 3\)\): .*pages"),
    "TIFF of two images": (_pages(SMALL, SMALL, compression="zlib"), "several images of one size"),
    "TIFF of three grey channels": (
        _tiff(np.moveaxis(SMALL, 2, 0).copy(), photometric="minisblack", metadata={"axes": "CYX"}),
        "is not one RGB image",
    ),
    "rotated TIFF": (
        _tiff(SMALL, photometric="rgb", extratags=[(0x0112, 3, 1, 6, True)]),
        "stored rotated .TIFF Orientation 6.",
    ),
    "TIFF of a damaged height": (_damaged_height, r"damaged: lists 4 tiles, but 128×1000000 pixels need 31250"),
    "header only": (_file("a.tif", b"II*\0\x08\0\0\0"), "damaged"),
    "pyramid truncated": (
        lambda folder: truncate(write_pyramid(folder / "a.tif", PICTURE, 0.5)),
        "truncated: has .* bytes",
    ),
    "SVS truncated": (lambda folder: truncate(write_svs(folder / "a.svs", PICTURE, 0.5), 0.9), "truncated: has"),
    "SVS of JPEG 2000 truncated": (
        lambda folder: truncate(write_svs(folder / "a.svs", PICTURE, 0.5, "aperio_jp2000_rgb"), 0.9),
        "truncated: has",
    ),
    "greyscale PNG": (_plain(Image.new("L", (9, 9)), "a.png"), "mode L: greyscale"),
    "CMYK JPEG": (_plain(Image.new("CMYK", (9, 9)), "a.jpg"), "mode CMYK"),
    "PNG of 16 bits": (_file("a.png", _deep_png()), "is a PNG of 16 bits per channel"),
    "JPEG 2000 of 12 bits": (
        _file("a.jp2", imagecodecs.jpeg2k_encode(SMALL.astype(np.uint16) * 16, bitspersample=12)),
        "is a JPEG2000 of 12 bits per channel",
    ),
    "JPEG truncated": (_file("a.jpg", _half_jpeg()), "damaged or truncated"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_unreadable_files_are_refused_with_path_and_reason(tmp_path: pathlib.Path, kind: str) -> None:
    write, reason = REFUSED[kind]
    path = write(tmp_path)
    with pytest.raises(SlideError, match=reason) as caught:
        open_slide(path, 0.5)
    assert str(caught.value).startswith(f"{path}: ")


def test_the_reader_names_the_image_that_it_took(tmp_path: pathlib.Path) -> None:
    with open_slide(_pages(SMALL, PICTURE)(tmp_path), 0.5) as slide:
        np.testing.assert_array_equal(whole(slide), PICTURE)
        assert slide.reader.endswith("(TIFF), image 2 of 2")


def test_an_implausible_resolution_is_refused(tmp_path: pathlib.Path) -> None:
    ask = "give it with --mpp or in the column mpp"
    cases = {
        "nothing": (write_pyramid(tmp_path / "a.tif", PICTURE), "stores no µm/px"),
        "72 dpi": (write_pyramid(tmp_path / "b.tif", PICTURE, 25400 / 72), "stores an implausible 352.8 µm/px"),
        "zero": (write_svs(tmp_path / "c.svs", PICTURE, 0), "stores an implausible 0 µm/px in the aperio header"),
        "long": (write_ome(tmp_path / "d.ome.tif", PICTURE, (0.25, 1.1)), "stores an implausible 0.25 × 1.1 µm/px"),
        "one per unit": (
            write_pyramid(tmp_path / "e.tif", PICTURE, resolution=(1, 1), resolutionunit=1),
            "stores no µm/px",
        ),
    }
    Image.fromarray(PICTURE).save(tmp_path / "f.png", dpi=(50_800, 50_800))
    cases["a picture's dpi"] = (tmp_path / "f.png", "stores no µm/px")
    for kind, (path, reason) in cases.items():
        with pytest.raises(SlideError, match=f"{reason}.*{ask}"):
            open_slide(path)
        with open_slide(path, 0.5) as slide:
            assert (slide.mpp, slide.mpp_y) == (0.5, 0.5), kind
            implausible = ", since the file stores an " + reason.removeprefix("stores an ")
            assert slide.mpp_source.startswith("given" + (implausible if "implausible" in reason else "")), kind
            assert not slide.warnings, kind
    for mpp in (0.0, -1.0, float("nan"), 100.0):
        with pytest.raises(SlideError, match=r"the given mpp .* is outside 0\.02 … 20 µm/px"):
            open_slide(tmp_path / "f.png", mpp)
        with pytest.raises(SlideError, match=r"the given override_mpp .* is outside"):
            open_slide(tmp_path / "f.png", override_mpp=mpp)


def test_a_given_resolution_fills_in_only_what_the_file_lacks(tmp_path: pathlib.Path) -> None:
    path = write_svs(tmp_path / "a.svs", PICTURE, 0.5)
    with open_slide(path, 0.505) as slide:
        assert (slide.mpp, slide.mpp_source, slide.warnings) == (0.5, "the aperio header", [])
    for given in (0.25, 0.515):  # 3 % more: told
        with open_slide(path, given) as slide:
            assert (slide.mpp, slide.mpp_source) == (0.5, "the aperio header")
            assert slide.warnings == [
                f"mpp {given} is not used: the file stores 0.5 µm/px in the aperio header; --override_mpp replaces it"
            ]
    with open_slide(path, override_mpp=0.25) as slide:
        assert (slide.mpp, slide.mpp_y, slide.mpp_source) == (0.25, 0.25, "given with override_mpp")
        assert slide.warnings == ["override_mpp 0.25 replaces what the file stores: 0.5 µm/px in the aperio header"]


def test_pixels_that_are_not_square_keep_both_sides(tmp_path: pathlib.Path) -> None:
    with open_slide(write_ome(tmp_path / "a.ome.tif", PICTURE, (0.25, 0.5))) as slide:
        assert (slide.mpp, slide.mpp_y, slide.stretch) == (0.25, 0.5, 2.0)
        assert slide.pixel_mm2 == pytest.approx(0.125e-6)
        assert slide.warnings == [
            "the file stores 0.25 × 0.5 µm/px in its OME metadata (PhysicalSize): its pixels are not square"
        ]
    with open_slide(write_ome(tmp_path / "b.ome.tif", PICTURE, (0.5, 0.51))) as slide:
        assert slide.mpp == slide.mpp_y == pytest.approx(0.505), "square but for rounding"


@pytest.mark.parametrize("compression", ["jpeg", "aperio_jp2000_rgb"])
def test_a_damaged_tile_fails_only_its_own_reads(tmp_path: pathlib.Path, compression: str) -> None:
    path = write_svs(tmp_path / "a.svs", PICTURE, 0.5, compression)
    with tifffile.TiffFile(path) as file:
        start, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    data = bytearray(path.read_bytes())
    data[start : start + length] = bytes(length)
    path.write_bytes(data)
    with open_slide(path) as slide:
        for _ in range(2):
            with pytest.raises(SlideError, match=r"a\.svs: cannot read the 64×64 pixels at \(10, 20\): "):
                slide.read(10, 20, 64, 64, 64, 64)
        assert np.abs(slide.read(300, 300, 64, 64, 64, 64).astype(int) - PICTURE[300:364, 300:364]).mean() < 6


@pytest.mark.parametrize("compression", ["jpeg", "aperio_jp2000_rgb"])
def test_threads_read_the_same_pixels_as_one_thread(tmp_path: pathlib.Path, compression: str) -> None:
    boxes = [(x, y, 100, 100, 50, 50) for x in range(0, 700, 50) for y in range(0, 500, 50)]
    with open_slide(write_svs(tmp_path / "a.svs", PICTURE, 0.5, compression)) as slide:
        expected = [slide.read(*box) for box in boxes]
    with (
        open_slide(tmp_path / "a.svs") as slide,
        concurrent.futures.ThreadPoolExecutor(4) as pool,
    ):
        for a, b in zip(expected, pool.map(lambda box: slide.read(*box), boxes), strict=True):
            np.testing.assert_array_equal(a, b)


def test_decoded_tiles_are_cached_up_to_a_limit(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histojax.slides.readers.tiff_tiles.CACHE_BYTES", 5 * 256 * 256 * 3)
    with open_slide(write_pyramid(tmp_path / "a.tif", PICTURE, 0.5, levels=1, compression="zlib")) as slide:
        decoded = []
        decode = slide._backend._decode
        monkeypatch.setattr(slide._backend, "_decode", lambda *tile: decoded.append(tile[1]) or decode(*tile))
        for x in (0, 50, 100):
            slide.read(x, 0, 100, 100, 100, 100)
        assert decoded == [0]
        whole(slide)
        assert len(slide._backend._cache) == 5
        slide.read(0, 0, 100, 100, 100, 100)
        assert decoded[-1] == 0


def test_a_missing_package_is_reported_with_its_remedy(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pyramid(tmp_path / "a.tif", PICTURE, 0.5)
    for name in ("openslide", "tifffile", "imagecodecs"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(SlideError, match=rf"need {name}.*pip install 'histojax\[slides\]'"):
                open_slide(path)
