"""Slides of every format: any rectangle at any resolution as RGB pixels, and µm per pixel."""

import math
import os
import pathlib
from types import TracebackType
from typing import NamedTuple

import cv2
import numpy as np

from data_pipelines.pixels import resize_to
from histojax.slides.readers.backend import Backend, Level, SlideError, package
from histojax.slides.readers.openslide_file import OpenSlideFile
from histojax.slides.readers.plain_image import PlainImage
from histojax.slides.readers.tiff_tiles import TiffTiles, check_complete

__all__ = ["GIVEN", "Level", "Slide", "SlideError", "open_slide"]

_MAX_READ_PIXELS = 1 << 24  # of a level, read at once: 48 MiB as RGB
_MIN_MPP, _MAX_MPP = 0.02, 20.0
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SQUARE, _MAX_STRETCH = 1.05, 4.0  # longer over shorter side of a pixel: square up to, plausible up to
_SAME = 1.02  # a given µm/px that differs by more contradicts the file
GIVEN = "given"  # source of µm/px that the file lacks
# Coordinates count from the scanned part, or from OpenSlide's whole level 0.
ORIGINS = ("qupath", "level0")
_ASK_FOR_MPP = "give it with --mpp or in the column mpp of the CSV list"


class Slide:
    """An open slide and context manager; its methods are safe to call from several threads.

    Attributes:
      path: the slide's file.
      name: the file's name without its suffix.
      width: level-0 pixels of the plane that coordinates count in.
      height: level-0 pixels of it.
      origin: `qupath` if that plane is only the part that was scanned, else `level0`.
      offset: x and y of the plane's corner in the whole level 0.
      is_part: whether the file states that only a part was scanned.
      mpp: width of a level-0 pixel in µm.
      mpp_y: height of a level-0 pixel in µm; the same unless pixels are not square.
      mpp_source: description of where these come from.
      warnings: sentences about µm/px and plane that a user should see.
      levels: levels of the pyramid, finest first.
      reader: description of the library and format.
    """

    def __init__(self, path: pathlib.Path, backend: Backend, resolution: "_Resolution", origin: str = "qupath") -> None:
        self.path, self.name = path, path.stem
        self.levels, self.reader = backend.levels, backend.reader
        whole = (0, 0, self.levels[0].width, self.levels[0].height)
        self.is_part = backend.bounds not in (None, whole)
        self.origin = origin if self.is_part else "level0"
        x, y, self.width, self.height = (backend.bounds or whole) if self.origin == "qupath" else whole
        self.offset = (x, y)
        self.mpp, self.mpp_y = resolution.mpp
        self.mpp_source, self.warnings = resolution.source, [*resolution.warnings, *_plane_warnings(self)]
        self._backend = backend

    def __enter__(self) -> "Slide":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def stretch(self) -> float:
        """The height of a level-0 pixel over its width."""
        return self.mpp_y / self.mpp

    @property
    def plane(self) -> dict[str, str | int]:
        """Where coordinates count from, as it stands in results: `origin`, `x` and `y` in the whole level 0."""
        return {"origin": self.origin, "x": self.offset[0], "y": self.offset[1]}

    @property
    def pixel_mm2(self) -> float:
        """The area of a level-0 pixel in mm²."""
        return (self.mpp / 1000) ** 2 * self.stretch

    def close(self) -> None:
        """Close the file; nothing can be read afterwards."""
        self._backend.close()

    def read(self, x: int, y: int, width: int, height: int, out_width: int, out_height: int) -> np.ndarray:
        """Read a rectangle given in level-0 pixels as RGB, `uint8 [out_height, out_width, 3]`.

        The pixels come from the coarsest level that is at least as fine as the result and are averaged over areas.
        The position is exact to half a pixel of that level. Areas outside the slide and transparent areas are white.

        Raises:
          SlideError: the file is damaged there.
          ValueError: a side is less than one pixel.
        """
        if min(width, height, out_width, out_height) < 1:
            raise ValueError(
                f"every side must be at least 1 pixel: got {width}×{height} level-0 pixels as {out_width}×{out_height}"
            )
        wanted = min(width / out_width, height / out_height) * 1.01  # the sizes of levels are rounded
        level = max((i for i, candidate in enumerate(self.levels) if candidate.downsample <= wanted), default=0)
        scale = self.levels[level].downsample
        bands = math.ceil(width * height / scale**2 / _MAX_READ_PIXELS)
        try:
            if bands == 1:
                return self._read_band(level, x, y, width, height, out_width, out_height)
            out = np.empty((out_height, out_width, 3), np.uint8)
            rows = max(1, out_height // bands)
            for top in range(0, out_height, rows):
                part = out[top : top + rows]
                start, tall = y + height * top / out_height, height * len(part) / out_height
                part[:] = self._read_band(level, x, start, width, tall, out_width, len(part))
            return out
        except SlideError as error:
            message = f"{self.path}: cannot read the {width}×{height} pixels at ({x}, {y}): {error}"
            raise SlideError(message) from error

    def thumbnail(self, longest: int) -> np.ndarray:
        """The whole slide, `uint8 [h, w, 3]`, its longer side `longest` pixels, or fewer if the slide has fewer."""
        shrink = min(1.0, longest / max(self.width, self.height))
        return self.read(
            0, 0, self.width, self.height, max(1, round(self.width * shrink)), max(1, round(self.height * shrink))
        )

    def _read_band(
        self, level: int, x: float, y: float, width: float, height: float, out_width: int, out_height: int
    ) -> np.ndarray:
        """Read from one level in one piece; coordinates as for `read`."""
        size = self.levels[level]
        first_x, first_y = (round(start / size.downsample) for start in self.offset)
        last_x = min(size.width, round((self.offset[0] + self.width) / size.downsample))
        last_y = min(size.height, round((self.offset[1] + self.height) / size.downsample))
        x, y = x + self.offset[0], y + self.offset[1]
        x0, y0 = round(x / size.downsample), round(y / size.downsample)
        x1 = max(x0 + 1, round((x + width) / size.downsample))
        y1 = max(y0 + 1, round((y + height) / size.downsample))
        left, right = max(x0, first_x), min(x1, last_x)
        top, bottom = max(y0, first_y), min(y1, last_y)
        if left >= right or top >= bottom:
            return np.full((out_height, out_width, 3), 255, np.uint8)
        pixels = self._backend.region(level, left, top, right - left, bottom - top)
        if (left, right, top, bottom) != (x0, x1, y0, y1):
            margins = (top - y0, y1 - bottom, left - x0, x1 - right)
            pixels = cv2.copyMakeBorder(pixels, *margins, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        same = pixels.shape[:2] == (out_height, out_width)
        return pixels if same else resize_to(pixels, out_width, out_height)


def open_slide(
    path: str | os.PathLike[str],
    mpp: float | None = None,
    *,
    override_mpp: float | None = None,
    origin: str = "qupath",
) -> Slide:
    """Open a slide: a scanner's format (OpenSlide), a TIFF or OME-TIFF file (tifffile), or a plain image.

    Args:
      path: the slide's file.
      mpp: µm per level-0 pixel of a file that stores no plausible value.
      override_mpp: µm per level-0 pixel, whatever the file stores.
      origin: one of `ORIGINS`. They differ only for files that state which part was scanned (MRXS, SCN).

    Raises:
      SlideError: the file cannot be read or is not 8-bit RGB, a given µm/px is out of range, or none is given and the
        file stores no plausible one.
    """
    path = pathlib.Path(path)
    try:
        for name, value in (("mpp", mpp), ("override_mpp", override_mpp)):
            if value is not None and not _MIN_MPP <= value <= _MAX_MPP:
                raise SlideError(f"the given {name} {value:g} is outside {_MIN_MPP} … {_MAX_MPP:g} µm/px")
        backend = _open_backend(path)
        try:
            resolution = _resolve_mpp(backend, mpp, override_mpp)
        except SlideError:
            backend.close()
            raise
    except SlideError as error:
        raise SlideError(f"{path}: {error}") from error
    return Slide(path, backend, resolution, origin)


def _open_backend(path: pathlib.Path) -> Backend:
    """Choose and open the backend for a file.

    Raises:
      SlideError: the file is missing, unsupported, truncated or not 8-bit RGB; the message lacks the path.
    """
    if path.is_dir():
        raise SlideError("is a folder: pass the slide's file in it")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise SlideError(f"cannot be opened ({error.strerror})") from error
    if not magic:
        raise SlideError("the file is empty: copy it again")
    openslide = package("openslide")
    vendor = openslide.OpenSlide.detect_format(path)
    if vendor is None or vendor == "generic-tiff":
        return TiffTiles(path) if magic in _TIFF else PlainImage(path)
    if magic in _TIFF and vendor != "hamamatsu":  # Hamamatsu's offsets beyond 4 GiB are not standard TIFF
        check_complete(path)
    slide = OpenSlideFile(path, openslide, vendor)
    tiles = _open_identical_tiles(path, slide) if vendor == "aperio" else None
    if tiles is None:
        return slide
    slide.close()
    return tiles


def _open_identical_tiles(path: pathlib.Path, slide: OpenSlideFile) -> TiffTiles | None:
    """Open the slide for reading tile by tile; None if the pixels would differ from OpenSlide's."""
    try:
        tiles = TiffTiles(path)
    except SlideError:
        return None
    sizes = [[(level.width, level.height) for level in backend.levels] for backend in (tiles, slide)]
    if not tiles.plain_jpeg or sizes[0] != sizes[1]:
        tiles.close()
        return None
    tiles.reader = f"{slide.reader}, its tiles by {tiles.reader}"
    tiles.stated_mpp, tiles.mpp_source = slide.stated_mpp, slide.mpp_source
    return tiles


def _plane_warnings(slide: Slide) -> list[str]:
    """What the user should know about the plane, if the file states that only a part was scanned."""
    if not slide.is_part:
        return []
    if slide.origin == "level0":
        return ["coordinates count from the corner of the whole level 0 (--origin level0), not as in QuPath"]
    (x, y), whole = slide.offset, slide.levels[0]
    size = f"{slide.width} × {slide.height} of {whole.width} × {whole.height} pixels were scanned"
    return [f"{size}: coordinates count from ({x}, {y}) of level 0, as in QuPath; --origin level0 uses the whole"]


class _Resolution(NamedTuple):
    """µm per level-0 pixel in x and y, where they come from, and warnings about them."""

    mpp: tuple[float, float]
    source: str
    warnings: list[str]


def _resolve_mpp(backend: Backend, given: float | None, override: float | None) -> _Resolution:
    """Decide the µm/px: the override, else what the file stores, else what is given.

    Raises:
      SlideError: the file stores none that is plausible, and none is given.
    """
    stated, source = backend.stated_mpp, backend.mpp_source
    text = "no µm/px" if stated is None else f"{_text(stated)} µm/px in {source}"
    if override is not None:
        warning = f"override_mpp {override:g} replaces what the file stores: {text}"
        return _Resolution((override, override), "given with override_mpp", [warning])
    plausible = stated is not None and all(_MIN_MPP <= value <= _MAX_MPP for value in stated)
    if stated is None or not plausible or max(stated) > _MAX_STRETCH * min(stated):
        if stated is not None:
            text = f"an implausible {text}"
        if given is None:
            raise SlideError(f"stores {text}: {_ASK_FOR_MPP}")
        return _Resolution((given, given), GIVEN + ("" if stated is None else f", since the file stores {text}"), [])
    warnings = []
    if max(stated) <= _SQUARE * min(stated):
        stated = (sum(stated) / 2,) * 2
    else:
        warnings.append(f"the file stores {text}: its pixels are not square")
    if given is not None and not all(value / _SAME <= given <= value * _SAME for value in stated):
        warnings.append(f"mpp {given:g} is not used: the file stores {text}; --override_mpp replaces it")
    return _Resolution(stated, source, warnings)


def _text(mpp: tuple[float, float]) -> str:
    x, y = (f"{value:.4g}" for value in mpp)
    return x if x == y else f"{x} × {y}"
