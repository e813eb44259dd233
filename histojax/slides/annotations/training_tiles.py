"""Labelled training tiles, cut from annotated slides into a folder that liver_tiles reads (layout `table`)."""

import concurrent.futures
import csv
import dataclasses
import json
import math
import os
import pathlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from data_pipelines.errors import DataError
from data_pipelines.images import encode_png
from data_pipelines.liver_tiles.spec import TilesSpec
from histojax.core.errors import RunError
from histojax.core.files import atomic_folder
from histojax.slides.annotations import regions
from histojax.slides.annotations.regions import Region
from histojax.slides.cohort_jobs import TILES_RECORD
from histojax.slides.geometry import Geometry
from histojax.slides.labels import unique_file_names
from histojax.slides.readers.reader import Slide, open_slide
from histojax.slides.tile_table import BOX
from histojax.slides.tissue import TissueSpec, find_tissue

TABLE = "tiles.csv"
_GROUPS = ("patient_id", "slide_id")
_NO_CLASS = "(no class)"
_CHUNK = 1 << 16  # tile boxes in memory at once; a slide with overlapping tiles has millions


class AnnotationError(RunError):
    """Annotations without usable training tiles; the message names the file, the class or option and the remedy."""


@dataclasses.dataclass(frozen=True)
class AnnotatedSlide:
    """A slide with its annotations.

    Attributes:
      slide: the slide's file.
      annotations: a GeoJSON file in pixels of the slide's plane, see `origin`.
      mpp: µm per level-0 pixel if the file stores none.
      override_mpp: µm per level-0 pixel, whatever the file stores.
      patient_id: the patient; empty takes it from the file's name by `CutSpec.patient_pattern`, if that is given.
      name: the slide's name, unique among the slides; empty takes the file's name without suffix.
      origin: where coordinates count from, see `reader.open_slide`.
    """

    slide: pathlib.Path
    annotations: pathlib.Path
    mpp: float | None = None
    override_mpp: float | None = None
    patient_id: str = ""
    name: str = ""
    origin: str = "qupath"

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.slide.stem)


@dataclasses.dataclass(frozen=True)
class CutSpec:
    """How tiles are cut and labelled; raises AnnotationError for an invalid field.

    Attributes:
      labels: label names, in the order of the model's outputs.
      size: side of a stored tile in pixels.
      mpp: µm per pixel of a stored tile.
      overlap: fraction of a tile's side shared with its neighbour, at least 0 and below 1.
      min_share: fraction of a tile that the annotations of a label must cover for the tile to get that label.
      min_annotated: fraction of a tile that all annotations together must cover, since the rest is unknown. 0 keeps
        every tile, which assumes that everything with a label is annotated.
      min_tissue: fraction of a tile that must be tissue, as for the tiles that a model predicts; 0 keeps every tile.
      class_names: maps an annotation's class to a label, or to "" for tissue without a label. A class named like a
        label needs no entry. Case is ignored.
      ignore_unknown: count annotations of other classes, or without a class, as not annotated. By default they are an
        error.
      patient_pattern: regular expression for a slide's name with the named group `patient`; empty for none.
    """

    labels: tuple[str, ...]
    size: int
    mpp: float
    overlap: float = 0.0
    min_share: float = 0.05
    min_annotated: float = 0.5
    min_tissue: float = 0.5
    class_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignore_unknown: bool = False
    patient_pattern: str = ""

    def __post_init__(self) -> None:
        def require(ok: bool, message: str) -> None:
            if not ok:
                raise AnnotationError(message)

        try:  # liver_tiles must later accept the same labels and sizes
            TilesSpec(labels=self.labels, size=self.size, min_share=self.min_share)
            groups = re.compile(self.patient_pattern).groupindex
        except DataError as error:
            raise AnnotationError(str(error)) from error
        except re.error as error:
            raise AnnotationError(f"--patient_pattern {self.patient_pattern!r}: {error}") from error
        require(len(self.labels) > 0, "--labels is empty: name at least one label")
        require(
            len({name.casefold() for name in self.labels}) == len(self.labels),
            f"--labels {', '.join(self.labels)}: two labels differ only in case; rename one",
        )
        reserved = {"path", "source_id", "split", *_GROUPS, *BOX} & set(self.labels)
        require(not reserved, f"--labels: {', '.join(reserved)} is a column of tiles.csv; rename the label")
        require(math.isfinite(self.mpp) and self.mpp > 0, f"--tile_mpp {self.mpp} must be above 0 µm per pixel")
        require(0 <= self.overlap < 1, f"--overlap {self.overlap} must be at least 0 and below 1")
        require(0 <= self.min_annotated <= 1, f"--min_annotated {self.min_annotated} must be between 0 and 1")
        require(0 <= self.min_tissue <= 1, f"--min_tissue {self.min_tissue} must be between 0 and 1")
        require(
            not self.patient_pattern or "patient" in groups,
            f"--patient_pattern {self.patient_pattern!r} has no group (?P<patient>…)",
        )
        for name, label in self.class_names.items():
            require(
                label == "" or label in self.labels,
                f"--classes maps {name!r} to {label!r}, which is not one of the labels {', '.join(self.labels)}",
            )


