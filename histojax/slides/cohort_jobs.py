"""Which slides a command line means: files, folders and lists, each slide under a name of its own."""

import collections
import csv
import dataclasses
import math
import pathlib
from collections.abc import Iterable, Sequence

from histojax.core.errors import RunError

SUFFIXES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm", ".czi",
    ".jp2", ".png", ".jpg", ".jpeg", ".bmp",
)  # fmt: skip
_COLUMNS = ("slide", "mpp", "roi")


@dataclasses.dataclass(frozen=True)
class Job:
    """A slide to be worked on.

    Attributes:
      name: of its folder of results; no two of a cohort are alike.
      slide: its file.
      mpp: µm per level-0 pixel, where it was given; None: the file's own.
      roi: GeoJSON of a region of interest, where it was given.
    """

    name: str
    slide: pathlib.Path
    mpp: float | None = None
    roi: pathlib.Path | None = None


def find(paths: Sequence[str], mpp: float | None = None, roi: pathlib.Path | None = None) -> list[Job]:
    """The slides that are meant, in order.

    Args:
      paths: slides; folders, searched with all below them; lists (.csv) with the columns `slide[,mpp[,roi]]`, paths
        relative to the list. A slide that is not there is a job like any other, to be told as failed.
      mpp: of every slide that has none in a list.
      roi: GeoJSON of the only slide, or a folder with `<slide's name>.geojson` for those that have one.

    Raises:
      RunError: a folder without slides, a list that is none, two slides of one name that their folders do not tell
        apart, the same slide twice.
    """
    found: list[Job] = []
    for text in paths:
        path = pathlib.Path(text).expanduser().resolve()
        if path.suffix.lower() == ".csv":
            found += _listed(path, mpp)
        elif path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise RunError(f"{path}: no slide below this folder ({', '.join(SUFFIXES)})")
            found += [Job("", slide, mpp) for slide in inside]
        else:
            found.append(Job("", path, mpp))
    repeated = [str(path) for path, n in collections.Counter(job.slide for job in found).items() if n > 1]
    if repeated:
        raise RunError(f"{', '.join(repeated)}: given more than once")
    named = [dataclasses.replace(job, name=name) for job, name in zip(found, _names(found), strict=True)]
    return [_with_roi(job, roi, len(named)) for job in named]


def _listed(path: pathlib.Path, mpp: float | None) -> Iterable[Job]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path}: not readable as a list of slides ({error})") from error
    if not rows or "slide" not in rows[0]:
        raise RunError(f"{path}: no rows, or no column `slide`; a list of slides has the columns slide[,mpp[,roi]]")
    unknown = [name for name in rows[0] if name not in (*_COLUMNS, None)]
    if unknown:
        raise RunError(f"{path}: unknown column {', '.join(unknown)}; a list of slides has {', '.join(_COLUMNS)}")
    for line, row in enumerate(rows, start=2):
        if None in row:  # where csv puts what is too much
            raise RunError(f"{path}, line {line}: more values than columns; a comma in a path needs quotes around it")
        if not row["slide"]:
            raise RunError(f"{path}, line {line}: no slide is named")
        roi = path.parent / row["roi"] if row.get("roi") else None
        yield Job(
            "", path.parent / pathlib.Path(row["slide"]).expanduser(), _mpp(row.get("mpp"), path, line) or mpp, roi
        )


def _mpp(text: str | None, path: pathlib.Path, line: int) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise RunError(f"{path}, line {line}: mpp '{text}' is no number of µm per pixel")
    return value


def _names(jobs: Sequence[Job]) -> list[str]:
    """The files' names without their endings; where two are alike, with the folder before them."""
    stems = [job.slide.stem for job in jobs]
    count = collections.Counter(stem.casefold() for stem in stems)
    names = [
        stem if count[stem.casefold()] == 1 else f"{job.slide.parent.name}_{stem}"
        for stem, job in zip(stems, jobs, strict=True)
    ]
    count = collections.Counter(name.casefold() for name in names)
    alike = [str(job.slide) for name, job in zip(names, jobs, strict=True) if count[name.casefold()] > 1]
    if alike:
        raise RunError(f"{', '.join(alike)}: slides of one name in folders of one name; give them in separate commands")
    return names


def _with_roi(job: Job, roi: pathlib.Path | None, jobs: int) -> Job:
    if roi is None or job.roi is not None:
        return job
    if roi.is_dir():
        path = roi / f"{job.slide.stem}.geojson"
        return dataclasses.replace(job, roi=path) if path.is_file() else job
    if jobs > 1:
        raise RunError(f"--roi={roi} is one file for {jobs} slides: give a folder of <slide's name>.geojson, or a list")
    return dataclasses.replace(job, roi=roi)
