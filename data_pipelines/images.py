"""Checks of image files: structure, colour type, pixels, and a hash of the pixels."""

import dataclasses
import hashlib
import io
import pathlib
import struct
import warnings
import zlib

import cv2
import numpy as np
from PIL import Image

from data_pipelines.depth import describe_fault
from data_pipelines.errors import BadImageError
from data_pipelines.pixels import decode
from histojax.core.retries import is_transient, read_bytes

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_TIFF = (b"II*\0", b"MM\0*")
_JPEG2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_BMP, _WEBP = b"BM", b"RIFF"
_BY_PILLOW = (_JPEG, *_TIFF, *_JPEG2000, _BMP, _WEBP)
_FORMATS = ("JPEG", "TIFF", "JPEG2000", "BMP", "WEBP")
_COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey + alpha", 6: "RGBA"}


@dataclasses.dataclass(frozen=True)
class CheckedImage:
    """A readable image.

    Attributes:
      height: pixels.
      width: pixels.
      pixel_hash: SHA-256 (hex) of shape and RGB values: equal for identical pixels, even in different file bytes.
      note: what was dropped to read the file as RGB; usually empty.
    """

    height: int
    width: int
    pixel_hash: str
    note: str = ""


def read_file(path: pathlib.Path) -> bytes:
    """Read an image file; a transient error of network storage is retried.

    Raises:
      BadImageError: the file cannot be read.
      OSError: the storage failed, which says nothing about the image: it must not be left out because of that.
    """
    try:
        return read_bytes(path)
    except OSError as error:
        if is_transient(error):
            raise
        raise BadImageError(f"unreadable: {error.strerror}") from error


def check_image(data: bytes) -> CheckedImage:
    """Check the bytes of a PNG, JPEG, TIFF, BMP, JPEG 2000 or WebP file.

    Raises:
      BadImageError: as for `check_png`; also another format, or a whole slide, which is too large to read at once.
    """
    return read_image(data)[0]


def read_image(data: bytes) -> tuple[CheckedImage, np.ndarray]:
    """Check an image as `check_image` does, and also return its pixels, `uint8 [h, w, 3]`, RGB."""
    if data.startswith(_SIGNATURE) or not data.startswith(_BY_PILLOW):
        rgb, note = _read_png(data)
    else:
        rgb, note = _read_with_pillow(data), ""
    return _checked(rgb, note), rgb


def decode_rgb(data: bytes) -> np.ndarray:
    """Decode bytes that `check_image` accepted to the pixels that it hashed, `uint8 [h, w, 3]`, RGB.

    All but PNG files are decoded by Pillow, as in `check_image`; `pixels.decode` leaves JPEG files to OpenCV.
    """
    return decode(data) if data.startswith(_SIGNATURE) else _read_with_pillow(data)


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode pixels, `uint8 [h, w, 3]`, RGB, as a PNG file.

    Raises:
      OSError: OpenCV could not encode them.
    """
    success, data = cv2.imencode(".png", pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not success:
        raise OSError(f"could not encode an image of shape {pixels.shape}")
    return bytes(data)


def storable(data: bytes) -> bytes:
    """Return what is stored of an image: its own bytes if they are PNG or JPEG, which training decodes, else a PNG."""
    return data if data.startswith((_SIGNATURE, _JPEG)) else encode_png(decode_rgb(data))


def check_png(data: bytes) -> CheckedImage:
    """Check the bytes of a PNG file from signature to pixels.

    Raises:
      BadImageError: not a PNG, truncated, a wrong checksum, or not 8-bit RGB (opaque RGBA is accepted).
    """
    return _checked(*_read_png(data))


def pixel_hash(rgb: np.ndarray) -> str:
    """Return the SHA-256 (hex) of the shape and values of pixels, `uint8 [h, w, 3]`."""
    digest = hashlib.sha256(struct.pack(">II", *rgb.shape[:2]))
    digest.update(np.ascontiguousarray(rgb).tobytes())
    return digest.hexdigest()


def _read_png(data: bytes) -> tuple[np.ndarray, str]:
    """Decode a PNG file strictly.

    OpenCV alone is not enough: it silently fills the missing part of a truncated file with grey, expands grey to
    colour, and reduces 16 bits to 8.

    Returns:
      RGB pixels, and what was dropped.

    Raises:
      BadImageError: as for `check_png`.
    """
    bit_depth, colour_type = _check_chunks(data)
    if bit_depth != 8 or colour_type not in (2, 6):
        kind = _COLOUR_TYPES.get(colour_type, f"colour type {colour_type}")
        raise BadImageError(f"{bit_depth}-bit {kind} PNG where 8-bit RGB is expected: convert or remove it")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # the header claims more pixels than OpenCV accepts
        pixels = None
    if pixels is None:
        raise BadImageError("the PNG's pixels cannot be decoded")
    note = ""
    if pixels.shape[2] == 4:  # RGBA, or RGB with one colour declared transparent
        if (pixels[..., 3] != 255).any():
            raise BadImageError("PNG with transparent pixels where 8-bit RGB is expected: flatten it")
        note, pixels = "opaque alpha channel dropped", pixels[..., :3]
    return pixels[..., ::-1], note


def _checked(rgb: np.ndarray, note: str) -> CheckedImage:
    return CheckedImage(rgb.shape[0], rgb.shape[1], pixel_hash(rgb), note)


def _read_with_pillow(data: bytes) -> np.ndarray:
    """Decode any file but a PNG; unlike OpenCV, Pillow refuses truncated files.

    Raises:
      BadImageError: another mode than 8-bit RGB, damaged, truncated, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                kind = image.format
                if image.mode != "RGB":
                    raise BadImageError(f"{kind} of mode {image.mode} where 8-bit RGB is expected: convert it")
                if fault := describe_fault(image, data):
                    raise BadImageError(f"{fault} where one picture of 8-bit RGB is expected: convert it")
                return np.asarray(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError("more than 89 million pixels: if this is a slide, cut it into tiles first") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, BadImageError):
            raise
        raise BadImageError(f"damaged or truncated ({error})") from error


def _check_chunks(data: bytes) -> tuple[int, int]:
    """Verify lengths and checksums of a PNG's chunks up to IEND.

    Returns:
      Bit depth and colour type.

    Raises:
      BadImageError: not a PNG, damaged, or truncated.
    """
    if not data:
        raise BadImageError("empty file")
    if not data.startswith(_SIGNATURE):
        start = data[:12].decode("ascii", "replace").encode("unicode_escape").decode()
        raise BadImageError(f"not a PNG file (it starts with '{start}')")
    position, header = len(_SIGNATURE), None
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(data):
            break
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(data[position + 4 : end - 4]) != checksum:
            raise BadImageError(f"damaged PNG: wrong checksum of chunk {kind!r} at byte {position}")
        if kind == b"IHDR":
            header = struct.unpack_from(">IIBB", data, position + 8)
        if kind == b"IEND":
            if header is None:
                raise BadImageError("damaged PNG: no header chunk")
            return header[2], header[3]
        position = end
    raise BadImageError(f"truncated PNG: the end is missing after {len(data)} bytes")