def pair(
    slides: Sequence[str | os.PathLike[str]], folder: str | os.PathLike[str] | None = None
) -> list[AnnotatedSlide]:
    """Find the annotations of each slide: `a.geojson` or `a.svs.geojson` for `a.svs`, also `.json`, `.gz` and `.xml`.

    Args:
      slides: the slides' files.
      folder: where the annotations lie; None looks beside each slide.

    Returns:
      One entry per slide, in order.

    Raises:
      AnnotationError: some slides have no annotations or several; the message lists all of them. Or two slides have
        the same file.
    """
    pairs, problems = [], []
    for slide in map(pathlib.Path, slides):
        place = slide.parent if folder is None else pathlib.Path(folder)
        candidates = regions.files_of(place, (slide.stem, slide.name))
        if len(candidates) == 1:
            pairs.append(AnnotatedSlide(slide, candidates[0]))
        elif candidates:
            problems.append(f"  {slide}: several files: {', '.join(path.name for path in candidates)}")
        else:
            problems.append(f"  {slide}: no {slide.stem}.geojson in {place}")
    if problems:
        raise AnnotationError(
            "\n".join(["these slides do not have exactly one annotation file:", *problems])
            + "\nExport one file per slide (GeoJSON of QuPath, XML of ASAP or ImageScope), named like the slide, or "
            "leave the slide out."
        )
    first: dict[pathlib.Path, pathlib.Path] = {}
    for found in pairs:
        if first.setdefault(found.annotations, found.slide) != found.slide:
            raise AnnotationError(
                f"{found.annotations}: the annotations of both {first[found.annotations]} and {found.slide}. Put each "
                "file beside its slide, and leave --annotations out"
            )
    return pairs


