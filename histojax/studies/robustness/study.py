"""`histojax robustness`: curves of finished runs over graded shifts of their test images, and paired comparisons."""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histojax.core.errors import RunError
from histojax.core.locks import owned
from histojax.core.positive import positive_by_name
from histojax.evaluation import predictions, summary_blocks
from histojax.inference.predictor import Predictor
from histojax.studies.robustness import curves, predicted, shifts
from histojax.studies.robustness.images import SIDE, TestImages, open_test_images
from histojax.studies.robustness.shifts import Shift
from histojax.training import checkpoint

RESULTS = "robustness.json"
VERSION = 1  # increases when the same image and strength give other pixels
USE = "Research use only. Not a medical device; not for diagnosis or treatment."
_SAME = 1e-4  # difference of probabilities that batches and devices may cause


@dataclasses.dataclass(frozen=True)
class Options:
    """How robustness is measured.

    Attributes:
      shifts: names or kinds; empty: all.
      data_root: folder of the images; empty: the run's.
      mpp: µm per pixel of the images; None: as their table or the run's config states it.
      resamples: of the bootstrap.
      seed: of the bootstrap.
      batch_size: images per batch; None: as for `Predictor.load`.
      threads: threads that decode and shift.
      redo: whether to overwrite predictions.
    """

    shifts: Sequence[str] = ()
    data_root: str = ""
    mpp: float | None = None
    resamples: int = 2000
    seed: int = 0
    batch_size: int | None = None
    threads: int = 4
    redo: bool = False


@dataclasses.dataclass(frozen=True)
class Measured:
    """A run with the predictions of its shifted test images.

    Attributes:
      facts: the run's entry in robustness.json.
      shifts: what was measured.
      tables: name of the shift -> predictions per strength, of images in the order of their names.
      classes: in the order of the probabilities.
      positive: the positive class of two; None: more classes.
    """

    facts: dict[str, Any]
    shifts: list[Shift]
    tables: dict[str, list[pd.DataFrame]]
    classes: list[str]
    positive: str | None


def check(runs: Sequence[pathlib.Path]) -> None:
    """Check, before anything is computed, that runs can be compared.

    Raises:
      RunError: a run is not finished, two runs are the same, or their classes differ.
    """
    for run in runs:
        if not (run / "results.json").is_file():
            raise RunError(f"{run}: no results.json: name the work directory of a run that is finished")
    found = [checkpoint.find(run) for run in runs]
    if len(set(found)) < len(found):
        raise RunError("the same run was given twice: name each run once")
    classes = [tuple(checkpoint.read_meta(path)["classes"]) for path in found]
    for run, names in zip(runs, classes, strict=True):
        if set(names) != set(classes[0]):
            raise RunError(
                f"{runs[0]} has the classes {', '.join(classes[0])}, {run} {', '.join(names)}: only runs of the same "
                "classes can be compared"
            )


def measure(run: pathlib.Path, name: str, folder: pathlib.Path, options: Options) -> Measured:
    """Measure a run; its predictions are kept in `folder`, and shifts that have them are not predicted again.

    Raises:
      RunError, DataError: the run, its images or kept predictions cannot be used.
    """
    predictor = Predictor.load(run, batch_size=options.batch_size)
    images, split = open_test_images(predictor, options.data_root, options.mpp)
    known = shifts.catalogue(microns=images.mpp is not None, image_size=predictor.image_size)
    chosen = shifts.choose(known, options.shifts)
    settings = {
        "version": VERSION,
        "checkpoint": predictor.digest,
        "split": split.hash,
        "data": images.dataset.hash,
        "mpp": options.mpp,
        "batch_size": predictor.batch_size,
    }
    with owned(folder):
        found = predicted.predict(
            predictor, images, chosen, folder / predicted.FOLDER, settings, threads=options.threads, redo=options.redo
        )
    tables = _sorted_tables(found)
    classes = list(predictor.classes)
    facts = {
        "name": name,
        "model": predictor.trained.config.model.name,
        "checkpoint": predictor.digest,
        "checkpoint_step": predictor.trained.meta["step"],
        "image_size": predictor.image_size,
        "protocol": split.protocol,
        "split_hash": split.hash,
        "data": images.dataset.prepared.description,
        "synthetic": images.dataset.prepared.synthetic,
        "mpp": _mpp(images),
        "classes": classes,
        "positive": (positive_by_name(classes) or classes[1]) if len(classes) == 2 else None,
        "bootstrap": {"n_resamples": options.resamples, "seed": options.seed},
    }
    measured = Measured(facts, chosen, tables, classes, facts["positive"])
    facts |= _figures(measured) | {"notes": _notes(measured, run, images)}
    return measured


def _sorted_tables(found: predicted.Predicted) -> dict[str, list[pd.DataFrame]]:
    """Order all tables by the names of the images; strength 0 stays one table for all shifts."""
    first = found.unshifted.sort_values("image_id", ignore_index=True)
    return {
        name: [
            first if table is found.unshifted else table.sort_values("image_id", ignore_index=True) for table in steps
        ]
        for name, steps in found.shifted.items()
    }


def _mpp(images: TestImages) -> float | str | None:
    """µm per pixel of the images, for readers."""
    if images.mpp is None:
        return None
    low, high = min(images.mpp), max(images.mpp)
    return low if low == high else f"{low:g} … {high:g}"


