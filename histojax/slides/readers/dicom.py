"""DICOM slides: each level of the pyramid is a file, and the files of one series in one folder are one slide."""

import functools
import pathlib

from histojax.slides.readers.backend import package

SUFFIX = ".dcm"


def files(path: pathlib.Path) -> list[pathlib.Path]:
    """Return the files of the slide that a DICOM file belongs to, sorted; for any other file only the file itself.

    OpenSlide reads all of them, whichever it is given.
    """
    if path.suffix.lower() != SUFFIX or not path.is_file() or not (series := _series(path)):
        return [path]
    beside = (other for other in path.parent.iterdir() if other.suffix.lower() == SUFFIX and other.is_file())
    return sorted(other for other in beside if _series(other) == series)


def _series(path: pathlib.Path) -> str:
    """The series of a file; empty if OpenSlide cannot open it."""
    state = path.stat()
    return _series_of(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _series_of(path: pathlib.Path, size: int, changed: int) -> str:
    """The series; size and time of the last change tell a file from an earlier one of its name."""
    openslide = package("openslide")
    try:
        with openslide.OpenSlide(path) as slide:
            return str(slide.properties.get("dicom.SeriesInstanceUID", ""))
    except openslide.OpenSlideError:  # opening the slide itself reports the reason
        return ""