def cut(slides: Sequence[AnnotatedSlide], output: str | os.PathLike[str], spec: CutSpec) -> dict[str, Any]:
    """Cut the annotated tiles of slides into the new folder `output`, which appears only when it is complete.

    Tiles lie on a grid that starts at the slide's corner; tiles that reach beyond the slide are left out. The folder
    holds a PNG file per tile, `tiles.csv` (path, 0 or 1 for each label, patient_id, slide_id, and the tile's box in
    level-0 pixels) and `train_tiles.json`, the record of what was done.

    Args:
      slides: the slides with their annotations.
      output: the folder to write.
      spec: how tiles are cut and labelled.

    Returns:
      The content of `train_tiles.json`.

    Raises:
      RunError: `output` exists.
      AnnotationError: two slides share a name, an annotation has an unknown class, or no tile qualifies.
      RegionError: unusable annotations.
      SlideError: a slide cannot be read.
    """
    names = [item.name for item in slides]
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise AnnotationError(f"{', '.join(repeated)}: several slides have this name; give each a name of its own")
    folders = unique_file_names(names)
    # All annotations first: an unknown class in the last slide is reported before the first slide is cut.
    annotations = [_labelled_regions(item, spec) for item in slides]
    with atomic_folder(output) as temporary:
        record: dict[str, Any] = {"settings": dataclasses.asdict(spec) | {"labels": list(spec.labels)}, "slides": {}}
        with open(temporary / TABLE, "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["path", *spec.labels, *_GROUPS, *BOX])
            for item, (labelled, ignored, warnings) in zip(slides, annotations, strict=True):
                with open_slide(item.slide, item.mpp, override_mpp=item.override_mpp, origin=item.origin) as slide:
                    rows, facts = _cut_slide(slide, item, labelled, spec, temporary / folders[item.name])
                table.writerows(rows)
                facts["warnings"] = warnings + facts["warnings"]
                record["slides"][item.name] = facts | {"ignored_annotations": ignored}
        record["tiles"] = sum(facts["tiles"] for facts in record["slides"].values())
        if not record["tiles"]:
            raise AnnotationError(
                f"no tile of {spec.size * spec.mpp:g} µm has {spec.min_annotated:.0%} of its area annotated and "
                f"{spec.min_tissue:.0%} on tissue; draw larger annotations, lower --min_annotated or --min_tissue, or "
                "cut smaller tiles"
            )
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (temporary / TILES_RECORD).write_text(text, encoding="utf-8")
    return record


def _labelled_regions(item: AnnotatedSlide, spec: CutSpec) -> tuple[list[Region], dict[str, int], list[str]]:
    """Read a slide's annotations.

    Returns:
      The regions of known classes, named by their label ("" for none), the number of other ones by class, and warnings.
    """
    label_of_class = {name.casefold(): name for name in spec.labels}
    label_of_class |= {name.casefold(): label for name, label in spec.class_names.items()}
    annotated, warnings = regions.read(item.annotations)
    unknown = Counter(region.name or _NO_CLASS for region in annotated if region.name.casefold() not in label_of_class)
    if unknown and not spec.ignore_unknown:
        raise AnnotationError(
            f"{item.annotations}: the classes {', '.join(sorted(unknown))} are not among the labels "
            f"{', '.join(spec.labels)}. Map each one to a label with --classes CLASS=LABEL (CLASS= for tissue without "
            "a label), or skip such annotations with --ignore_unknown"
        )
    known = [region for region in annotated if region.name.casefold() in label_of_class]
    named = [dataclasses.replace(region, name=label_of_class[region.name.casefold()]) for region in known]
    return named, dict(unknown), warnings


def _cut_slide(
    slide: Slide, item: AnnotatedSlide, annotations: Sequence[Region], spec: CutSpec, folder: pathlib.Path
) -> tuple[list[list[Any]], dict[str, Any]]:
    """Write a slide's tiles into `folder`; return their rows for the table and the slide's facts for the record."""
    tile = max(1, round(spec.size * spec.mpp / slide.mpp))
    stride = max(1, round(tile * (1 - spec.overlap)))
    geometry = Geometry(slide.width, slide.height, slide.mpp, tile, stride, slide.stretch)
    annotations, warnings = _within_slide(slide, item, annotations, spec)
    corners = _corners(geometry)
    corners = corners[_covered_fractions(corners, geometry, annotations) >= spec.min_annotated]
    on_tissue = _on_tissue(slide, corners, geometry, spec)
    corners, without_tissue = corners[on_tissue], int((~on_tissue).sum())
    if without_tissue:
        warnings.append(
            f"{without_tissue} annotated tiles have less than {spec.min_tissue:.0%} tissue and are left out"
        )
    by_label = [[region for region in annotations if region.name == label] for label in spec.labels]
    carries = np.stack([_covered_fractions(corners, geometry, those) >= spec.min_share for those in by_label], axis=1)
    if not len(corners):
        warnings.append("no tile has enough of its area annotated")
    patient = item.patient_id or _patient(item.slide, spec)

    def save(corner: NDArray[np.int64]) -> str:
        x, y = corner.tolist()
        path = folder / f"{folder.name}_x{x}_y{y}.png"
        path.write_bytes(encode_png(slide.read(x, y, tile, geometry.tile_height, spec.size, spec.size)))
        return f"{folder.name}/{path.name}"

    folder.mkdir()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = list(pool.map(save, corners))
    table = [
        [path, *labels.astype(int).tolist(), patient, item.name, *corner.tolist(), tile, geometry.tile_height]
        for path, labels, corner in zip(paths, carries, corners, strict=True)
    ]
    return table, {
        "slide": str(item.slide),
        "annotations": str(item.annotations),
        "patient_id": patient,
        "mpp": slide.mpp,
        "mpp_y": slide.mpp_y,
        "mpp_source": slide.mpp_source,
        "reader": slide.reader,
        "tile": tile,
        "stride": stride,
        "tiles": len(table),
        "tiles_without_tissue": without_tissue,
        "tiles_of_label": dict(zip(spec.labels, carries.sum(axis=0).tolist(), strict=True)),
        "warnings": warnings,
    }


def _within_slide(
    slide: Slide, item: AnnotatedSlide, annotations: Sequence[Region], spec: CutSpec
) -> tuple[Sequence[Region], list[str]]:
    """Clip annotations to the slide; return them with the warnings about resolution and clipping."""
    warnings = list(slide.warnings)
    coarsest = max(slide.mpp, slide.mpp_y)
    if coarsest > 1.1 * spec.mpp:
        warnings.append(f"the slide has {coarsest:.4g} µm/px, coarser than the tiles' {spec.mpp:g}: tiles are enlarged")
    if annotations:
        annotations, clip_warnings = regions.clip(annotations, slide.width, slide.height, item.annotations)
        warnings += clip_warnings
    return annotations, warnings


def _corners(geometry: Geometry) -> NDArray[np.int64]:
    """Upper left corners (x, y) of all grid tiles that lie fully on the slide: int64 [n, 2], row by row."""
    x = np.arange(0, geometry.width - geometry.tile + 1, geometry.stride)
    y = np.arange(0, geometry.height - geometry.tile_height + 1, geometry.stride_height)
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _on_tissue(slide: Slide, corners: NDArray[np.int64], geometry: Geometry, spec: CutSpec) -> NDArray[np.bool_]:
    """Whether each tile has enough tissue: bool [n], for corners int64 [n, 2]."""
    if not spec.min_tissue or not len(corners):
        return np.ones(len(corners), bool)
    sizes = np.broadcast_to((geometry.tile, geometry.tile_height), corners.shape)
    return find_tissue(slide, TissueSpec()).fractions(np.concatenate([corners, sizes], axis=1)) >= spec.min_tissue


def _covered_fractions(
    corners: NDArray[np.int64], geometry: Geometry, annotations: Sequence[Region]
) -> NDArray[np.float64]:
    """Fraction of each tile that the annotations cover together: float64 [n], for corners int64 [n, 2]."""
    parts = shapely.get_parts(regions.union(annotations))
    shapely.prepare(parts)
    tree = shapely.STRtree(parts)
    whole = float(geometry.tile * geometry.tile_height)
    covered = np.zeros(len(corners))
    for start in range(0, len(corners), _CHUNK):
        x, y = corners[start : start + _CHUNK].T
        boxes = shapely.box(x, y, x + geometry.tile, y + geometry.tile_height)
        box, part = tree.query(boxes, predicate="intersects")
        # Most tiles of a large annotation lie within it; testing that is faster than computing the intersection.
        within = shapely.contains(parts[part], boxes[box])
        areas = np.full(len(box), whole)
        areas[~within] = shapely.area(shapely.intersection(parts[part[~within]], boxes[box[~within]]))
        np.add.at(covered, start + box, areas)
    return np.round(covered / whole, 9)  # so that exactly half stays 0.5


def _patient(slide: pathlib.Path, spec: CutSpec) -> str:
    """The patient in a slide's name by `spec.patient_pattern`; empty without a pattern."""
    if not spec.patient_pattern:
        return ""
    match = re.search(spec.patient_pattern, slide.stem)
    if match is None or not match["patient"]:
        raise AnnotationError(f"{slide}: the name does not match --patient_pattern {spec.patient_pattern!r}")
    return match["patient"]
