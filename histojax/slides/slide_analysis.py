"""Analysis of one slide: tissue, tiles, predictions, tumor-to-stroma ratio, maps and a summary page in one folder."""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import shapely
from shapely.geometry.base import BaseGeometry
from tqdm import tqdm

from data_pipelines.stain import StainNormalizer
from histojax.core.errors import RunError
from histojax.core.files import write_json
from histojax.slides import geojson, grid, maps, novel_tiles, pictures, summary, tile_table
from histojax.slides.annotations import regions
from histojax.slides.cohort_jobs import Job
from histojax.slides.geometry import Geometry
from histojax.slides.labels import PREFIX, unique_file_names
from histojax.slides.readers.reader import Slide, open_slide
from histojax.slides.tissue import PALETTE_KEY, TissueSpec, find_tissue
from histojax.slides.tsr import tsr
from histojax.slides.tsr.model_errors import CANNOT_TELL, NOT_SHOWN
from histojax.slides.tsr.spec import TSRSpec

TSR_FILE = "tsr.json"
_TISSUE = "tissue.png"
_NOT_NORMALISED = (
    "{} of {} tiles have too little tissue for stain normalisation: the model saw them as they are (column "
    "stain_normalised of tiles.csv)"
)
_THUMBNAIL = 2048  # pixels of the overlay's longer side


@dataclasses.dataclass(frozen=True)
class Model:
    """The model that predicts tiles.

    Attributes:
      labels: label names, in the order of the probabilities.
      thresholds: label to threshold; None for exclusive classes.
      image_size: side of the model's square input in pixels.
      tile_um: side in µm of the area that an input shows.
      batch_size: images per batch.
      stream: maps batches `u8 [b, s, s, 3]` to probabilities `f32 [b, k]` in order; b is at most `batch_size`.
      confusion: counts of each label on validation images, as for `corrected_percentage`; None if unknown.
      facts: JSON-able description of the model and its origin.
      warnings: sentences about the model that every result shows.
      stain: brings each tile to the colours that the model was trained on; None: tiles stay as they are.
      novelty: how unlike the model's training images tiles are; None: unknown.
    """

    labels: tuple[str, ...]
    thresholds: Mapping[str, float] | None
    image_size: int
    tile_um: float
    batch_size: int
    stream: Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]
    confusion: Mapping[str, Any] | None
    facts: Mapping[str, Any]
    warnings: Sequence[str] = ()
    stain: StainNormalizer | None = None
    novelty: novel_tiles.Scorer | None = None

    def grid_spec(self, settings: "Settings") -> grid.GridSpec:
        """The tiles of a slide for this model.

        Raises:
          RunError: the settings or the model's tile size are out of range.
        """
        mpp = self.tile_um / self.image_size
        return grid.GridSpec(self.image_size, mpp, settings.overlap, settings.min_tissue)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings for the analysis of slides; raises RunError for an invalid field.

    Attributes:
      tissue: what counts as tissue.
      overlap: fraction of a tile's side shared with its neighbour, in [0, 1).
      min_tissue: smallest fraction of tissue in a tile.
      tsr: how the tumor-to-stroma ratio is measured; None if the model lacks the labels.
      threads: threads that read the slide, at least 1.
      compress: write .geojson.gz instead of .geojson.
    """

    tissue: TissueSpec = dataclasses.field(default_factory=TissueSpec)
    overlap: float = 0.0
    min_tissue: float = 0.5
    tsr: TSRSpec | None = None
    threads: int = 4
    compress: bool = False

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise RunError(f"--threads {self.threads} must be 1 or more")


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The result for one slide.

    Attributes:
      facts: the slide's columns in `slides.csv`, except those of the ratio.
      warnings: sentences that a user should see.
      headline: one line for the terminal.
      is_part: whether the slide's file states that only a part was scanned, so that `Job.origin` matters.
    """

    facts: dict[str, Any]
    warnings: list[str]
    headline: str
    is_part: bool


@dataclasses.dataclass(frozen=True)
class _Tiles:
    """The predicted tiles of a slide, with everything else that was read from its file."""

    table: pd.DataFrame
    geometry: Geometry
    thumbnail: np.ndarray  # u8 [h, w, 3]
    tissue_mm2: dict[str, float]
    facts: dict[str, Any]
    plane: dict[str, str | int]
    is_part: bool
    warnings: list[str]
    region: BaseGeometry | None  # of interest, in the slide's pixels


