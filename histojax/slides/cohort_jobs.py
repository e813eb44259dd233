"""The slides of a cohort: from files, folders and CSV lists to one uniquely named job per slide."""

import collections
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence

from data_pipelines.tables import read_table
from histojax.core.errors import RunError

SUFFIXES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm", ".czi",
    ".jp2", ".png", ".jpg", ".jpeg", ".bmp",
)  # fmt: skip
_COLUMNS = ("slide", "mpp", "roi")


@dataclasses.dataclass(frozen=True)
class Job:
    """A slide to analyze.

    Attributes:
      name: name of its results folder, unique within a cohort.
      slide: the slide's file.
      mpp: µm per level-0 pixel as given by the user; None takes the value stored in the file.
      roi: GeoJSON file with the region of interest, if given.
    """

    name: str
    slide: pathlib.Path
    mpp: float | None = None
    roi: pathlib.Path | None = None


def find(paths: Sequence[str], mpp: float | None = None, roi: pathlib.Path | None = None) -> list[Job]:
    """List the slides that the user's paths stand for, in order.

    Args:
      paths: slides; folders, searched recursively; CSV lists with the columns `slide[,mpp[,roi]]` and paths relative
        to the list. A missing slide becomes a job like any other, which later fails.
      mpp: µm per level-0 pixel of slides without a value in a list.
      roi: GeoJSON file for the only slide, or a folder with `<slide name>.geojson` for some slides.

    Returns:
      One job per slide.

    Raises:
      RunError: a folder has no slides, a list has no or unknown columns or bad values, two slides share both file and
        folder name, or a slide is given twice.
      DataError: a list cannot be read.
    """
    jobs: list[Job] = []
    for text in paths:
        path = pathlib.Path(text).expanduser().resolve()
        if path.suffix.lower() == ".csv":
            jobs += _from_list(path, mpp)
        elif path.is_dir():
            slides = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not slides:
                raise RunError(f"{path}: the folder has no slides ({', '.join(SUFFIXES)})")
            jobs += [Job("", slide, mpp) for slide in slides]
        else:
            jobs.append(Job("", path, mpp))
    repeated = [str(path) for path, n in collections.Counter(job.slide for job in jobs).items() if n > 1]
    if repeated:
        raise RunError(f"{', '.join(repeated)}: given more than once")
    named = [dataclasses.replace(job, name=name) for job, name in zip(jobs, _unique_names(jobs), strict=True)]
    return [_with_roi(job, roi, len(named)) for job in named]


def _from_list(path: pathlib.Path, mpp: float | None) -> Iterator[Job]:
    """The jobs of a CSV list; `mpp` is for rows without a value."""
    columns, lines = read_table(path, pad=True)
    rows = list(lines)
    if not rows or "slide" not in columns:
        raise RunError(f"{path}: no rows, or no column `slide`; a list of slides has the columns slide[,mpp[,roi]]")
    unknown = [name for name in columns if name not in _COLUMNS]
    if unknown:
        raise RunError(f"{path}: unknown column {', '.join(unknown)}; the columns are {', '.join(_COLUMNS)}")
    for place, row in rows:
        if not row["slide"]:
            raise RunError(f"{place}: the column `slide` is empty")
        slide = path.parent / pathlib.Path(row["slide"]).expanduser()
        roi = path.parent / row["roi"] if row.get("roi") else None
        yield Job("", slide, _mpp(row.get("mpp", ""), place) or mpp, roi)


def _mpp(text: str, place: str) -> float | None:
    """The µm per pixel in a cell of a list; None if the cell is empty."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise RunError(f"{place}: mpp '{text}' must be a number of µm per pixel above 0")
    return value


def _unique_names(jobs: Sequence[Job]) -> list[str]:
    """The slides' file names without suffix, preceded by the folder's name where two are alike."""
    stems = [job.slide.stem for job in jobs]
    count = collections.Counter(stem.casefold() for stem in stems)
    names = [
        stem if count[stem.casefold()] == 1 else f"{job.slide.parent.name}_{stem}"
        for stem, job in zip(stems, jobs, strict=True)
    ]
    count = collections.Counter(name.casefold() for name in names)
    alike = [str(job.slide) for name, job in zip(names, jobs, strict=True) if count[name.casefold()] > 1]
    if alike:
        raise RunError(f"{', '.join(alike)}: the same file and folder names; pass these slides in separate commands")
    return names


def _with_roi(job: Job, roi: pathlib.Path | None, jobs: int) -> Job:
    """The job with its region of interest from `--roi`, unless a list gave it one."""
    if roi is None or job.roi is not None:
        return job
    if roi.is_dir():
        path = roi / f"{job.slide.stem}.geojson"
        return dataclasses.replace(job, roi=path) if path.is_file() else job
    if jobs > 1:
        raise RunError(f"--roi={roi} is one file for {jobs} slides: pass a folder of <slide name>.geojson, or a list")
    return dataclasses.replace(job, roi=roi)
