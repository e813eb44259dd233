"""Image checks: every kind of unusable PNG file is refused with its reason."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from data_pipelines import images
from data_pipelines.errors import BadImageError

PIXELS = np.random.default_rng(0).integers(0, 256, (23, 35, 3), dtype=np.uint8)  # in OpenCV's order, BGR


def _encode(pixels: np.ndarray, level: int = 3) -> bytes:
    ok, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, level])
    assert ok
    return data.tobytes()


def _with_alpha(alpha: np.ndarray | int) -> bytes:
    pixels = np.empty((*PIXELS.shape[:2], 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = PIXELS, alpha
    return _encode(pixels)


def _chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def _png(*chunks: bytes, height: int = 23, width: int = 35, bit_depth: int = 8, colour_type: int = 2) -> bytes:
    """Build a PNG that no encoder writes, with correct checksums."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IEND", b"")


def _scanlines(rgb: np.ndarray = PIXELS[..., ::-1]) -> bytes:
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in rgb))


GOOD = _encode(PIXELS)


def test_valid_image() -> None:
    checked = images.check_png(GOOD)
    assert (checked.height, checked.width, checked.note) == (23, 35, "")
    assert len(bytes.fromhex(checked.pixel_hash)) == 32


@pytest.mark.parametrize("level", [0, 1, 9])
def test_hash_does_not_depend_on_compression(level: int) -> None:
    again = _encode(PIXELS, level)
    assert again != GOOD
    assert images.check_png(again) == images.check_png(GOOD)


def test_other_chunks_do_not_change_the_hash() -> None:
    commented = _png(_chunk(b"tEXt", b"Comment\0from a mirror"), _chunk(b"IDAT", _scanlines()))
    assert images.check_png(commented) == images.check_png(GOOD)


def test_one_changed_value_changes_the_hash() -> None:
    other = PIXELS.copy()
    other[22, 34, 2] ^= 1
    assert images.check_png(_encode(other)).pixel_hash != images.check_png(GOOD).pixel_hash


def test_shape_is_part_of_the_hash() -> None:
    # The same bytes in the same order as 35 x 23: only the shape differs.
    other = images.check_png(_encode(PIXELS.reshape(35, 23, 3)))
    assert (other.height, other.width) == (35, 23)
    assert other.pixel_hash != images.check_png(GOOD).pixel_hash
    assert images.check_png(_encode(PIXELS.transpose(1, 0, 2))).pixel_hash != images.check_png(GOOD).pixel_hash


def test_channel_order_is_part_of_the_hash() -> None:
    assert images.check_png(_encode(PIXELS[..., ::-1])).pixel_hash != images.check_png(GOOD).pixel_hash


def test_file_truncated_anywhere_is_refused() -> None:
    for length in range(len(GOOD)):
        with pytest.raises(BadImageError):
            images.check_png(GOOD[:length])


@pytest.mark.parametrize("missing", [1, 4, 12, 13, 100, 1000])
def test_truncation_is_the_reason(missing: int) -> None:
    with pytest.raises(BadImageError, match=f"truncated PNG: the end is missing after {len(GOOD) - missing} bytes"):
        images.check_png(GOOD[:-missing])


def test_flipped_byte_in_the_pixels_is_refused() -> None:
    start = GOOD.index(b"IDAT")
    for position in range(start, len(GOOD) - 16, 97):
        flipped = bytearray(GOOD)
        flipped[position] ^= 0x20
        with pytest.raises(BadImageError, match="damaged PNG: wrong checksum of chunk"):
            images.check_png(bytes(flipped))


@pytest.mark.parametrize(
    "data",
    [
        _png(_chunk(b"IDAT", _scanlines()[:1000])),
        _png(),
        _png(_chunk(b"IDAT", _scanlines()), height=40),
        _png(_chunk(b"IDAT", b"these are not compressed pixels")),
    ],
    ids=["stream cut", "no pixels", "fewer rows than declared", "not compressed"],
)
def test_missing_pixels_with_correct_checksums_are_refused(data: bytes) -> None:
    with pytest.raises(BadImageError, match="the PNG's pixels cannot be decoded"):
        images.check_png(data)


def test_header_with_an_absurd_size_is_refused() -> None:
    with pytest.raises(BadImageError, match="cannot be decoded"):
        images.check_png(_png(_chunk(b"IDAT", _scanlines()), height=100_000, width=100_000))


def test_chunks_without_a_header_are_refused() -> None:
    with pytest.raises(BadImageError, match="no header"):
        images.check_png(b"\x89PNG\r\n\x1a\n" + _chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"this is a text file", r"not a PNG file \(it starts with 'this is a te'\)"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "not a PNG file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a PNG file"),
        (_encode(PIXELS.astype(np.uint16) * 257), "16-bit RGB PNG where 8-bit RGB is expected"),
        (_encode(PIXELS[..., 0]), "8-bit grey PNG where"),
        (
            _png(_chunk(b"PLTE", bytes(range(9))), _chunk(b"IDAT", _scanlines(PIXELS[..., 0] % 3)), colour_type=3),
            "8-bit palette PNG where",
        ),
        (_with_alpha(0), "transparent pixels"),
        (_with_alpha(np.where(np.arange(35) == 7, 254, 255)), "transparent pixels"),
        # An RGB file may declare one colour transparent: OpenCV reads it as RGBA.
        (
            _png(
                _chunk(b"tRNS", struct.pack(">3H", *PIXELS[5, 5, ::-1].tolist())),
                _chunk(b"IDAT", _scanlines()),
            ),
            "transparent pixels",
        ),
    ],
    ids=["empty", "text", "jpeg", "lfs", "16-bit", "grey", "palette", "transparent", "one column", "one colour"],
)
def test_images_other_than_8_bit_rgb_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=reason):
        images.check_png(data)


def test_control_characters_of_a_file_are_not_printed() -> None:
    with pytest.raises(BadImageError) as caught:
        images.check_png(b"\x1b[2J\n\r\0\xff" + b"x" * 100)
    assert str(caught.value).isprintable()


def test_opaque_alpha_channel_is_dropped_with_a_note() -> None:
    checked = images.check_png(_with_alpha(255))
    assert checked.note == "opaque alpha channel dropped"
    assert checked.pixel_hash == images.check_png(GOOD).pixel_hash


def test_unused_transparent_colour_is_dropped_with_a_note() -> None:
    assert not (PIXELS == 0).all(axis=-1).any()
    declared = _png(_chunk(b"tRNS", struct.pack(">3H", 0, 0, 0)), _chunk(b"IDAT", _scanlines()))
    checked = images.check_png(declared)
    assert checked.note == "opaque alpha channel dropped"
    assert checked.pixel_hash == images.check_png(GOOD).pixel_hash
