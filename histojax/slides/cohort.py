"""Analysis of many slides, one after another: resumable, and a failed slide is reported and skipped.

The results of a slide are written to a temporary folder, which is renamed when it is complete. A folder with the
slide's name is therefore always a finished slide, whenever the process was killed. `slides.csv` is built from these
folders and never kept in memory.
"""

import dataclasses
import hashlib
import json
import logging
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from histojax.core.csv_format import csv_quoting
from histojax.core.errors import RunError
from histojax.core.files import atomic_write, read_json, write_json
from histojax.core.settings import diff_settings
from histojax.slides.annotations import regions
from histojax.slides.cohort_jobs import Job
from histojax.slides.readers.reader import GIVEN
from histojax.slides.slide_analysis import TSR_FILE, Model, Settings, analyze

__all__ = ["DONE", "RECORD", "Model", "Settings", "records", "run", "write_table"]

_log = logging.getLogger(__name__)
RECORD = "slide.json"
DONE, FAILED = "done", "failed"


def run(jobs: Sequence[Job], model: Model, settings: Settings, output: pathlib.Path, *, redo: bool = False) -> int:
    """Analyze every slide that is not finished yet.

    Finished slides stay as they are, failed ones are tried again. `slides.csv` is rewritten after each slide from all
    slides in `output` that finished or failed, including those of other processes.

    Args:
      jobs: the slides.
      model: the model that predicts their tiles.
      settings: how they are analyzed.
      output: the folder with one subfolder per slide.
      redo: analyze finished slides again.

    Returns:
      The number of slides that failed.

    Raises:
      RunError: a slide was analyzed with other settings and `redo` is not set, or its folder holds another slide;
        nothing is written then.
      RegionError: a region of interest cannot be used; nothing is written then.
    """
    finished = {folder: record for folder, record in records(output).items() if record.get("status") == DONE}
    folders = {job: _folder(job, finished, output, redo) for job in jobs}
    requested = {job: _settings(job, model, settings) for job in jobs}
    if redo:
        finished = {}
    for job, folder in folders.items():
        if folder in finished:
            _check_settings(folder, finished[folder]["settings"], requested[job])
    for job, folder in folders.items():
        if job.roi is not None and folder not in finished:
            regions.read(job.roi)  # a bad file is refused now, not after hours
    output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for number, job in enumerate(jobs, start=1):
        folder = folders[job]
        progress = f"[{number}/{len(jobs)}] {job.name}"
        if folder in finished:
            _log.info("%s: already finished%s", progress, "" if folder.name == job.name else f" as {folder.name}")
            if job.patient_id:  # no result depends on it, so a list may add or correct it later
                write_json(folder / RECORD, finished[folder] | {"patient_id": job.patient_id})
            continue
        failed += not _run_one(job, model, settings, requested[job], folder, progress)
        write_table(output)
    write_table(output)
    return failed


def write_table(output: pathlib.Path) -> None:
    """Write `slides.csv` with one row per slide that finished or failed, sorted by name."""
    rows = []
    for folder, record in records(output).items():
        row = {key: record.get(key) for key in ("name", "patient_id", "status", "reason", "slide", "roi")}
        row["content"] = _content(record)
        row |= record.get("facts", {}) | {"warnings": "; ".join(record.get("warnings", []))}
        row["seconds"] = record.get("seconds")
        rows.append(row | _ratio_columns(read_json(folder / TSR_FILE) or {}))
    with atomic_write(output / "slides.csv") as temporary:
        # convert_dtypes keeps integers as integers in columns with missing values.
        table, quoting = pd.DataFrame(rows).convert_dtypes(), csv_quoting(cell for row in rows for cell in row.values())
        table.to_csv(temporary, index=False, lineterminator="\n", quoting=quoting)


def records(output: pathlib.Path) -> dict[pathlib.Path, dict[str, Any]]:
    """The records of all slides in `output` by folder, sorted by name; hidden folders are unfinished."""
    paths = sorted(path for path in output.glob(f"*/{RECORD}") if not path.parent.name.startswith("."))
    return {path.parent: read_json(path) or {} for path in paths}


def _folder(
    job: Job, finished: Mapping[pathlib.Path, Mapping[str, Any]], output: pathlib.Path, redo: bool
) -> pathlib.Path:
    """The folder of a slide's results: where the same content was analyzed before, else the one of its name.

    Raises:
      RunError: the folder of its name holds another slide, or `redo` is not set and the slide has changed.
    """
    for folder, record in finished.items():
        if job.content and _content(record) == job.content:
            return folder
    folder = output / job.name
    if folder not in finished:
        return folder
    earlier = finished[folder]
    if earlier["slide"] != str(job.slide):
        raise RunError(
            f"{folder} holds the results of another slide, {earlier['slide']}, not of {job.slide}. Choose another "
            "--output, or name the slide in a CSV list with the columns slide,name."
        )
    if job.content and _content(earlier) and not redo:
        raise RunError(
            f"{job.slide} has changed since {folder} was made. Choose another --output, or overwrite it with --redo."
        )
    return folder


