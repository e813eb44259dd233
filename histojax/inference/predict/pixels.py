"""From an image's place to its pixels, as training and evaluation read them, whatever the file turns out to be.

Headers are looked at before anything is decoded, so neither an archive nor an image unpacks to more than is allowed.
"""

import contextlib
import io
import os
import pathlib
import stat
import threading
import warnings
import zipfile
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from data_pipelines.pixels import decode
from histojax.inference.predict.images import ImageRef, open_archive

MAX_PIXELS = 89_478_485  # Pillow's limit, which the scan of training images keeps to
MAX_BYTES = 2**29
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "JPEG2000")
_LARGE_PIXELS, _LARGE_BYTES = 2**24, 2**26  # more than this is worked on by one thread at a time
_TOO_LARGE = f"more than {MAX_PIXELS / 1e6:.0f} million pixels: a slide? See histojax slide"
_BOMB_RATIO = 200  # a large archive member that packs better than this is no photograph


class UnreadableError(ValueError):
    """A file that gives no image; the message says why."""


class Reader:
    """Reads images; for several threads at a time. Use it in a `with`, which closes the archive that was read last."""

    def __init__(self) -> None:
        self._archive: zipfile.ZipFile | None = None
        self._opening = threading.Lock()
        self._alone = threading.RLock()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        if self._archive is not None:
            self._archive.close()

    def read(self, ref: ImageRef) -> np.ndarray:
        """Pixels `u8 [h, w, 3]`, RGB; transparent ones on white, turned as EXIF says.

        Raises:
          UnreadableError: no image, damaged, too large, of another kind than training takes.
        """
        try:
            with contextlib.ExitStack() as stack:
                stream, size = self._open(ref)
                stack.enter_context(stream)
                if size > MAX_BYTES:
                    raise UnreadableError(f"{size:,} bytes, more than {MAX_BYTES:,}: a slide? See histojax slide")
                if size > _LARGE_BYTES:
                    stack.enter_context(self._alone)
                data = stream.read(MAX_BYTES)
                image = stack.enter_context(_open_image(data))
                if image.width * image.height > _LARGE_PIXELS:
                    stack.enter_context(self._alone)
                return _pixels(image, data)
        except UnreadableError:
            raise
        except OSError as error:
            raise UnreadableError(error.strerror or f"damaged or cut short ({error})") from error
        except Exception as error:  # decoders meet bytes that their authors did not think of
            raise UnreadableError(f"damaged ({type(error).__name__}: {error})") from error

    def _open(self, ref: ImageRef) -> tuple[IO[bytes], int]:
        """The bytes, and how many they claim to be."""
        if not ref.member:
            status = os.stat(ref.path)
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
                raise UnreadableError("not a regular file")
            return open(ref.path, "rb"), status.st_size
        path = pathlib.PurePosixPath(ref.member)
        if path.is_absolute() or ".." in path.parts:
            raise UnreadableError("its name points outside the archive")
        with self._opening:
            if self._archive is None or self._archive.filename != ref.path:
                if self._archive is not None:
                    self._archive.close()  # what other threads read of it stays open until they are done
                self._archive = open_archive(ref.path)
            member = self._archive.getinfo(ref.member)
            size, packed = member.file_size, member.compress_size
            if size > _LARGE_BYTES and size > _BOMB_RATIO * packed:
                raise UnreadableError(f"a zip bomb: {packed:,} bytes that claim to unpack to {size:,}")
            return self._archive.open(member), size


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Pillow from warning on the terminal of what is told as a reason. Not for use inside threads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _open_image(data: bytes) -> Image.Image:
    """An image of which the header only was read; refuses what is not to be decoded."""
    if not data:
        raise UnreadableError("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.UnidentifiedImageError as error:
        known = "PNG, JPEG, TIFF, BMP or JPEG 2000"
        raise UnreadableError(f"no {known} image, or its header is damaged") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableError(_TOO_LARGE) from error
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableError(_TOO_LARGE)
    bits = data[24] if image.format == "PNG" else 8
    if image.mode not in ("RGB", "RGBA") or bits != 8:
        kind = f"{image.format} of mode {image.mode}" + (f", {bits} bits" if bits != 8 else "")
        raise UnreadableError(f"{kind}, where 8-bit RGB is expected: convert it")
    return image


def _pixels(image: Image.Image, data: bytes) -> np.ndarray:
    if image.mode == "RGBA" or "transparency" in image.info:
        rgba = ImageOps.exif_transpose(image).convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
    if image.format not in ("PNG", "JPEG", "MPO"):
        return np.asarray(image)
    if image.format != "PNG":
        # Of a JPEG that is cut short OpenCV fills the rest with grey; a small picture is enough to see it.
        image.draft(None, (1, 1))
        image.load()
    return decode(data)
