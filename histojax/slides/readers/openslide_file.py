"""Scanner formats, read by OpenSlide."""

import pathlib
from typing import Any

import numpy as np

from histojax.slides.readers.backend import CACHE_BYTES, Level, SlideError, on_white


class OpenSlideFile:
    """A file in a scanner's format, read by OpenSlide.

    Raises:
      SlideError: OpenSlide cannot open the file.
    """

    def __init__(self, path: pathlib.Path, openslide: Any, vendor: str) -> None:
        self._path, self._openslide = path, openslide
        self._slide = self._open()
        self.reader = f"OpenSlide {openslide.__library_version__} ({vendor})"
        sizes = zip(self._slide.level_dimensions, self._slide.level_downsamples, strict=True)
        self.levels = tuple(Level(width, height, downsample) for (width, height), downsample in sizes)
        self.stated_mpp: tuple[float, float] | None = None
        self.mpp_source = f"the {vendor} header"
        stated = [self._slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
        if all(stated):
            self.stated_mpp = (float(stated[0]), float(stated[1]))
        part = [self._slide.properties.get(f"openslide.bounds-{name}") for name in ("x", "y", "width", "height")]
        self.bounds: tuple[int, int, int, int] | None = None
        if all(part):
            x, y, width, height = (int(number) for number in part)
            self.bounds = (x, y, width, height)

    def region(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """See `Backend`."""
        slide = self._slide
        downsample = self.levels[level].downsample
        try:
            image = slide.read_region((round(x * downsample), round(y * downsample)), level, (width, height))
        except self._openslide.OpenSlideError as error:
            # After an error a handle answers every call with that error. Other threads may still be reading
            # from this handle, so it is left to the garbage collector.
            self._slide = self._open()
            raise SlideError(f"OpenSlide reports: {error}") from error
        return on_white(np.asarray(image))

    def close(self) -> None:
        """See `Backend`."""
        self._slide.close()

    def _open(self) -> Any:
        try:
            slide = self._openslide.OpenSlide(self._path)
        except self._openslide.OpenSlideError as error:
            raise SlideError(f"damaged or truncated: OpenSlide reports: {error}") from error
        slide.set_cache(self._openslide.OpenSlideCache(CACHE_BYTES))
        return slide
