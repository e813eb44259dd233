"""Labelled tiles for training, from slides and their annotations: a folder in the `table` layout of liver_tiles."""

import concurrent.futures
import csv
import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from data_pipelines.errors import DataError
from data_pipelines.images import encode_png
from data_pipelines.liver_tiles.spec import TilesSpec
from histojax.core.errors import RunError
from histojax.slides import regions
from histojax.slides.labels import file_names_of
from histojax.slides.readers.reader import Slide, open_slide
from histojax.slides.regions import Region
from histojax.slides.tile_table import BOX

TABLE, RECORD = "tiles.csv", "train_tiles.json"
_GROUPS = ("patient_id", "slide_id")
_NO_CLASS = "(no class)"
_CHUNK = 1 << 16  # tiles whose boxes are in memory at once: a slide has millions where they overlap


class AnnotationError(RunError):
    """Annotations that give no tiles to train on; the message names the file, the class or option and the remedy."""


@dataclasses.dataclass(frozen=True)
class AnnotatedSlide:
    """A slide and what is known of it.

    Attributes:
      slide: its file.
      annotations: a GeoJSON file in its level-0 pixels.
      mpp: µm per level-0 pixel; None: as the file says.
      patient_id: empty: by `CutSpec.patient_pattern`, if that is given.
    """

    slide: pathlib.Path
    annotations: pathlib.Path
    mpp: float | None = None
    patient_id: str = ""


@dataclasses.dataclass(frozen=True)
class CutSpec:
    """How tiles are cut and labelled. Raises AnnotationError for what means nothing.

    Attributes:
      labels: names, in the order of the model's outputs.
      size: pixels of the side of a tile as it is stored.
      mpp: µm per such pixel.
      overlap: share of a tile's side that it has in common with its neighbour, from 0 to below 1.
      min_share: of a tile that the annotations of a label must cover for it to have that label.
      min_annotated: of a tile that annotations must cover together: what is not annotated is unknown. 0 takes every
        tile of the slides, that is says that what has a label is annotated everywhere.
      class_names: class of an annotation -> label, or "" for tissue that is none of them. Classes called like a label
        need not be named, and case does not matter.
      ignore_unknown: whether annotations of other classes, and without a class, count as not annotated instead of
        being an error.
      patient_pattern: regular expression on a slide's name with the named group `patient`; empty: none.
    """

    labels: tuple[str, ...]
    size: int
    mpp: float
    overlap: float = 0.0
    min_share: float = 0.05
    min_annotated: float = 0.5
    class_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignore_unknown: bool = False
    patient_pattern: str = ""

    def __post_init__(self) -> None:
        def require(ok: bool, message: str) -> None:
            if not ok:
                raise AnnotationError(message)

        try:  # what reads the tiles later must accept labels and sizes, too
            TilesSpec(labels=self.labels, size=self.size, min_share=self.min_share)
            groups = re.compile(self.patient_pattern).groupindex
        except DataError as error:
            raise AnnotationError(str(error)) from error
        except re.error as error:
            raise AnnotationError(f"--patient_pattern {self.patient_pattern!r}: {error}") from error
        require(len(self.labels) > 0, "--labels: name at least one")
        require(
            len({name.casefold() for name in self.labels}) == len(self.labels),
            f"--labels: {', '.join(self.labels)} differ in nothing but case",
        )
        taken = {"path", "source_id", "split", *_GROUPS, *BOX} & set(self.labels)
        require(not taken, f"--labels: {', '.join(taken)} is a column of the table of tiles; call the label otherwise")
        require(math.isfinite(self.mpp) and self.mpp > 0, f"--tile_mpp {self.mpp} is not above 0 µm per pixel")
        require(0 <= self.overlap < 1, f"--overlap {self.overlap} is not in 0 ≤ … < 1")
        require(0 <= self.min_annotated <= 1, f"--min_annotated {self.min_annotated} is not in 0 … 1")
        require(
            not self.patient_pattern or "patient" in groups,
            f"--patient_pattern {self.patient_pattern!r} has no group (?P<patient>…)",
        )
        for name, label in self.class_names.items():
            require(
                label == "" or label in self.labels,
                f"--classes: {name!r} is to be {label!r}, which is none of the labels {', '.join(self.labels)}",
            )


