"""Features of the tiles of whole slides: one HDF5 file per slide in TRIDENT's layout, with µm/px beside.

`features` f32 [n, d] and `coords` i64 [n, 2] (level-0 x, y of each tile's upper left corner), with TRIDENT's
attributes. Magnifications there are rounded from µm/px, which the attributes `level0_mpp`, `level0_mpp_y` and `mpp`
hold exactly. The file's own attribute `histojax` is JSON: how the features were made. A slide without tissue has no
rows.
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from histojax.core.errors import RunError
from histojax.core.files import atomic_write
from histojax.core.settings import diff_settings
from histojax.inference.embed.embedder import Embedder, decode, encode
from histojax.inference.predict.partial_results import PartialResults, Prediction
from histojax.slides import grid
from histojax.slides.cohort_jobs import Job
from histojax.slides.geometry import Geometry
from histojax.slides.readers.reader import Slide, open_slide
from histojax.slides.tissue import TissueSpec, find_tissue

_log = logging.getLogger(__name__)
_KEY = "histojax"
_BLOCK_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Settings:
    """How slides are cut into tiles.

    Attributes:
      tile_um: side of a tile in µm.
      overlap: fraction of a tile's side shared with its neighbour, in [0, 1).
      min_tissue: smallest fraction of tissue in a tile.
      threads: threads that read the slide.
    """

    tile_um: float
    overlap: float = 0.0
    min_tissue: float = 0.5
    threads: int = 4

    def grid_spec(self, size: int) -> grid.GridSpec:
        """The tiles of a network whose input has `size` pixels per side.

        Raises:
          RunError: a value is out of range.
        """
        return grid.GridSpec(size, self.tile_um / size, self.overlap, self.min_tissue)


def run(
    jobs: Sequence[Job], embedder: Embedder, settings: Settings, output: pathlib.Path, *, redo: bool = False
) -> dict[str, str]:
    """Compute the features of every slide that has none yet.

    A slide's features are kept in `NAME.h5.partial` until `NAME.h5` is complete. A slide that fails is reported and
    skipped.

    Args:
      jobs: the slides.
      embedder: the network.
      settings: how they are cut into tiles.
      output: folder of the files.
      redo: compute finished slides again.

    Returns:
      Name of each failed slide -> reason.

    Raises:
      RunError: a finished file was made with other settings, and `redo` is not set; nothing is written then.
    """
    settings.grid_spec(embedder.image_size)
    requested = {job: _facts(job, embedder, settings) for job in jobs}
    finished = set() if redo else {job for job in jobs if _is_finished(output / f"{job.name}.h5", requested[job])}
    output.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    for number, job in enumerate(jobs, start=1):
        progress = f"[{number}/{len(jobs)}] {job.name}"
        if job in finished:
            _log.info("%s: already finished", progress)
            continue
        try:
            count = _embed_slide(job, embedder, settings, requested[job], output / f"{job.name}.h5", redo)
            _log.info("%s: %d tiles", progress, count)
        except (RunError, OSError) as error:
            failed[job.name] = str(error)
            _log.error("%s: failed: %s", progress, error)
    return failed


def _embed_slide(
    job: Job, embedder: Embedder, settings: Settings, facts: Mapping[str, Any], path: pathlib.Path, redo: bool
) -> int:
    """Compute the features of one slide and write its file; return the number of tiles."""
    # TRIDENT's coordinates are those of OpenSlide's whole level 0.
    with open_slide(job.slide, job.mpp, override_mpp=job.override_mpp, origin="level0") as slide:
        for warning in slide.warnings:
            _log.warning("%s: warning: %s", job.name, warning)
        tissue = find_tissue(slide, TissueSpec())
        geometry, table = grid.make_grid(slide, tissue, settings.grid_spec(embedder.image_size))
        partial, batch_size = path.with_name(f"{path.name}.partial"), embedder.batch_size
        with PartialResults(partial, facts, batch_size, len(table), redo=redo) as results:
            _embed_tiles(slide, table.iloc[results.num_done :], embedder, settings, results, job.name)
            attributes = _attributes(slide, geometry, embedder, job.name, path.parent)
            with atomic_write(path) as temporary:
                _write(temporary, table, embedder.width, attributes, facts, results.read())
            results.remove()
    return len(table)


def _embed_tiles(
    slide: Slide, table: pd.DataFrame, embedder: Embedder, settings: Settings, results: PartialResults, name: str
) -> None:
    """Keep the features of tiles as they come; warn of tiles whose stains could not be normalised."""
    normalised = np.ones(len(table), bool)
    stain, batch_size = embedder.input.stain, embedder.batch_size
    batches = grid.read_tiles(slide, table, embedder.image_size, batch_size, settings.threads, stain, normalised)
    try:
        with tqdm(total=len(table), desc=name, unit="tile", leave=False, disable=None, mininterval=1) as bar:
            for rows in embedder.stream(batches):
                results.append([[encode(row)] for row in rows])
                bar.update(len(rows))
    finally:
        batches.close()
    if left_alone := int((~normalised).sum()):
        _log.warning("%s: %d of %d tiles have too little tissue for stain normalisation", name, left_alone, len(table))


def _write(
    path: pathlib.Path,
    table: pd.DataFrame,
    width: int,
    attributes: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any],
    results: Iterable[Prediction],
) -> None:
    """Write the file of a slide, a block of rows at a time."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs[_KEY] = json.dumps(facts, sort_keys=True)
        features = file.create_dataset("features", (len(table), width), "f4")
        coords = file.create_dataset("coords", data=table[["minx", "miny"]].to_numpy(np.int64))
        for dataset, name in ((features, "features"), (coords, "coords")):
            for key, value in attributes[name].items():
                dataset.attrs[key] = value
        block: list[np.ndarray] = []
        start = 0
        for result in results:
            block.append(decode(result[0]))
            if len(block) == _BLOCK_ROWS:
                features[start : start + len(block)] = np.stack(block)
                start, block = start + len(block), []
        if block:
            features[start:] = np.stack(block)


