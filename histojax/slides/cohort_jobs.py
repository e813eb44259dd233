"""The slides of a cohort: from files, folders and CSV lists to one uniquely named job per slide."""

import dataclasses
import functools
import logging
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from data_pipelines.tables import path_in, read_table
from histojax.core.directories import expand_user
from histojax.core.errors import RunError
from histojax.core.printable import listed
from histojax.core.walk import find_files
from histojax.slides.annotations import regions
from histojax.slides.content import content_hash
from histojax.slides.readers import dicom

_log = logging.getLogger(__name__)
SUFFIXES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm", ".czi",
    ".jp2", ".png", ".jpg", ".jpeg", ".bmp",
)  # fmt: skip
_LISTED = 6
TILES_RECORD = "train_tiles.json"  # file that marks a folder of training tiles
_COLUMNS = ("slide", "mpp", "roi", "name", "override_mpp", "patient_id")


@dataclasses.dataclass(frozen=True)
class Job:
    """A slide to analyze.

    Attributes:
      name: name of its results folder, unique within a cohort.
      slide: the slide's file.
      mpp: µm per level-0 pixel if the file stores none.
      roi: file with the region of interest, as `regions.read` takes it, if given.
      override_mpp: µm per level-0 pixel, whatever the file stores.
      patient_id: the patient; empty if unknown.
      origin: where coordinates count from, see `reader.open_slide`.
    """

    name: str
    slide: pathlib.Path
    mpp: float | None = None
    roi: pathlib.Path | None = None
    override_mpp: float | None = None
    patient_id: str = ""
    origin: str = "qupath"

    @functools.cached_property
    def content(self) -> str | None:
        """Hash of the slide's bytes, which identifies it; None if the file is missing, empty or unreadable."""
        return content_hash(self.slide)


def find(
    paths: Sequence[str],
    mpp: float | None = None,
    roi: pathlib.Path | None = None,
    *,
    override_mpp: float | None = None,
    output: pathlib.Path | None = None,
) -> list[Job]:
    """List the slides that the user's paths stand for, in order.

    A slide's name depends only on how it is given, not on the other slides: the name in a list, else the file's name
    without suffix, preceded by its subfolders in a folder that is searched.

    Args:
      paths: slides; folders, searched by `walk.find_files` without training tiles that were cut from slides; CSV lists
        with a column `slide`, any of the columns `mpp`, `roi`, `name`, `override_mpp` and `patient_id`, and paths
        relative to the list. A missing slide becomes a job like any other, which later fails.
      mpp: µm per level-0 pixel of slides that store none, unless a list gives another.
      override_mpp: µm per level-0 pixel of slides, whatever they store, unless a list gives another.
      output: folder that the command writes to, which holds no slides.
      roi: file of annotations for the only slide, or a folder with one for some slides, which is named like the slide
        in the output, like its file or like its file without suffix: `regions.files_of`.

    Returns:
      One job per slide; files of the same content are one slide.

    Raises:
      RunError: a folder has no slides, a list has no or unknown columns or bad values, two slides have the same name,
        a slide is given twice with different settings, or two slides have the same file in the folder `roi`.
      DataError: a list cannot be read.
    """
    jobs: list[Job] = []
    for text in paths:
        path = expand_user(text).resolve()
        if path.suffix.lower() == ".csv":
            jobs += _from_list(path)
        elif path.is_dir():
            jobs += _from_folder(path, output)
        else:
            jobs.append(Job(_visible(path.stem), path))
    jobs = [dataclasses.replace(job, mpp=job.mpp or mpp, override_mpp=job.override_mpp or override_mpp) for job in jobs]
    jobs = _without_copies([_with_roi(job, roi, len(jobs)) for job in jobs])
    _check_names(jobs)
    _check_regions(jobs, roi)
    return jobs


def _from_folder(folder: pathlib.Path, output: pathlib.Path | None) -> list[Job]:
    """The slides in a folder, named by their path in it.

    Raises:
      RunError: it has none, or a folder in it cannot be read.
    """
    found = find_files(folder, SUFFIXES, skip=[output] if output else [])
    for line in found.report():
        _log.warning("%s", line)
    slides = [path for path in map(pathlib.Path, found.paths) if not _is_training_tile(path, folder)]
    if passed_over := len(found.paths) - len(slides):
        _log.warning("%d training tiles of `histojax slide train-tiles` are passed over", passed_over)
    if not slides:
        raise RunError(f"{folder}: the folder has no slides ({', '.join(SUFFIXES)})")
    return [Job("_".join(slide.relative_to(folder).with_suffix("").parts), slide) for slide in slides]


def _is_training_tile(path: pathlib.Path, root: pathlib.Path) -> bool:
    """Whether a file below `root` lies in a folder of training tiles below `root`."""
    folders = path.relative_to(root).parents
    return any((root / folder / TILES_RECORD).is_file() for folder in folders if folder != pathlib.Path())


