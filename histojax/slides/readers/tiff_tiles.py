"""TIFF files decoded tile by tile, several times faster than through OpenSlide."""

import collections
import logging
import math
import pathlib
import threading
import xml.etree.ElementTree
from collections.abc import Sequence
from typing import Any

import numpy as np

from histojax.slides.readers.backend import CACHE_BYTES, Level, SlideError, on_white, package

_MAX_SEGMENT_BYTES = 512 << 20
_ORIENTATION, _RESOLUTIONS = 0x0112, (0x011A, 0x011B)
_UNIT_UM = {2: 25400.0, 3: 10000.0}  # ResolutionUnit: inch, cm; 1 means no unit
_PREMULTIPLIED_ALPHA, _ALPHA = 1, 2
_IN_PLANES = 2  # PlanarConfiguration
_AXES = ("YXS", "SYX")  # colours pixel by pixel, or in planes
_OLD_JPEG, _JPEG, _APERIO_YCBC = 6, 7, 33003  # 33003 is JPEG 2000 without its colour transform in the codestream
# Units of OME-XML and ImageJ; with µ as the micro sign and as the Greek letter.
_TO_UM = {
    "m": 1e6,
    "mm": 1e3,
    "cm": 1e4,
    "in": 25400.0,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "\\u00B5m": 1.0,  # ImageJ's spelling
    "inch": 25400.0,
    "nm": 1e-3,
}