def analyze(job: Job, model: Model, settings: Settings, folder: pathlib.Path) -> Analysis:
    """Analyze one slide and write all its results into `folder`.

    Raises:
      SlideError: the slide cannot be read.
      RegionError: the region of interest cannot be used.
      TSRError: the ratio cannot be measured with these labels.
    """
    tiles = _predict_tiles(job, model, settings, folder)
    warnings = [*model.warnings, *tiles.warnings]
    outlines: dict[str, Any] = {}
    inside = None
    if tiles.region is not None:
        outlines, inside = {"region of interest": tiles.region}, regions.inside(tiles.table, tiles.region)
    measured = None
    if settings.tsr is not None:
        measured = tsr.measure(tiles.table, tiles.geometry, settings.tsr, inside, model.confusion)
        if measured["model"]["status"] in (CANNOT_TELL, NOT_SHOWN):
            warnings.insert(0, measured["model"]["reason"])
        write_json(folder / TSR_FILE, measured | {"plane": tiles.plane, "warnings": warnings})
        if box := measured["areas"]["hot spot"]["box"]:
            right, bottom = box["minx"] + box["width"], box["miny"] + box["height"]
            outlines["hot spot"] = shapely.box(box["minx"], box["miny"], right, bottom)
    written = _write_maps(folder, job.name, tiles, model, settings, outlines)
    model_facts = {"labels": model.labels, "thresholds": model.thresholds, "tile_um": model.tile_um}
    page = {
        "slide": tiles.facts | {"name": job.name, "path": job.slide.name},
        "model": dict(model.facts) | model_facts,
        "tissue": tiles.tissue_mm2,
        "tiles": len(tiles.table),
        "tsr": measured,
        "warnings": warnings,
    }
    summary.write(folder / "summary.html", page, written)
    headline = f"{len(tiles.table)} tiles" + _ratio_headline(measured)
    return Analysis(tiles.facts, warnings, headline, tiles.is_part)


def _predict_tiles(job: Job, model: Model, settings: Settings, folder: pathlib.Path) -> _Tiles:
    """Find the tissue, write it as `tissue.png`, and predict the tiles that lie on it."""
    with open_slide(job.slide, job.mpp, override_mpp=job.override_mpp, origin=job.origin) as slide:
        region, region_warnings = _region(job, slide)  # before the work that a bad region would waste
        tissue = find_tissue(slide, settings.tissue)
        tissue.write(folder / _TISSUE)
        geometry, table = grid.make_grid(slide, tissue, model.grid_spec(settings))
        probabilities, normalised, rows = _predict(slide, table, model, settings, job.name)
        for i, label in enumerate(model.labels):
            table[PREFIX + label] = probabilities[:, i]
        further_facts: dict[str, Any] = {}
        further_warnings: list[str] = []
        if model.stain is not None:
            table["stain_normalised"] = normalised.astype(np.int64)
            further_facts["tiles_not_normalised"] = left_out = int((~normalised).sum())
            further_warnings += [_NOT_NORMALISED.format(left_out, len(table))] if left_out else []
        if model.novelty:
            novel_tiles.add_columns(table, rows)
            further_facts["unlike_training"] = share = novel_tiles.share(table)
            further_warnings += novel_tiles.warnings(share)
        thumbnail = slide.thumbnail(_THUMBNAIL)
        areas = tissue.mm2(slide.pixel_mm2)
        facts = {
            "reader": slide.reader,
            "width": slide.width,
            "height": slide.height,
            **{name if name == "origin" else f"origin_{name}": value for name, value in slide.plane.items()},
            "mpp": slide.mpp,
            "mpp_y": slide.mpp_y,
            "mpp_source": slide.mpp_source,
            "tiles": len(table),
            **further_facts,
            **{f"{kind}_mm2": round(area, 4) for kind, area in areas.items()},
        }
    warnings = slide.warnings + _resolution_warnings(max(slide.mpp, slide.mpp_y), model) + region_warnings
    warnings += further_warnings
    return _Tiles(table, geometry, thumbnail, areas, facts, slide.plane, slide.is_part, warnings, region)


def _region(job: Job, slide: Slide) -> tuple[BaseGeometry | None, list[str]]:
    """The region of interest within the slide, None without one, and warnings about it."""
    if job.roi is None:
        return None, []
    annotated, warnings = regions.read(job.roi)
    clipped, clip_warnings = regions.clip(annotated, slide.width, slide.height, job.roi)
    return regions.union(clipped), warnings + clip_warnings