def _content(record: Mapping[str, Any]) -> str | None:
    """The hash of the slide's bytes in its record; None if they could not be read."""
    return record.get("settings", {}).get("content")


def _check_settings(folder: pathlib.Path, saved: Mapping[str, Any], requested: Mapping[str, Any]) -> None:
    """Raise RunError if a finished slide was analyzed with other settings than requested."""
    if requested["content"] is None:  # the file cannot be read now, so its results cannot be outdated
        saved = {**saved, "content": None}
    if saved.get("mpp") is None:  # the file states its µm/px, so a given one changes nothing
        requested = {**requested, "mpp": None}
    if saved.get("origin") is None:  # the whole plane was scanned, so there is one origin
        requested = {**requested, "origin": None}
    if differences := diff_settings(saved, requested):
        lines = [f"{folder} was made with different settings:", *differences.values()]
        raise RunError("\n".join([*lines, "Choose another --output, or overwrite it with --redo."]))


def _run_one(
    job: Job, model: Model, settings: Settings, requested: dict[str, Any], folder: pathlib.Path, progress: str
) -> bool:
    """Analyze one slide, write its folder and report it; return whether it succeeded."""
    started = time.monotonic()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    partial.mkdir()
    record: dict[str, Any] = {"status": DONE, "name": folder.name, "slide": str(job.slide)}
    record |= {"roi": str(job.roi) if job.roi else None, "settings": requested}
    if job.patient_id:
        record["patient_id"] = job.patient_id
    record["thresholds"] = None if model.thresholds is None else dict(model.thresholds)
    try:
        analysis = analyze(job, model, settings, partial)
        headline = analysis.headline
        record |= {"facts": analysis.facts, "warnings": analysis.warnings}
        record["seconds"] = round(time.monotonic() - started, 2)
        if not analysis.facts["mpp_source"].startswith(GIVEN):
            requested["mpp"] = None  # was not needed
        if not analysis.is_part:
            requested["origin"] = None
        for warning in analysis.warnings:
            _log.warning("%s: warning: %s", progress, warning)
    except Exception as error:  # an unexpected failure of one slide must not end the cohort
        shutil.rmtree(partial)
        partial.mkdir()
        headline = f"failed: {_reason(error)}"
        record |= {"status": FAILED, "reason": _reason(error)}
        if not isinstance(error, RunError | OSError):
            _log.exception("%s: unexpected error in the program, please report it", progress)
    (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    _log.info("%s: %s", progress, headline)
    return bool(record["status"] == DONE)


def _ratio_columns(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of `slides.csv` for the tumor-to-stroma ratio, one per area and figure."""
    row: dict[str, Any] = {"model": measured.get("model", {}).get("status")}
    for area, block in measured.get("areas", {}).items():
        prefix = "" if area == "whole tissue" else area.replace(" ", "_") + "_"
        row |= {f"{prefix}ratio": block["status"], f"{prefix}why_not": block["reason"]}
        for label, counts in block["labels"].items():
            row[f"{prefix}{label}_mm2"] = counts["mm2"]
        row[f"{prefix}tumor_and_stroma_mm2"] = block["tumor_mm2"] + block["stroma_mm2"]  # divides the percentages
        for name in ("tsr", "stroma_percentage", "tumor_percentage", "necrosis_share"):
            row |= {f"{prefix}{name}": block[name]["value"], f"{prefix}{name}_low": block[name]["low"]}
            row[f"{prefix}{name}_high"] = block[name]["high"]
        row[f"{prefix}stroma_class"] = block["stroma_class"]["name"]
        corrected = block.get("corrected") or {}  # files of earlier versions have none
        for end, key in (("", "value"), ("_low", "low"), ("_high", "high")):
            row[f"{prefix}stroma_percentage_corrected{end}"] = corrected.get(key)
    return row


def _settings(job: Job, model: Model, settings: Settings) -> dict[str, Any]:
    """Everything that a slide's results depend on, by name."""
    facts = {
        "content": job.content,
        "mpp": job.mpp,
        "override_mpp": job.override_mpp,
        "origin": job.origin,
        "roi": hashlib.sha256(job.roi.read_bytes()).hexdigest()[:16] if job.roi and job.roi.is_file() else None,
        "model": dict(model.facts),
        "tile_um": model.tile_um,
        "overlap": settings.overlap,
        "min_tissue": settings.min_tissue,
        "tissue": dataclasses.asdict(settings.tissue),
        "tsr": None if settings.tsr is None else dataclasses.asdict(settings.tsr),
    }
    if model.novelty:  # not null without it, so that slides of earlier versions are kept
        facts["novelty"] = model.novelty.digest
    return dict(json.loads(json.dumps(facts)))  # as it will be read back


def _reason(error: Exception) -> str:
    """The error as one line for `slides.csv`."""
    if isinstance(error, RunError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
    return f"{type(error).__name__}: {error}"