def _figures(measured: Measured) -> dict[str, Any]:
    """Estimate the curves of a run."""
    built = curves.curve_statistic(measured.tables, measured.shifts, measured.classes, measured.positive)
    statistic, members, unit, n_units = built
    estimates = curves.estimate(statistic, members, unit, n_units, **measured.facts["bootstrap"])
    rows = measured.tables[measured.shifts[0].name][0]
    described = [curves.describe(shift, estimates) for shift in measured.shifts]
    unshifted = described[0]["strengths"][measured.shifts[0].strengths.index(0)]["metrics"]
    unit_name = summary_blocks.resampled_units(rows)[0]
    return {
        "n_images": len(rows),
        "n_patients": n_units if unit_name == "patient" else None,
        "resampled": unit_name,
        "unshifted": unshifted,
        **curves.overall(estimates),
        "shifts": described,
    }


def _notes(measured: Measured, run: pathlib.Path, images: TestImages) -> list[str]:
    """Say what a reader of the figures must know."""
    rows = measured.tables[measured.shifts[0].name][0]
    unit_name, _, n_units = summary_blocks.resampled_units(rows)
    notes = [
        text.removeprefix(f"split '{SIDE}': ") for text in summary_blocks.unit_warnings(SIDE, rows, unit_name, n_units)
    ]
    if images.dataset.prepared.synthetic:
        notes.append("the images are synthetic: the figures say nothing about tissue")
    if images.mpp is None and any(shift.name == "defocus" for shift in measured.shifts):
        notes.append(
            "µm per pixel of the images is unknown, so defocus is in pixels of the model's input; --mpp states it"
        )
    for shift in measured.shifts:
        if unchanged := int(measured.tables[shift.name][-1]["unchanged"].sum()):
            notes.append(
                f"{shift.title}: {unchanged} of {len(rows)} images show too little tissue, and stay as they are"
            )
    file = run / "predictions.parquet"
    if file.is_file():
        saved = predictions.read(file).set_index("image_id")
        columns = [predictions.PREFIX + name for name in measured.classes]
        if set(rows["image_id"]) <= set(saved.index) and set(columns) <= set(saved.columns):
            gap = np.abs(saved.loc[rows["image_id"], columns].to_numpy() - rows[columns].to_numpy()).max()
            if gap > _SAME:
                notes.append(f"probabilities of the unshifted images differ from {file.name} by up to {gap:.2g}")
    return notes


def compare(first: Measured, second: Measured, *, n_resamples: int, seed: int) -> dict[str, Any]:
    """Compare two runs on the images that both tested, shifted in the same way. Differences are second − first.

    Returns:
      `first`, `second`, `n_images`, `resampled`, `refused` (why nothing is compared, or ""), `left_out` (shifts that
      the runs saw differently), and as for a run `mean`, `change` and `shifts`, without worst cases.
    """
    names = {"first": first.facts["name"], "second": second.facts["name"]}
    theirs = {shift.name: shift.definition for shift in second.shifts}
    common = [shift for shift in first.shifts if theirs.get(shift.name) == shift.definition]
    left_out = sorted(
        {shift.name for one in (first, second) for shift in one.shifts} - {shift.name for shift in common}
    )
    pair: dict[str, Any] = names | {"refused": "", "left_out": left_out}
    if not common:
        return pair | {"refused": "no shift was measured in the same way of both"}
    keys = [_images(one.tables[common[0].name][0]) for one in (first, second)]
    shared = sorted(keys[0] & keys[1])
    if not shared:
        return pair | {"refused": "the runs share no test image"}
    ids = [image_id for image_id, *_ in shared]
    built = [
        curves.curve_statistic(_rows_of(one.tables, common, ids), common, first.classes, first.positive)
        for one in (first, second)
    ]
    (one, members, unit, n_units), (other, *_) = built
    estimates = curves.estimate(
        curves.difference(one, other), members, unit, n_units, n_resamples=n_resamples, seed=seed
    )
    rows = _rows_of(first.tables, common[:1], ids)[common[0].name][0]
    described = [curves.describe(shift, estimates) for shift in common]
    for shift in described:
        del shift["worst"]  # of differences, the lowest has no meaning
    resampled = summary_blocks.resampled_units(rows)[0]
    return pair | {"n_images": len(ids), "resampled": resampled, **curves.overall(estimates), "shifts": described}


def _images(rows: pd.DataFrame) -> set[tuple[str, str, str]]:
    """Name, pixels and label of each image."""
    return set(rows[["image_id", "pixel_hash", "label"]].itertuples(index=False, name=None))


def _rows_of(
    tables: Mapping[str, Sequence[pd.DataFrame]], common: Sequence[Shift], ids: Sequence[str]
) -> dict[str, list[pd.DataFrame]]:
    """Take some images from the tables of some shifts; strength 0 stays one table for all shifts."""
    taken: dict[int, pd.DataFrame] = {}
    for shift in common:
        for table in tables[shift.name]:
            if id(table) not in taken:
                taken[id(table)] = table[table["image_id"].isin(ids)].reset_index(drop=True)
    return {shift.name: [taken[id(table)] for table in tables[shift.name]] for shift in common}


def results_of(runs: Sequence[Measured], options: Options) -> dict[str, Any]:
    """Lay out runs and the comparisons of every pair, as robustness.json holds them."""
    bootstrap = {"n_resamples": options.resamples, "seed": options.seed}
    return {
        "use": USE,
        "runs": [run.facts for run in runs],
        "comparisons": [compare(a, b, **bootstrap) for a, b in itertools.combinations(runs, 2)],
    }