def pair(
    slides: Sequence[str | os.PathLike[str]], folder: str | os.PathLike[str] | None = None
) -> list[AnnotatedSlide]:
    """Each slide with its annotations: `a.svs` with `a.geojson`, `a.svs.geojson`, `.json` or either `.gz`.

    `folder`: where they lie; None: beside their slides. Raises AnnotationError that lists every slide with none or
    with several.
    """
    out, faults = [], []
    for slide in map(pathlib.Path, slides):
        place = slide.parent if folder is None else pathlib.Path(folder)
        names = [stem + suffix for stem in (slide.stem, slide.name) for suffix in regions.SUFFIXES]
        found = [place / name for name in names if (place / name).is_file()]
        if len(found) == 1:
            out.append(AnnotatedSlide(slide, found[0]))
        else:
            said = f"several files: {', '.join(path.name for path in found)}" if found else f"no {names[0]} in {place}"
            faults.append(f"  {slide}: {said}")
    if faults:
        raise AnnotationError(
            "\n".join(["slides without annotations of their own:", *faults])
            + "\nExport one GeoJSON file a slide from QuPath, named like the slide, or leave the slide out."
        )
    return out


def cut(slides: Sequence[AnnotatedSlide], output: str | os.PathLike[str], spec: CutSpec) -> dict[str, Any]:
    """Cuts the annotated tiles of slides into `output`, which is there whole afterwards, or not at all.

    Tiles lie on a grid from the slide's corner, whole ones only. The folder holds a PNG a tile, `tiles.csv` (path, 0
    or 1 for each label, patient_id, slide_id, the tile's box in level-0 pixels) and `train_tiles.json`, the record of
    what was done, which is returned.

    Raises:
      AnnotationError: `output` exists, two slides of one name, an unknown class, no tile at all.
      RegionError: annotations that cannot be used.
      SlideError: a slide that cannot be read.
    """
    output = pathlib.Path(output)
    names = [item.slide.stem for item in slides]
    doubled = sorted(name for name, count in Counter(names).items() if count > 1)
    if doubled:
        raise AnnotationError(
            f"{', '.join(doubled)}: several slides of this name; rename them, or leave all but one out"
        )
    folders = file_names_of(names)
    # Annotations first: an unknown class of the last slide is told before the first is cut.
    labelled = [_labelled(item, spec) for item in slides]
    with _whole_folder(output) as temporary:
        record: dict[str, Any] = {"settings": dataclasses.asdict(spec) | {"labels": list(spec.labels)}, "slides": {}}
        with open(temporary / TABLE, "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["path", *spec.labels, *_GROUPS, *BOX])
            for item, (annotations, ignored) in zip(slides, labelled, strict=True):
                with open_slide(item.slide, item.mpp) as slide:
                    rows, facts = _cut_slide(slide, item, annotations, spec, temporary / folders[slide.name])
                table.writerows(rows)
                record["slides"][slide.name] = facts | {"ignored_annotations": ignored}
        record["tiles"] = sum(facts["tiles"] for facts in record["slides"].values())
        if not record["tiles"]:
            raise AnnotationError(
                f"no tile of {spec.size * spec.mpp:g} µm is annotated on {spec.min_annotated:.0%} of it; draw larger "
                "annotations, or give a lower --min_annotated or a smaller tile"
            )
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (temporary / RECORD).write_text(text, encoding="utf-8")
    return record


def _labelled(item: AnnotatedSlide, spec: CutSpec) -> tuple[list[Region], dict[str, int]]:
    """The annotations that count, named by their label ("": none), and how many of which other class there are."""
    label_of = {name.casefold(): name for name in spec.labels}
    label_of |= {name.casefold(): label for name, label in spec.class_names.items()}
    found = regions.read(item.annotations)
    unknown = Counter(region.name or _NO_CLASS for region in found if region.name.casefold() not in label_of)
    if unknown and not spec.ignore_unknown:
        raise AnnotationError(
            f"{item.annotations}: annotations of the classes {', '.join(sorted(unknown))}, which are none of the "
            f"labels {', '.join(spec.labels)}. Say which label they are with --classes CLASS=LABEL (CLASS= for tissue "
            "that is none of them), or leave them out with --ignore_unknown"
        )
    known = [region for region in found if region.name.casefold() in label_of]
    return [dataclasses.replace(region, name=label_of[region.name.casefold()]) for region in known], dict(unknown)


def _cut_slide(
    slide: Slide, item: AnnotatedSlide, annotations: Sequence[Region], spec: CutSpec, folder: pathlib.Path
) -> tuple[list[list[Any]], dict[str, Any]]:
    """Writes the tiles of a slide into `folder`; returns their rows of the table and facts for the record."""
    tile = max(1, round(spec.size * spec.mpp / slide.mpp))
    stride = max(1, round(tile * (1 - spec.overlap)))
    warnings = []
    if slide.mpp > 1.1 * spec.mpp:
        warnings.append(f"{slide.mpp:.4g} µm/px are coarser than the {spec.mpp:g} of the tiles, which are enlarged")
    warnings += [
        f"{item.annotations}, {a.feature}: its outline crosses itself; mended" for a in annotations if a.repaired
    ]
    if annotations:
        annotations, beyond = regions.clip(annotations, slide.width, slide.height, item.annotations)
        warnings += beyond
    corners = _corners(slide, tile, stride)
    corners = corners[_shares(corners, tile, annotations) >= spec.min_annotated]
    of_label = [[a for a in annotations if a.name == label] for label in spec.labels]
    has = np.stack([_shares(corners, tile, those) >= spec.min_share for those in of_label], axis=1)
    if not len(corners):
        warnings.append("no tile of it is annotated enough")
    patient = item.patient_id or _patient(item.slide, spec)

    def save(corner: NDArray[np.int64]) -> str:
        x, y = corner.tolist()
        path = folder / f"{folder.name}_x{x}_y{y}.png"
        path.write_bytes(encode_png(slide.read(x, y, tile, tile, spec.size, spec.size)))
        return f"{folder.name}/{path.name}"

    folder.mkdir()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = list(pool.map(save, corners))
    table = [
        [path, *given.astype(int).tolist(), patient, slide.name, *corner.tolist(), tile, tile]
        for path, given, corner in zip(paths, has, corners, strict=True)
    ]
    return table, {
        "slide": str(item.slide),
        "annotations": str(item.annotations),
        "patient_id": patient,
        "mpp": slide.mpp,
        "mpp_source": slide.mpp_source,
        "reader": slide.reader,
        "tile": tile,
        "stride": stride,
        "tiles": len(table),
        "tiles_of_label": dict(zip(spec.labels, has.sum(axis=0).tolist(), strict=True)),
        "warnings": warnings,
    }


def _corners(slide: Slide, tile: int, stride: int) -> NDArray[np.int64]:
    """x and y of every tile of the grid that lies on the slide as a whole: int64 [n, 2], row by row."""
    x, y = (np.arange(0, length - tile + 1, stride) for length in (slide.width, slide.height))
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _shares(corners: NDArray[np.int64], tile: int, annotations: Sequence[Region]) -> NDArray[np.float64]:
    """What share of each tile, corners int64 [n, 2], the annotations cover together: float64 [n]."""
    parts = shapely.get_parts(regions.union(annotations))
    shapely.prepare(parts)
    tree = shapely.STRtree(parts)
    covered = np.zeros(len(corners))
    for start in range(0, len(corners), _CHUNK):
        x, y = corners[start : start + _CHUNK].T
        boxes = shapely.box(x, y, x + tile, y + tile)
        at, part = tree.query(boxes, predicate="intersects")
        # Most tiles of a large annotation lie within it, which is told faster than what they have in common.
        within = shapely.contains(parts[part], boxes[at])
        areas = np.full(len(at), float(tile) ** 2)
        areas[~within] = shapely.area(shapely.intersection(parts[part[~within]], boxes[at[~within]]))
        np.add.at(covered, start + at, areas)
    return np.round(covered / float(tile) ** 2, 9)  # a half must be a half


def _patient(slide: pathlib.Path, spec: CutSpec) -> str:
    if not spec.patient_pattern:
        return ""
    match = re.search(spec.patient_pattern, slide.stem)
    if match is None or not match["patient"]:
        raise AnnotationError(f"{slide}: its name does not match --patient_pattern {spec.patient_pattern!r}")
    return match["patient"]


@contextmanager
def _whole_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder beside `output`, renamed to it on success, removed on failure."""
    if output.exists():
        raise AnnotationError(f"{output}: already there; give another --output, or remove it")
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        os.rename(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
