"""Many slides, one after another: each finished whole or not at all, none done twice, failures told and passed over.

A slide's folder is made under another name and renamed once everything in it is written, so whatever moment a process
is killed at, a folder of that name is a finished slide. `slides.csv` is made of these folders, never kept in memory.
"""

import dataclasses
import hashlib
import json
import logging
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import shapely
from tqdm import tqdm

from histojax.core.errors import RunError
from histojax.core.files import atomic_write
from histojax.core.settings import diff_settings
from histojax.slides import geojson, grid, maps, summary, tile_table
from histojax.slides.annotations import regions
from histojax.slides.cohort_jobs import Job
from histojax.slides.geometry import Geometry
from histojax.slides.labels import PREFIX, unique_file_names
from histojax.slides.readers.reader import Slide, open_slide
from histojax.slides.tissue import TissueSpec, find_tissue
from histojax.slides.tsr import tsr
from histojax.slides.tsr.spec import TSRSpec

_log = logging.getLogger(__name__)
_RECORD, _FIGURES = "slide.json", "tsr.json"
_THUMBNAIL = 2048  # pixels of the overlay's longer side
_DONE, _FAILED = "done", "failed"


@dataclasses.dataclass(frozen=True)
class Model:
    """What tiles are asked of.

    Attributes:
      labels: names in the order of the probabilities.
      thresholds: of each label; None where the classes exclude each other.
      image_size: height and width of the pixels that it sees.
      tile_um: side in µm of what such an image shows.
      batch_size: images in a batch.
      stream: batches `u8 [b, s, s, 3]` -> probabilities `f32 [b, k]`, in order, b up to `batch_size`.
      confusion: of each label [tn, fp, fn, tp] on validation images; None: not known.
      facts: JSON-able: what it is and where it comes from.
    """

    labels: tuple[str, ...]
    thresholds: Mapping[str, float] | None
    image_size: int
    tile_um: float
    batch_size: int
    stream: Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]
    confusion: Mapping[str, Sequence[int]] | None
    facts: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How slides are worked on.

    Attributes:
      tissue: what counts as tissue.
      overlap: share of a tile's side that it has in common with its neighbour, in [0, 1).
      min_tissue: least share of tissue in a tile.
      tsr: how the tumor-to-stroma ratio is measured; None: the model has no such labels.
      threads: that read the slide.
      compress: whether the GeoJSON is written as .geojson.gz.
    """

    tissue: TissueSpec = dataclasses.field(default_factory=TissueSpec)
    overlap: float = 0.0
    min_tissue: float = 0.5
    tsr: TSRSpec | None = None
    threads: int = 4
    compress: bool = False


def run(jobs: Sequence[Job], model: Model, settings: Settings, output: pathlib.Path, *, redo: bool = False) -> int:
    """Works on every slide that is not finished; returns how many failed.

    A finished one is left as it is. A failed one is tried again. `slides.csv` is written anew after each slide, from
    whatever finished and failed in `output`, also by other processes.

    Raises:
      RunError: a finished slide was worked on in another way, and `redo` is not set; nothing is done then.
    """
    output.mkdir(parents=True, exist_ok=True)
    asked = {job.name: _fingerprint(job, model, settings) for job in jobs}
    finished = set()
    for job in jobs if not redo else ():
        record = _read(output / job.name / _RECORD)
        if record.get("status") == _DONE:
            _check_same(output / job.name, record["settings"], asked[job.name])
            finished.add(job.name)
    failed = 0
    for number, job in enumerate(jobs, start=1):
        place = f"[{number}/{len(jobs)}] {job.name}"
        if job.name in finished:
            _log.info("%s: finished before", place)
            continue
        started = time.monotonic()
        partial = output / f".{job.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        record = {"status": _DONE, "name": job.name, "slide": str(job.slide), "settings": asked[job.name]}
        try:
            facts, line = _work(job, model, settings, partial)
            record |= {"facts": facts, "seconds": round(time.monotonic() - started, 2)}
        except Exception as error:  # a slide that breaks the program must not take the cohort with it
            failed += 1
            shutil.rmtree(partial)
            partial.mkdir()
            line = f"failed: {_in_words(error)}"
            record |= {"status": _FAILED, "reason": _in_words(error)}
            if not isinstance(error, RunError | OSError):
                _log.exception("%s: an error that is not the slide's: please report it", place)
        (partial / _RECORD).write_text(json.dumps(record, indent=1) + "\n")
        shutil.rmtree(output / job.name, ignore_errors=True)
        partial.rename(output / job.name)
        _log.info("%s: %s", place, line)
        write_table(output)
    write_table(output)
    return failed


def write_table(output: pathlib.Path) -> None:
    """Writes `slides.csv`, a row a slide that finished or failed, by name."""
    rows = []
    for path in sorted(output.glob(f"*/{_RECORD}")):
        record = _read(path)
        facts = record.get("facts", {})
        row = {key: record.get(key) for key in ("name", "status", "reason", "slide")} | facts
        row["seconds"] = record.get("seconds")
        rows.append(row | _figures(_read(path.with_name(_FIGURES))))
    with atomic_write(output / "slides.csv") as temporary:
        # Whole numbers stay whole in columns that not every slide has.
        pd.DataFrame(rows).convert_dtypes().to_csv(temporary, index=False, lineterminator="\n")


def _work(job: Job, model: Model, settings: Settings, folder: pathlib.Path) -> tuple[dict[str, Any], str]:
    """Everything that is made of one slide, in `folder`; the facts for `slides.csv` and a line for the terminal."""
    with open_slide(job.slide, job.mpp) as slide:
        tissue = find_tissue(slide, settings.tissue)
        tissue.write(folder / "tissue.png")
        spec = grid.GridSpec(model.image_size, model.tile_um / model.image_size, settings.overlap, settings.min_tissue)
        geometry, table = grid.make_grid(slide, tissue, spec)
        probabilities = _predict(slide, table, model, settings, job.name)
        for i, label in enumerate(model.labels):
            table[PREFIX + label] = probabilities[:, i]
        thumbnail = slide.thumbnail(_THUMBNAIL)
        areas = tissue.mm2(slide.mpp)
        facts = {
            "reader": slide.reader,
            "width": slide.width,
            "height": slide.height,
            "mpp": slide.mpp,
            "mpp_source": slide.mpp_source,
            "tiles": len(table),
            **{f"{kind}_mm2": round(area, 4) for kind, area in areas.items()},
        }
    outlines: dict[str, Any] = {}
    warnings: list[str] = []
    if slide.mpp > 1.1 * spec.mpp:
        warnings.append(
            f"{slide.mpp:.4g} µm/px are coarser than the {spec.mpp:.4g} that the model sees: tiles are enlarged"
        )
    inside = None
    if job.roi is not None:
        found, beyond = regions.clip(regions.read(job.roi), geometry.width, geometry.height, job.roi)
        warnings += beyond
        warnings += [f"{job.roi}, {one.feature}: its outline crosses itself; mended" for one in found if one.repaired]
        shape = regions.union(found)
        outlines, inside = {"region of interest": shape}, regions.inside(table, shape)
    measured = None
    if settings.tsr is not None:
        measured = tsr.measure(table, geometry, settings.tsr, inside, model.confusion)
        _write_json(folder / _FIGURES, measured)
        if box := measured["areas"]["hot spot"]["box"]:
            right, bottom = box["minx"] + box["width"], box["miny"] + box["height"]
            outlines["hot spot"] = shapely.box(box["minx"], box["miny"], right, bottom)
    pictures = _write_maps(folder, job.name, table, geometry, thumbnail, model, settings, outlines)
    page = {
        "slide": facts | {"name": job.name, "path": job.slide.name},
        "model": dict(model.facts) | {"labels": model.labels, "thresholds": model.thresholds, "tile_um": model.tile_um},
        "tissue": areas,
        "tiles": len(table),
        "tsr": measured,
        "warnings": warnings,
    }
    summary.write(folder / "summary.html", page, pictures)
    return facts, f"{len(table)} tiles" + _headline(measured)


def _predict(slide: Slide, table: pd.DataFrame, model: Model, settings: Settings, name: str) -> np.ndarray:
    """Probabilities `f32 [n, k]` of a slide's tiles; the slide is read while the model computes."""
    out = np.zeros((len(table), len(model.labels)), np.float32)
    batches = grid.read_tiles(slide, table, model.image_size, model.batch_size, settings.threads)
    done = 0
    try:
        with tqdm(total=len(table), desc=name, unit="tile", leave=False, disable=None, mininterval=1) as bar:
            for rows in model.stream(batches):
                out[done : done + len(rows)] = rows
                done += len(rows)
                bar.update(len(rows))
    finally:
        batches.close()
    return out


