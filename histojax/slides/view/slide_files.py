"""Where the slides of a cohort are now: known by their bytes, since a file of the same name may be another slide."""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from histojax.core.errors import RunError
from histojax.core.walk import find_files
from histojax.slides.cohort_jobs import SUFFIXES
from histojax.slides.content import content_hash


class SlideMissing(RunError):
    """A slide that is not shown; the message says why."""


class SlideFiles:
    """Finds the files of analyzed slides.

    Args:
      folder: where to look first, by file name; None: only where a slide was when it was analyzed.

    Raises:
      RunError: the folder does not exist or cannot be read.
    """

    def __init__(self, folder: pathlib.Path | None = None) -> None:
        if folder is not None and not folder.is_dir():
            raise RunError(f"--slides={folder}: no such folder; give the folder where the slides are now")
        self._by_name: dict[str, list[pathlib.Path]] = {}
        for path in map(pathlib.Path, find_files(folder, SUFFIXES).paths if folder else ()):
            self._by_name.setdefault(path.name, []).append(path)

    def find(self, record: Mapping[str, Any]) -> pathlib.Path:
        """Return the file of a slide.

        Args:
          record: content of its `slide.json`.

        Raises:
          SlideMissing: it is not there, or it has changed.
        """
        recorded, content = pathlib.Path(record["slide"]), record["settings"]["content"]
        places = [path for path in (*self._by_name.get(recorded.name, ()), recorded) if path.is_file()]
        for path in places:
            if _content(path, path.stat().st_mtime_ns) == content:
                return path
        if places:
            raise SlideMissing(f"{places[0]} has changed since its analysis, so its pixels are not shown.")
        raise SlideMissing(f"{recorded} was not found. --slides DIR says where the slides are now.")


@functools.lru_cache(maxsize=4096)
def _content(path: os.PathLike[str], _modified: int) -> str | None:
    """The hash of a file, computed once while the file does not change."""
    return content_hash(pathlib.Path(path))