def _from_list(path: pathlib.Path) -> Iterator[Job]:
    """The jobs of a CSV list."""
    columns, lines = read_table(path, pad=True)
    rows = list(lines)
    if not rows or "slide" not in columns:
        raise RunError(
            f"{path}: no rows, or no column `slide`; a list of slides has slide and any of {', '.join(_COLUMNS[1:])}"
        )
    unknown = [name for name in columns if name not in _COLUMNS]
    if unknown:
        raise RunError(f"{path}: unknown column {', '.join(unknown)}; the columns are {', '.join(_COLUMNS)}")
    for place, row in rows:
        if not row["slide"]:
            raise RunError(f"{place}: the column `slide` is empty")
        slide = path_in(path.parent, row["slide"])
        roi = path_in(path.parent, row["roi"]) if row.get("roi") else None
        mpp, override_mpp = (_mpp(row.get(column, ""), f"{place}: {column}") for column in ("mpp", "override_mpp"))
        yield Job(_name(row, slide, place), slide, mpp, roi, override_mpp, row.get("patient_id", ""))


def _name(row: Mapping[str, str], slide: pathlib.Path, place: str) -> str:
    """The name of a slide in a list: its cell `name`, else the file's name without suffix."""
    name = row.get("name") or _visible(slide.stem)
    if name.startswith(".") or "/" in name or "\\" in name:
        raise RunError(f"{place}: name '{name}' must be usable as the name of a folder: no /, \\ or leading dot")
    return name


def _mpp(text: str, place: str) -> float | None:
    """The µm per pixel in a cell of a list; None if the cell is empty."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise RunError(f"{place} '{text}' must be a number of µm per pixel above 0")
    return value


def _visible(name: str) -> str:
    """A name that no folder of results is hidden by."""
    return name.lstrip(".") or "_"


def _without_copies(jobs: Sequence[Job]) -> list[Job]:
    """Keep the first of the jobs whose slides have the same content.

    Raises:
      RunError: such jobs differ in the given µm/px, region of interest or patient.
    """
    first: dict[object, Job] = {}
    levels = 0
    for job in jobs:
        kept = first.setdefault(job.content or job.slide, job)
        if kept is job:
            continue
        if dataclasses.replace(job, name=kept.name, slide=kept.slide) != kept:
            raise RunError(
                f"{kept.slide} and {job.slide} are the same slide with different mpp, roi or patient_id: give it once"
            )
        if job.slide != kept.slide and job.slide in dicom.files(kept.slide):
            levels += 1
        else:
            _log.warning("%s: the same slide as %s; it is used once", job.slide, kept.slide)
    if levels:
        _log.info("%d DICOM files are further levels of a slide", levels)
    return list(first.values())


def _check_names(jobs: Sequence[Job]) -> None:
    """Raise RunError if two slides have the same name, even ignoring case."""
    first: dict[str, Job] = {}
    for job in jobs:
        kept = first.setdefault(job.name.casefold(), job)
        if kept is not job:
            raise RunError(
                f"{kept.slide} and {job.slide}: both slides have the name '{job.name}'. Pass the folder that holds "
                "both, or a CSV list with the columns slide,name"
            )


def _with_roi(job: Job, roi: pathlib.Path | None, jobs: int) -> Job:
    """The job with its region of interest from `--roi`, unless a list gave it one."""
    if roi is None or job.roi is not None:
        return job
    if roi.is_dir():
        found = regions.files_of(roi, [job.name]) or regions.files_of(roi, (job.slide.stem, job.slide.name))
        if len(found) > 1:
            raise RunError(f"{job.slide}: several regions, {' and '.join(map(str, found))}; keep one of them")
        return dataclasses.replace(job, roi=found[0]) if found else job
    if jobs > 1:
        raise RunError(f"--roi={roi} is one file for {jobs} slides: pass a folder of <slide name>.geojson, or a list")
    return dataclasses.replace(job, roi=roi)


def _check_regions(jobs: Sequence[Job], folder: pathlib.Path | None) -> None:
    """Say which slides have no region in the folder `--roi`, and which files there belong to no slide.

    Raises:
      RunError: two slides found the same file.
    """
    first: dict[pathlib.Path, Job] = {}
    for job in jobs:
        if job.roi is None or job.roi.parent != folder:
            continue
        kept = first.setdefault(job.roi, job)
        if kept is not job:
            raise RunError(
                f"{job.roi}: the region of both {kept.slide} and {job.slide}. Name the files like the slides' results: "
                f"{kept.name}.geojson, {job.name}.geojson"
            )
    if folder is None or not folder.is_dir():
        return
    without = [job.name for job in jobs if job.roi is None]
    unused = sorted(
        file.name for file in folder.iterdir() if file.name.endswith(regions.SUFFIXES) and file not in first
    )
    if without:
        _log.warning("%s has no region for %s: their whole tissue is measured", folder, listed(without, _LISTED))
    if unused:
        _log.warning("%s has regions of no slide: %s", folder, listed(unused, _LISTED))
