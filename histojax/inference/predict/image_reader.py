"""Read the pixels of an image as training and evaluation do, however damaged or hostile the file may be.

Headers are checked before anything is decoded, so neither an archive nor an image unpacks to more than the limits.
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

from data_pipelines.depth import describe_fault
from data_pipelines.pixels import decode
from histojax.core.retries import with_backoff
from histojax.inference.predict.images import ImageRef, open_archive

MAX_PIXELS = 89_478_485  # Pillow's limit, which the scan of training images also applies
MAX_BYTES = 2**29
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "JPEG2000")
_MODES = ("RGB", "RGBA")
_PNG_MODES = (*_MODES, "P", "PA")  # of a palette
_LARGE_PIXELS, _LARGE_BYTES = 2**24, 2**26  # images larger than this are decoded by one thread at a time
_TOO_LARGE = f"more than {MAX_PIXELS / 1e6:.0f} million pixels: a slide? See histojax slide"
_BOMB_RATIO = 200  # no photograph is compressed better than this; applies to large archive members


class UnreadableError(ValueError):
    """A file that does not contain a readable image; the message says why."""


class ImageReader:
    """Reads images from files and zip archives; safe for use by several threads.

    Use it in a `with` statement, which closes the archive that was read last.
    """

    def __init__(self) -> None:
        self._archive: zipfile.ZipFile | None = None
        self._archive_lock = threading.Lock()
        self._large_image_lock = threading.RLock()

    def __enter__(self) -> "ImageReader":
        return self

    def __exit__(self, *_: object) -> None:
        if self._archive is not None:
            self._archive.close()

    def read(self, ref: ImageRef) -> np.ndarray:
        """Return the pixels `u8 [h, w, 3]`, RGB, on white where transparent, rotated as EXIF says.

        Raises:
          UnreadableError: not an image, damaged, too large, or of a kind that training does not accept.
        """
        try:
            return with_backoff(ref.image_id, lambda: self._read(ref))
        except UnreadableError:
            raise
        except OSError as error:
            raise UnreadableError(error.strerror or f"damaged or cut short ({error})") from error
        except Exception as error:  # decoders raise anything when they meet bytes that their authors did not expect
            raise UnreadableError(f"damaged ({type(error).__name__}: {error})") from error

    def _read(self, ref: ImageRef) -> np.ndarray:
        with contextlib.ExitStack() as stack:
            stream, size = self._open(ref)
            stack.enter_context(stream)
            if size > MAX_BYTES:
                raise UnreadableError(f"{size:,} bytes, more than {MAX_BYTES:,}: a slide? See histojax slide")
            if size > _LARGE_BYTES:
                stack.enter_context(self._large_image_lock)
            data = stream.read(MAX_BYTES)
            image = stack.enter_context(_open_image(data))
            if image.width * image.height > _LARGE_PIXELS:
                stack.enter_context(self._large_image_lock)
            return _decode(image, data)

    def _open(self, ref: ImageRef) -> tuple[IO[bytes], int]:
        """Open the file or archive member; return it with the size in bytes that it claims."""
        if not ref.member:
            status = os.stat(ref.path)
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait forever
                raise UnreadableError("not a regular file")
            return open(ref.path, "rb"), status.st_size
        path = pathlib.PurePosixPath(ref.member)
        if path.is_absolute() or ".." in path.parts:
            raise UnreadableError("its name points outside the archive")
        with self._archive_lock:
            if self._archive is None or self._archive.filename != ref.path:
                if self._archive is not None:
                    self._archive.close()  # members that other threads are reading stay open until they are done
                self._archive = open_archive(ref.path)
            member = self._archive.getinfo(ref.member)
            size, packed = member.file_size, member.compress_size
            if size > _LARGE_BYTES and size > _BOMB_RATIO * packed:
                raise UnreadableError(f"a zip bomb: {packed:,} bytes that claim to unpack to {size:,}")
            return self._archive.open(member), size


@contextlib.contextmanager
def silence_pillow_warnings() -> Iterator[None]:
    """Hide Pillow's warnings: their causes are reported as reasons. Enter it outside of threads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _open_image(data: bytes) -> Image.Image:
    """Read the header only, and reject an image that must not be decoded."""
    if not data:
        raise UnreadableError("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.UnidentifiedImageError as error:
        known = "PNG, JPEG, TIFF, BMP or JPEG 2000"
        raise UnreadableError(f"not a {known} image, or its header is damaged") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableError(_TOO_LARGE) from error
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableError(_TOO_LARGE)
    fault = describe_fault(image, data)
    if not fault and image.mode not in (_PNG_MODES if image.format == "PNG" else _MODES):
        fault = f"{image.format} of mode {image.mode}"
    if fault:
        raise UnreadableError(f"{fault}, but one picture of 8-bit RGB is expected: convert it")
    return image


def _decode(image: Image.Image, data: bytes) -> np.ndarray:
    if image.mode in ("RGBA", "PA") or "transparency" in image.info:
        rgba = ImageOps.exif_transpose(image).convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
    if image.format not in ("PNG", "JPEG", "MPO") or image.mode == "P":
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if image.format != "PNG":
        # OpenCV fills the rest of a truncated JPEG with grey; Pillow raises, and a tiny draft is enough to notice.
        image.draft(None, (1, 1))
        image.load()
    return decode(data)