def _write_maps(
    folder: pathlib.Path, name: str, table: pd.DataFrame, geometry: Geometry, thumbnail: np.ndarray, model: Model,
    settings: Settings, outlines: Mapping[str, Any],
) -> dict[str, pathlib.Path]:  # fmt: skip
    """Writes table, GeoJSON and pictures; returns those for the summary, by their captions."""
    tile_table.write(table, folder)
    suffix = ".geojson.gz" if settings.compress else ".geojson"
    geojson.write_tiles(table, folder / f"tiles{suffix}", slide=name, thresholds=model.thresholds)
    overlay = folder / "overlay.png"
    maps.write_overlay(overlay, table, geometry, thumbnail, slide=name, thresholds=model.thresholds, outlines=outlines)
    pictures = {"predicted labels on the slide": overlay}
    for label, file_name in unique_file_names(model.labels).items():
        pictures[f"probability of {label}"] = folder / f"heatmap_{file_name}.png"
        maps.write_heatmap(pictures[f"probability of {label}"], table, geometry, label, slide=name)
    maps.write_ome_tiff(folder / "heatmap.tif", table, geometry, slide=name)
    return pictures


def _headline(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return ""
    area = measured["areas"]["region" if "region" in measured["areas"] else "whole tissue"]
    if area["status"] != "evaluated":
        return f", not evaluable: {area['reason']}"
    figure = area["stroma_percentage"]
    if figure["value"] is None:
        return f", no stroma percentage: {figure['reason']}"
    between = "" if figure["low"] is None else f" [{figure['low']:.1f}, {figure['high']:.1f}]"
    return f", stroma percentage {figure['value']:.1f}{between}, {area['stroma_class']['name']}"


def _figures(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What `slides.csv` says of the ratio: a column an area and figure."""
    row: dict[str, Any] = {}
    for area, block in measured.get("areas", {}).items():
        start = "" if area == "whole tissue" else area.replace(" ", "_") + "_"
        row |= {f"{start}ratio": block["status"], f"{start}why_not": block["reason"]}
        for label, counted in block["labels"].items():
            row[f"{start}{label}_mm2"] = counted["mm2"]
        for name in ("tsr", "stroma_percentage", "tumor_percentage", "necrosis_share"):
            row |= {f"{start}{name}": block[name]["value"], f"{start}{name}_low": block[name]["low"]}
            row[f"{start}{name}_high"] = block[name]["high"]
        row[f"{start}stroma_class"] = block["stroma_class"]["name"]
    return row


def _fingerprint(job: Job, model: Model, settings: Settings) -> dict[str, Any]:
    """Everything that the results of a slide depend on, by name."""
    facts = {
        "slide": job.slide.name,
        "slide_bytes": job.slide.stat().st_size if job.slide.is_file() else None,
        "mpp": job.mpp,
        "roi": hashlib.sha256(job.roi.read_bytes()).hexdigest()[:16] if job.roi and job.roi.is_file() else None,
        "model": dict(model.facts),
        "tile_um": model.tile_um,
        "overlap": settings.overlap,
        "min_tissue": settings.min_tissue,
        "tissue": dataclasses.asdict(settings.tissue),
        "tsr": None if settings.tsr is None else dataclasses.asdict(settings.tsr),
    }
    return dict(json.loads(json.dumps(facts)))  # as it is read back


def _check_same(folder: pathlib.Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    if differing := diff_settings(there, here):
        lines = [
            f"{folder} was made in another way:",
            *differing.values(),
            "Choose another --output, or make it anew with --redo.",
        ]
        raise RunError("\n".join(lines))


def _in_words(error: Exception) -> str:
    if isinstance(error, RunError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
    return f"{type(error).__name__}: {error}"


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
