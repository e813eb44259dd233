"""Is this file the image it says it is? Structure, colour type, pixels, and a hash of the pixels."""

import dataclasses
import hashlib
import io
import struct
import warnings
import zlib

import cv2
import numpy as np
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_TIFF = (b"II*\0", b"MM\0*")
_COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey + alpha", 6: "RGBA"}


class BadImageError(ValueError):
    """A file that cannot be used as an 8-bit RGB image; the message says why."""


@dataclasses.dataclass(frozen=True)
class CheckedImage:
    """A readable image.

    Attributes:
      height: in pixels.
      width: in pixels.
      pixel_hash: SHA-256 (hex) of shape and RGB values: equal for identical pixels, whatever the file's bytes.
      note: what was dropped to read it as RGB; empty as a rule.
    """

    height: int
    width: int
    pixel_hash: str
    note: str = ""


def check_image(data: bytes) -> CheckedImage:
    """Checks the bytes of a PNG, JPEG or TIFF file.

    Raises:
      BadImageError: as `check_png`; another format; a slide, which is not to be read whole.
    """
    return read_image(data)[0]


def read_image(data: bytes) -> tuple[CheckedImage, np.ndarray]:
    """As `check_image`, and the pixels `uint8 [h, w, 3]`."""
    if data.startswith(_SIGNATURE) or not data.startswith((_JPEG, *_TIFF)):
        rgb, note = _read_png(data)
    else:
        rgb, note = _read_with_pillow(data), ""
    return _checked(rgb, note), rgb


def decode_rgb(data: bytes) -> np.ndarray:
    """Pixels `uint8 [h, w, 3]` of bytes that `check_image` found good."""
    if data.startswith(_SIGNATURE):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None  # it was checked
        return pixels[..., ::-1]
    return _read_with_pillow(data)


def encode_png(pixels: np.ndarray) -> bytes:
    """The bytes of a PNG file with the given pixels, `uint8 [h, w, 3]`, RGB.

    Raises:
      OSError: OpenCV could not.
    """
    done, data = cv2.imencode(".png", pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise OSError(f"could not encode an image of shape {pixels.shape}")
    return bytes(data)


def is_tiff(data: bytes) -> bool:
    """Whether the bytes begin as those of a TIFF file, which no loader of tiles reads from memory as it is."""
    return data.startswith(_TIFF)


def check_png(data: bytes) -> CheckedImage:
    """Checks the bytes of a PNG file from signature to pixels.

    Raises:
      BadImageError: not a PNG, cut short, a checksum is off, not 8-bit RGB (RGBA is read where it is opaque).
    """
    return _checked(*_read_png(data))


def _read_png(data: bytes) -> tuple[np.ndarray, str]:
    """Pixels of a PNG file, and what was dropped.

    OpenCV alone would not do: it fills what is missing of a truncated file with grey, widens grey to
    colour and cuts 16 bits to 8, all silently.
    """
    bit_depth, colour_type = _check_chunks(data)
    if bit_depth != 8 or colour_type not in (2, 6):
        kind = _COLOUR_TYPES.get(colour_type, f"colour type {colour_type}")
        raise BadImageError(f"{bit_depth}-bit {kind} PNG where 8-bit RGB is expected: convert it, or leave it out")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # the header claims more pixels than OpenCV reads
        pixels = None
    if pixels is None:
        raise BadImageError("the PNG's pixels cannot be decoded")
    note = ""
    if pixels.shape[2] == 4:  # RGBA, or RGB with one colour declared transparent
        if (pixels[..., 3] != 255).any():
            raise BadImageError("PNG with transparent pixels where 8-bit RGB is expected: flatten it")
        note, pixels = "opaque alpha channel dropped", pixels[..., :3]
    return pixels[..., ::-1], note


def pixel_hash(rgb: np.ndarray) -> str:
    """SHA-256 (hex) of the shape and the values of pixels, `uint8 [h, w, 3]`."""
    digest = hashlib.sha256(struct.pack(">II", *rgb.shape[:2]))
    digest.update(np.ascontiguousarray(rgb).tobytes())
    return digest.hexdigest()


def _checked(rgb: np.ndarray, note: str) -> CheckedImage:
    return CheckedImage(rgb.shape[0], rgb.shape[1], pixel_hash(rgb), note)


def _read_with_pillow(data: bytes) -> np.ndarray:
    """Pixels of a JPEG or TIFF file; Pillow, unlike OpenCV, refuses a file that was cut short."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("JPEG", "TIFF")) as image:
                kind = image.format
                if image.mode != "RGB":
                    raise BadImageError(f"{kind} of mode {image.mode} where 8-bit RGB is expected: convert it")
                return np.asarray(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError("more than 89 million pixels: a slide? Cut it into tiles first") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, BadImageError):
            raise
        raise BadImageError(f"damaged or cut short ({error})") from error


def _check_chunks(data: bytes) -> tuple[int, int]:
    """Walks the chunks up to IEND, verifying lengths and checksums; returns bit depth and colour type."""
    if not data:
        raise BadImageError("empty file")
    if not data.startswith(_SIGNATURE):
        start = data[:12].decode("ascii", "replace").encode("unicode_escape").decode()
        raise BadImageError(f"not a PNG file (it begins with '{start}')")
    position, header = len(_SIGNATURE), None
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(data):
            break
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(data[position + 4 : end - 4]) != checksum:
            raise BadImageError(f"damaged PNG: the checksum of its chunk {kind!r} at byte {position} is off")
        if kind == b"IHDR":
            header = struct.unpack_from(">IIBB", data, position + 8)
        if kind == b"IEND":
            if header is None:
                raise BadImageError("damaged PNG: no header chunk")
            return header[2], header[3]
        position = end
    raise BadImageError(f"truncated PNG: {len(data)} bytes, and the end is missing")