def _attributes(
    slide: Slide, geometry: Geometry, embedder: Embedder, name: str, folder: pathlib.Path
) -> dict[str, dict[str, Any]]:
    """The attributes of both arrays, by name."""
    mpp = geometry.tile * slide.mpp / embedder.image_size
    common = {"name": name, "savetodir": str(folder)}
    return {
        "features": common | {"encoder": embedder.metadata["model"]},
        "coords": common
        | {
            "patch_size": embedder.image_size,
            "patch_size_level0": geometry.tile,
            "level0_magnification": _magnification(slide.mpp),
            "target_magnification": _magnification(mpp),
            "overlap": round((geometry.tile - geometry.stride) / geometry.tile * embedder.image_size),
            "level0_width": slide.width,
            "level0_height": slide.height,
            "level0_mpp": slide.mpp,
            "level0_mpp_y": slide.mpp_y,
            "mpp": mpp,
        },
    }


def _magnification(mpp: float) -> int:
    """The objective that this resolution is called by: 0.25 µm/px is 40."""
    return max(1, round(10 / mpp))


def _facts(job: Job, embedder: Embedder, settings: Settings) -> dict[str, Any]:
    """Everything that a slide's features depend on, by name, as JSON gives it back."""
    tiles = {"tile_um": settings.tile_um, "overlap": settings.overlap, "min_tissue": settings.min_tissue}
    given = {"mpp": job.mpp, "override_mpp": job.override_mpp, "content": job.content}
    facts = {**embedder.metadata, **tiles, **given, "batch_size": embedder.batch_size}
    return dict(json.loads(json.dumps(facts)))


def _is_finished(path: pathlib.Path, requested: Mapping[str, Any]) -> bool:
    """Return whether a slide's file exists and was made with the same settings.

    Raises:
      RunError: it was made with other settings, or by another program.
    """
    import h5py

    if not path.exists():
        return False
    try:
        with h5py.File(path) as file:
            saved = json.loads(file.attrs[_KEY])
    except (OSError, KeyError, ValueError) as error:
        raise RunError(f"{path}: not written by this command ({error}); choose another --output, or --redo") from error
    if differing := diff_settings(saved, requested):
        remedy = "Choose another --output, or overwrite it with --redo."
        raise RunError("\n".join([f"{path} was made with different settings:", *differing.values(), remedy]))
    return True
