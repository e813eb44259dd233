"""Every image is found once, under a name that a table can hold, and is read as in training."""

import io
import os
import pathlib
import struct
import time
import zipfile
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import BadImageError, DataError
from data_pipelines.images import check_image, decode_rgb
from data_pipelines.pixels import decode
from histojax.core.errors import RunError
from histojax.inference.predict.image_reader import ImageReader, UnreadableError, silence_pillow_warnings
from histojax.inference.predict.images import ImageRef, find, fingerprint
from tests.conftest import WriteImages

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (23, 35, 3), dtype=np.uint8)


def encoded(array: np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def ids(*paths: object) -> list[str]:
    return [ref.image_id for ref in find([str(path) for path in paths])]


def read(path: pathlib.Path) -> np.ndarray:
    with ImageReader() as reader:
        return reader.read(ImageRef(str(path), str(path)))


def reason(path: pathlib.Path) -> str:
    with pytest.raises(UnreadableError) as caught:
        read(path)
    return str(caught.value)


def png_header(width: int, height: int) -> bytes:
    """A PNG whose checksums are right and which holds almost no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_folders_globs_and_files_are_found_in_order_and_once(
    tmp_path: pathlib.Path, write_images: WriteImages, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path, ["b/2.png", "b/1.PNG", "b/.hidden.png", "b/.git/x.png", "a.jpg", "b/c/3.bmp"])
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / "photo").write_bytes(encoded(COLOURS, "PNG"))
    os.chdir(tmp_path)
    assert ids("b", "a.jpg") == ["b/1.PNG", "b/2.png", "b/c/3.bmp", "a.jpg"]
    assert ids("*") == ["a.jpg", "b/1.PNG", "b/2.png", "b/c/3.bmp"]
    assert ids("**/*.bmp", "photo") == ["b/c/3.bmp", "photo"]
    with caplog.at_level("INFO"):
        assert ids("b", "b/*.png") == ["b/1.PNG", "b/2.png", "b/c/3.bmp"]
    assert "1 images were given more than once" in caplog.text
    for wrong, words in ((["c/*.png"], "no image found"), (["c"], "c: no such file or folder")):
        with pytest.raises(RunError, match=words):
            find(wrong)


def test_circular_links_end_and_names_of_any_bytes_are_kept(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    write_images(tmp_path, ["a/1.png"])
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "a" / "lost.png").symlink_to("nowhere")
    (tmp_path / "z").symlink_to("a")
    odd = b'new\nline <b>&amp;,"x\xff.png'
    with open(os.fsencode(tmp_path) + b"/" + odd, "wb") as file:
        file.write(encoded(COLOURS, "PNG"))
    found = find([str(tmp_path)])
    names = [ref.image_id.removeprefix(f"{tmp_path}/") for ref in found]
    assert names == ['new\nline <b>&amp;,"x\\xff.png', "a/1.png", "a/lost.png"]
    with ImageReader() as reader:
        np.testing.assert_array_equal(reader.read(found[0]), COLOURS)
        with pytest.raises(UnreadableError, match="No such file"):
            reader.read(found[2])


def test_globs_read_each_folder_once_or_say_that_they_cannot(
    tmp_path: pathlib.Path, write_images: WriteImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, ["a/1.png", "a/b/2.png", "a/b/._2.png", "c/3.png"])
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    os.chdir(tmp_path)
    assert ids("**/*.png") == ["a/1.png", "a/b/2.png", "c/3.png"]
    assert ids(f"{tmp_path}/a/**/b") == [f"{tmp_path}/a/b/2.png"]
    assert ids("?/**") == ["a/1.png", "a/b/2.png", "c/3.png"]
    assert ids("./[ab]/**/[12].*") == ["./a/1.png", "./a/b/2.png"]
    scandir = os.scandir

    def locked(path: object) -> object:
        if str(path) in ("a/b", f"{tmp_path}/a/b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", locked)
    for pattern in ("a/b/*.png", f"{tmp_path}/a/**/*.png", "a"):
        with pytest.raises(RunError, match=r"a/b: cannot be read \(Permission denied\)"):
            find([pattern])
    assert ids("a/*.png") == ["a/1.png"]


def test_a_list_is_relative_to_itself_and_keeps_its_columns(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    write_images(tmp_path, ["img/1.png", "img/2.png"])
    table = tmp_path / "list.csv"
    table.write_text("\ufeffpath,patient_id,label,image_id\nimg/1.png,007,malignant,one\nimg/gone.png,8,,\n")
    first, second = find([str(table)])
    assert (first.image_id, first.path) == ("one", f"{tmp_path}/img/1.png")
    assert first.facts == {"patient_id": "007", "label": "malignant"}
    assert second.image_id == f"{tmp_path}/img/gone.png"
    for text, words in (
        ("file\n1.png\n", "no column `path`"),
        ("path,prob_a\n1.png,1\n", "does not begin with prob_"),
        ("path,a,a\n1.png,1,1\n", "column names repeat: a; make each unique"),
        ("path\n1.png,2\n", "line 2: 2 cells where the header has 1; quote cells"),
        ("path,\n1.png,1\n", "each needs a name"),
        ("path,label\n,x\n", "line 2: no image path"),
        ("path,image_id\n1.png,x\n2.png,x\n", "x: two images have this name"),
        ("path,label\n1.png,x\n1.png,y\n", "two lists describe this image differently"),
        ("path\n", "no image found"),
    ):
        table.write_text(text)
        with pytest.raises((RunError, DataError), match=words):
            find([str(table)])


def test_archive_members_are_read_without_unpacking(tmp_path: pathlib.Path) -> None:
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("b/2.png", "1.png", "__MACOSX/b/2.png", "b/.x.png", "read.me", "../out.png", "/root.png"):
            file.writestr(name, encoded(COLOURS, "PNG"))
        file.writestr("bomb.png", b"\0" * 2**27)
    found = find([str(archive)])
    names = ["../out.png", "/root.png", "1.png", "b/2.png", "bomb.png"]
    assert [ref.image_id for ref in found] == [f"{archive}/{name}" for name in names]
    with ImageReader() as reader:
        np.testing.assert_array_equal(reader.read(found[2]), COLOURS)
        np.testing.assert_array_equal(reader.read(found[3]), COLOURS)
        for ref in found[:2]:
            with pytest.raises(UnreadableError, match="outside the archive"):
                reader.read(ref)
        with pytest.raises(UnreadableError, match="a zip bomb: 130,"):
            reader.read(found[4])
    assert not list(tmp_path.rglob("out.png"))
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(RunError, match="cannot be read as a zip archive"):
        find([str(archive)])


def test_the_fingerprint_changes_with_a_file(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    (path,) = write_images(tmp_path, ["1.png"])
    refs = find([str(path)])
    before = fingerprint(refs)
    assert fingerprint(refs) == before
    write_images(tmp_path, ["1.png"], seed=1)
    os.utime(path, ns=(1, 1))
    assert fingerprint(refs) != before


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "BMP", "JPEG2000"])
def test_pixels_are_those_of_training(tmp_path: pathlib.Path, kind: str) -> None:
    options = {"irreversible": False} if kind == "JPEG2000" else {}
    data = encoded(COLOURS, kind, **options)
    path = tmp_path / "image"
    path.write_bytes(data)
    found = read(path)
    if kind == "JPEG":
        np.testing.assert_array_equal(found, decode(data))  # as stored, so as evaluated
    else:
        np.testing.assert_array_equal(found, COLOURS)
    if kind not in ("BMP", "JPEG2000"):
        check_image(data)
        np.testing.assert_array_equal(found, decode_rgb(data))
    path.write_bytes(data[: len(data) * 2 // 3])
    assert "cut short" in reason(path) or "damaged" in reason(path)


def test_rotated_photographs_are_rotated_as_in_training(tmp_path: pathlib.Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "1.jpg"
    for kind, image in (("JPEG", COLOURS), ("PNG", COLOURS), ("PNG", np.dstack([COLOURS, COLOURS[..., 0] * 0 + 255]))):
        data = encoded(image, kind, exif=exif)
        path.write_bytes(data)
        assert read(path).shape == (35, 23, 3)
        np.testing.assert_array_equal(read(path), decode(data))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_transparent_pixels_lie_on_white(tmp_path: pathlib.Path, kind: str) -> None:
    alpha = np.full((23, 35), 255, np.uint8)
    alpha[0, 0], alpha[0, 1] = 0, 128
    path = tmp_path / "1"
    path.write_bytes(encoded(np.dstack([COLOURS, alpha]), kind))
    found = read(path)
    np.testing.assert_array_equal(found[alpha == 255], COLOURS[alpha == 255])
    np.testing.assert_array_equal(found[0, 0], 255)
    np.testing.assert_allclose(found[0, 1], COLOURS[0, 1] * (128 / 255) + 127, atol=1)


def test_a_colour_declared_transparent_is_shown_on_white(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "1.png"
    path.write_bytes(encoded(COLOURS, "PNG", transparency=tuple(COLOURS[2, 3].tolist())))
    found = read(path)
    np.testing.assert_array_equal(found[2, 3], 255)
    np.testing.assert_array_equal(found[0], COLOURS[0])


def test_images_that_training_rejects_are_rejected(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "1.png"
    grey = COLOURS[..., 0]
    deep = cv2.imencode(".png", COLOURS.astype(np.uint16) * 257)[1].tobytes()
    # 12-bit pixels in 16 bits, which would come out nearly black.
    deep_tiff = cv2.imencode(".tif", COLOURS.astype(np.uint16) * 16)[1].tobytes()
    two_pages = encoded(COLOURS, "TIFF", save_all=True, append_images=[Image.fromarray(COLOURS)])
    for data in (encoded(grey, "PNG"), encoded(grey, "JPEG"), encoded(grey, "TIFF"), deep, deep_tiff, two_pages):
        with pytest.raises(BadImageError, match="8-bit RGB is expected"):
            check_image(data)
        path.write_bytes(data)
        assert "8-bit RGB is expected: convert it" in reason(path)
    path.write_bytes(encoded(grey, "BMP"))
    assert "BMP of mode L" in reason(path)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000"])
def test_16_bits_are_refused(tmp_path: pathlib.Path, kind: str) -> None:
    deep = np.tile(COLOURS, (4, 4, 1)).astype(np.uint16) * 257
    suffix = {"PNG": ".png", "TIFF": ".tif", "JPEG2000": ".jp2"}[kind]
    path = tmp_path / "image"
    path.write_bytes(cv2.imencode(suffix, deep)[1].tobytes())
    assert reason(path).startswith(f"a {kind} of 16 bits per channel, but")


def test_a_smaller_version_is_no_second_page(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "1.tif"
    half = Image.fromarray(COLOURS).resize((COLOURS.shape[1] // 2, COLOURS.shape[0] // 2))
    path.write_bytes(encoded(COLOURS, "TIFF", save_all=True, append_images=[half]))
    np.testing.assert_array_equal(read(path), COLOURS)


@pytest.mark.parametrize("transparent", [False, True])
def test_a_palette_png_is_read(tmp_path: pathlib.Path, transparent: bool) -> None:
    colours = np.array([[200, 0, 100], [0, 150, 50], [9, 8, 7]], np.uint8)
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) % 3, mode="P")
    image.putpalette(colours.ravel().tolist())
    path = tmp_path / "1.png"
    image.save(path, **({"transparency": 0} if transparent else {}))
    expected = colours[np.asarray(image)]
    if transparent:
        expected[np.asarray(image) == 0] = 255
    np.testing.assert_array_equal(read(path), expected)


def test_damage_is_reported(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "1.png"
    good = encoded(COLOURS, "PNG")
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for data, words in (
        (b"", "empty file"),
        (b"GIF89a" + bytes(50), "not a PNG, JPEG, TIFF, BMP or JPEG 2000 image"),
        (bytes(flipped), "damaged"),
        (png_header(60000, 60000), "more than 89 million pixels"),
        (png_header(9000, 9950), "more than 89 million pixels"),
        (png_header(500, 500), "damaged"),
    ):
        path.write_bytes(data)
        with silence_pillow_warnings():
            assert words in reason(path)


def test_neither_a_pipe_nor_a_giant_file_is_read(tmp_path: pathlib.Path) -> None:
    pipe, giant = tmp_path / "pipe.png", tmp_path / "giant.png"
    os.mkfifo(pipe)
    with open(giant, "wb") as file:
        file.truncate(2**40)
    started = time.monotonic()
    assert reason(pipe) == "not a regular file"
    assert "a slide?" in reason(giant)
    assert "not a regular file" in reason(pathlib.Path("/dev/zero"))
    assert time.monotonic() - started < 5