class TiffTiles:
    """A TIFF or OME-TIFF file decoded tile by tile (or strip by strip), with a cache of the latest ones.

    Raises:
      SlideError: the file is damaged, truncated, or not a single 8-bit RGB image.
    """

    bounds: tuple[int, int, int, int] | None = None

    def __init__(self, path: pathlib.Path) -> None:
        tifffile = package("tifffile")
        package("imagecodecs")
        self._file = _open_tiff(path)
        self.reader = f"tifffile {tifffile.__version__} ({'OME-TIFF' if self._file.is_ome else 'TIFF'})"
        try:
            pages = self._pyramid()
            _refuse_truncated(path, pages)
            _refuse_missing_tiles(pages)
            self._pages = [(page, page.decode, page.jpegtables, page.jpegheader) for page in pages]
            self.stated_mpp, self.mpp_source = self._stated_mpp(pages[0])
        except SlideError:
            self.close()
            raise
        except Exception as error:  # tifffile raises many kinds of errors for damaged files
            self.close()
            raise SlideError(f"damaged: its TIFF structure cannot be read ({error})") from error
        self.plain_jpeg = all(page.compression == _JPEG and all(page.databytecounts) for page in pages)
        self.levels = tuple(_level(page, pages[0]) for page in pages)
        self._lock = threading.Lock()
        self._cache: collections.OrderedDict[tuple[int, int], np.ndarray] = collections.OrderedDict()
        self._cached_bytes = 0

    def region(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """See `Backend`."""
        page = self._pages[level][0]
        rows, columns = page.chunks[:2]
        across = _across(page)
        out = np.empty((height, width, 3), np.uint8)
        for row in range(y // rows, (y + height - 1) // rows + 1):
            for column in range(x // columns, (x + width - 1) // columns + 1):
                top, left = row * rows, column * columns
                y0, y1 = max(y, top), min(y + height, top + rows)
                x0, x1 = max(x, left), min(x + width, left + columns)
                segment = self._segment(level, row * across + column)
                out[y0 - y : y1 - y, x0 - x : x1 - x] = segment[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def close(self) -> None:
        """See `Backend`."""
        self._file.close()

    def _segment(self, level: int, index: int) -> np.ndarray:
        """A decoded tile or strip `uint8 [h, w, 3]`; callers must not change it."""
        key = (level, index)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            page = self._pages[level][0]
            planes = [self._read(page, plane) for plane in _planes(page, index)]
        segment = self._decode(level, index, planes)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = segment
                self._cached_bytes += segment.nbytes
            while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return segment

    def _read(self, page: Any, index: int) -> bytes | None:
        """The bytes of a tile or strip, None if it is omitted; the caller holds the lock."""
        if not page.databytecounts[index]:
            return None
        self._file.filehandle.seek(page.dataoffsets[index])
        return bytes(self._file.filehandle.read(page.databytecounts[index]))

    def _decode(self, level: int, index: int, planes: Sequence[bytes | None]) -> np.ndarray:
        page, decode, tables, header = self._pages[level]
        if None in planes:  # scanners omit tiles of empty glass
            return np.full((*page.chunks[:2], 3), 255, np.uint8)
        try:
            arguments = {"jpegtables": tables, "jpegheader": header} if page.compression in (_OLD_JPEG, _JPEG) else {}
            indices = _planes(page, index)
            decoded = [decode(data, plane, **arguments)[0][0] for data, plane in zip(planes, indices, strict=True)]
            pixels = decoded[0] if len(decoded) == 1 else np.concatenate(decoded, axis=2)
        except Exception as error:  # every codec has its own exceptions
            raise SlideError(f"damaged tile {index} of level {level} ({error})") from error
        extra = page.extrasamples[0] if page.extrasamples else 0
        if extra not in (_PREMULTIPLIED_ALPHA, _ALPHA):  # the fourth sample is not declared as alpha
            pixels = pixels[..., :3]
        return on_white(pixels, premultiplied=extra == _PREMULTIPLIED_ALPHA)

    def _pyramid(self) -> list[Any]:
        """The pages of the levels of the largest colour image."""
        nonempty = [series for series in self._file.series if 0 not in series.shape]
        if not nonempty:
            raise SlideError("has no image: it is damaged or truncated")
        series = max(nonempty, key=lambda series: (series.axes in _AXES, series.size))
        if sum(other.shape == series.shape for other in nonempty) > 1:
            raise SlideError("holds several images of one size: save each image as a file")
        if len(nonempty) > 1:
            self.reader += f", image {nonempty.index(series) + 1} of {len(nonempty)}"
        page = series.levels[0].pages[0].aspage()
        fault = _unsupported(series, page)
        if fault:
            raise SlideError(f"{fault}; slides must be 8-bit RGB: convert it with vips, QuPath or Bio-Formats")
        if page.tags.valueof(_ORIENTATION, 1) != 1:
            raise SlideError(
                f"is stored rotated (TIFF Orientation {page.tags.valueof(_ORIENTATION)}), which slide viewers ignore: "
                "save it upright, so that coordinates mean the same in every program"
            )
        levels = [level for level in series.levels if level.axes in _AXES and len(level.pages) == 1]
        pages = [level.pages[0].aspage() for level in levels]
        return [p for p in pages if _is_reduced(p, page)]

    def _stated_mpp(self, page: Any) -> tuple[tuple[float, float] | None, str]:
        if self._file.is_ome:
            stated = _ome_mpp(self._file.ome_metadata, page.imagewidth, page.imagelength)
            if stated:
                return stated, "its OME metadata (PhysicalSize)"
        unit, source = _UNIT_UM.get(int(page.resolutionunit)), "its TIFF resolution tags"
        imagej = self._file.imagej_metadata or {}
        if "unit" in imagej:
            unit, source = _TO_UM.get(str(imagej["unit"])), f"its ImageJ metadata (unit={imagej['unit']})"
        x, y = page.get_resolution() if all(tag in page.tags for tag in _RESOLUTIONS) else (0.0, 0.0)
        return (unit / x, unit / y) if unit and x > 0 and y > 0 else None, source


def check_complete(path: pathlib.Path) -> None:
    """Check that a TIFF file contains all its pixels; OpenSlide notices a truncated file only when reading them.

    Raises:
      SlideError: pixels lie beyond the end of the file.
    """
    try:
        with _open_tiff(path) as file:
            pages = list(file.pages)
    except Exception:  # OpenSlide can read it even if tifffile cannot
        return
    _refuse_truncated(path, pages)


def _open_tiff(path: pathlib.Path) -> Any:
    tifffile = package("tifffile")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # our exceptions carry the same information
    try:
        return tifffile.TiffFile(path)
    except Exception as error:  # a damaged header gives struct, index, value and memory errors
        raise SlideError(f"damaged: its TIFF structure cannot be read ({error})") from error


def _refuse_truncated(path: pathlib.Path, pages: Sequence[Any]) -> None:
    """Raise SlideError if pixels of a page lie beyond the end of the file."""
    ends = [sum(piece) for page in pages for piece in zip(page.dataoffsets, page.databytecounts, strict=True)]
    size, end = path.stat().st_size, max(ends, default=0)
    if end > size:
        raise SlideError(f"truncated: has {size} bytes, but its pixels end at byte {end}: copy it again")


def _refuse_missing_tiles(pages: Sequence[Any]) -> None:
    """Raise SlideError if a page lists fewer tiles or strips than its size needs."""
    for page in pages:
        listed, needed = len(page.dataoffsets), math.prod(page.chunked)
        if listed < needed:
            size = f"{page.imagewidth}×{page.imagelength} pixels"
            raise SlideError(f"damaged: lists {listed} tiles, but {size} need {needed}: copy it again")


def _across(page: Any) -> int:
    """The number of tiles in a row."""
    return int(page.chunked[2] if page.planarconfig == _IN_PLANES else page.chunked[1])


def _planes(page: Any, index: int) -> list[int]:
    """The indices of the colour planes of a tile or strip; only its own if colours are stored pixel by pixel."""
    if page.planarconfig != _IN_PLANES:
        return [index]
    per_plane = page.chunked[1] * page.chunked[2]
    return [index + plane * per_plane for plane in range(page.samplesperpixel)]


def _is_reduced(page: Any, base: Any) -> bool:
    """Whether a page is the base page or a reduced copy of it, judged by size, pixel type and aspect ratio."""
    same_type = page.dtype == base.dtype and page.samplesperpixel == base.samplesperpixel
    x, y = base.imagewidth / page.imagewidth, base.imagelength / page.imagelength
    rounding = 1 + 1 / min(page.imagewidth, page.imagelength)
    return same_type and min(x, y) >= 1 and max(x, y) <= min(x, y) * 1.05 * rounding


def _level(page: Any, base: Any) -> Level:
    downsample = (base.imagewidth / page.imagewidth + base.imagelength / page.imagelength) / 2
    return Level(page.imagewidth, page.imagelength, downsample)


def _unsupported(series: Any, page: Any) -> str:
    """Why the pixels of a TIFF file are not supported; empty if they are."""
    if series.dtype != np.uint8:
        return f"has {series.dtype} pixels, whose range is not known"
    if series.axes not in _AXES or len(series.pages) != 1:
        return f"is not one RGB image (axes {series.axes}, shape {series.shape}): greyscale, channels, pages or a stack"
    if page.photometric.name not in ("RGB", "YCBCR") or page.samplesperpixel not in (3, 4):
        return f"has {page.photometric.name} pixels of {page.samplesperpixel} samples"
    decodes_ycbcr = page.compression in (_OLD_JPEG, _JPEG)
    if page.compression == _APERIO_YCBC or (page.photometric.name == "YCBCR" and not decodes_ycbcr):
        return f"has YCbCr pixels compressed by {page.compression.name}"
    if int(np.prod(page.chunks)) > _MAX_SEGMENT_BYTES:
        size = f"{page.chunks[1]}×{page.chunks[0]} pixels"
        return f"is stored in strips or tiles of {size}, too large to decode: save it in smaller tiles"
    return ""


def _ome_mpp(metadata: str, width: int, height: int) -> tuple[float, float] | None:
    """PhysicalSizeX and Y in µm of the OME-XML image with the given size; None if there is none."""
    try:
        root = xml.etree.ElementTree.fromstring(metadata)
    except xml.etree.ElementTree.ParseError:
        return None
    for pixels in root.iterfind("{*}Image/{*}Pixels"):
        if (pixels.get("SizeX"), pixels.get("SizeY")) != (str(width), str(height)):
            continue
        sizes = [pixels.get(f"PhysicalSize{axis}") for axis in "XY"]
        units = [_TO_UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY"]
        if all(sizes) and all(units):
            x, y = (float(size or 0) * (unit or 0) for size, unit in zip(sizes, units, strict=True))
            return x, y
    return None