def _predict(
    slide: Slide, table: pd.DataFrame, model: Model, settings: Settings, name: str
) -> tuple[np.ndarray, np.ndarray, list[list[Any]]]:
    """Predict a slide's tiles; threads read the slide while the model computes.

    Returns:
      Probabilities `f32 [n, k]`, whether the stains of each tile were normalised, `bool [n]`, and rows of novelty.
    """
    out = np.zeros((len(table), len(model.labels)), np.float32)
    normalised = np.zeros(len(table), bool)
    unlike: list[list[Any]] = []
    batches = grid.read_tiles(
        slide, table, model.image_size, model.batch_size, settings.threads, model.stain, normalised
    )
    done = 0
    try:
        with tqdm(total=len(table), desc=name, unit="tile", leave=False, disable=None, mininterval=1) as bar:
            pixels: Iterator[np.ndarray] = batches
            scores: Iterator[list[list[Any]]] = itertools.repeat([])
            if model.novelty:
                pixels, same_pixels = itertools.tee(batches)
                scores = model.novelty.stream(same_pixels)
            for rows in model.stream(pixels):
                out[done : done + len(rows)] = rows
                unlike += next(scores)
                done += len(rows)
                bar.update(len(rows))
    finally:
        batches.close()
    return out, normalised, unlike


def _resolution_warnings(mpp: float, model: Model) -> list[str]:
    model_mpp = model.tile_um / model.image_size
    if mpp <= 1.1 * model_mpp:
        return []
    return [f"the slide has {mpp:.4g} µm/px, coarser than the model's {model_mpp:.4g}: tiles are enlarged"]


def _write_maps(
    folder: pathlib.Path, name: str, tiles: _Tiles, model: Model, settings: Settings, outlines: Mapping[str, Any]
) -> dict[str, pathlib.Path]:
    """Write table, GeoJSON and maps; return the pictures for the summary page by caption."""
    table, geometry, thresholds = tiles.table, tiles.geometry, model.thresholds
    tile_table.write(table, folder)
    suffix = ".geojson.gz" if settings.compress else ".geojson"
    geojson.write_tiles(table, folder / f"tiles{suffix}", slide=name, thresholds=thresholds, plane=tiles.plane)
    overlay = folder / "overlay.png"
    pictures.write_overlay(
        overlay, table, geometry, tiles.thumbnail, slide=name, thresholds=thresholds, outlines=outlines
    )
    alone = folder / "slide.png"
    pictures.write_slide(alone, geometry, tiles.thumbnail, slide=name)
    written = {"predicted labels on the slide": overlay, "the slide": alone}
    for label, file_name in unique_file_names(model.labels).items():
        heatmap = folder / f"heatmap_{file_name}.png"
        threshold = thresholds[label] if thresholds else None
        pictures.write_heatmap(heatmap, table, geometry, tiles.thumbnail, label, slide=name, threshold=threshold)
        written[f"probability of {label}"] = heatmap
    maps.write_ome_tiff(folder / "heatmap.tif", table, geometry, slide=name)
    return written | {f"analyzed and excluded areas: {PALETTE_KEY}": folder / _TISSUE}


def _ratio_headline(measured: Mapping[str, Any] | None) -> str:
    """The stroma percentage of the region of interest, else of the whole tissue, for the terminal."""
    if measured is None:
        return ""
    area = measured["areas"]["region" if "region" in measured["areas"] else "whole tissue"]
    if area["status"] != "evaluated":
        return f", not evaluable: {area['reason']}"
    figure = area["stroma_percentage"]
    if figure["value"] is None:
        return f", no stroma percentage: {figure['reason']}"
    if measured["model"]["status"] == CANNOT_TELL:
        return f", {measured['model']['reason']} (it gives {_with_interval(figure)})"
    headline = f", stroma percentage {_with_interval(figure)}, {area['stroma_class']['name']}"
    if area["corrected"]["value"] is None:
        return headline
    return f"{headline}, corrected for the model's errors {_with_interval(area['corrected'])}"


def _with_interval(figure: Mapping[str, Any]) -> str:
    """A percentage with its interval, for the terminal."""
    return f"{figure['value']:.1f}" + ("" if figure["low"] is None else f" [{figure['low']:.1f}, {figure['high']:.1f}]")
