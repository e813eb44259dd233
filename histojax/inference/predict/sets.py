"""Prediction sets for `histojax predict`, fitted on the validation predictions that a run stored."""

import logging
import pathlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from histojax.core.errors import RunError
from histojax.core.files import read_json
from histojax.evaluation import conformal, predictions
from histojax.inference.predict.thresholds import ThresholdedModel, calibrate
from histojax.training import checkpoint

_log = logging.getLogger(__name__)


class StoredModel(ThresholdedModel, Protocol):
    """The attributes of a `Predictor` that sets depend on."""

    @property
    def path(self) -> pathlib.Path: ...  # noqa: D102
    @property
    def step(self) -> int: ...  # noqa: D102


def fit(models: Sequence[StoredModel], level: float, by: str, *, calibrated: bool = False) -> conformal.SetRule:
    """Fit sets on the validation predictions that the models' runs stored.

    Args:
      models: models with the same classes; several need the same validation images.
      level: probability that a set holds the truth.
      by: `conformal.ALL` or `conformal.CLASS`.
      calibrated: whether the probabilities are calibrated by the models' temperatures, before they are averaged.

    Raises:
      RunError: a run has no validation predictions of its checkpoint, the runs have different ones, or there are too
        few patients.
    """
    tables = [_validation_rows(model.path, model.step).sort_values("image_id", ignore_index=True) for model in models]
    first = tables[0]
    columns = [predictions.PREFIX + name for name in models[0].classes]
    for number, table in enumerate(tables[1:], 2):
        if not table["image_id"].equals(first["image_id"]):
            raise RunError(
                f"--sets: runs 1 and {number} have different validation images, so no image shows how their mean "
                "predicts new patients; name one run, or runs of the same split"
            )
    rows = []
    for model, table in zip(models, tables, strict=True):
        probabilities = table[columns].to_numpy(np.float64)
        rows.append(calibrate(probabilities, model) if calibrated else probabilities)
    try:
        rule = conformal.fit(first.assign(**dict(zip(columns, np.mean(rows, axis=0).T, strict=True))), level, by)
    except RunError as error:
        raise RunError(f"--sets={level:g}: {models[0].path}: {error}") from error
    if rule.unit != "patient":
        _log.warning(
            "warning: the patients of the validation images are unknown; the sets rest on %ss, and hold the truth too "
            "rarely where a patient has several", rule.unit,
        )  # fmt: skip
    listed = ", ".join(f"{name} {probability:.3g}" for name, probability in rule.described().items())
    _log.info("sets hold an answer from this probability on: %s", listed)
    return rule


def _validation_rows(path: pathlib.Path, step: int) -> pd.DataFrame:
    """Read what a checkpoint predicted of validation images.

    Its work directory has them, or the folder that `histojax eval` writes. The final run of `histojax crossval` has no
    validation images; `out_of_fold.parquet` beside it has each image as the model of its fold predicted it.

    Raises:
      RunError: there are none.
    """
    run = checkpoint.run_of(path)
    if run is None:
        raise RunError(f"--sets: {path} is not in a work directory, which has validation predictions; name a run")
    for folder in (run, run / "eval" / f"{path.parent.name}-{path.name}"):
        facts = read_json(folder / "results.json")
        if facts is None or facts.get("checkpoint_step") != step:
            continue
        table = _read(folder / "predictions.parquet")
        rows = table[table["split"] == "val"]
        if len(rows):
            _warn_of_trained(run)
            return rows
    study = read_json(run.parent / "crossval.json")
    if study is not None and study.get("final") == run.name:
        _log.info("the sets rest on out-of-fold predictions, which are those of the fold models")
        _warn_of_trained(run.parent / study["runs"][0])
        return _read(run.parent / "out_of_fold.parquet")
    raise RunError(
        f"--sets: {run} has no validation predictions of its checkpoint at step {step}; write them by `histojax eval "
        f"--checkpoint {path}`. A run without validation images has none: train by `histojax crossval`, and name its "
        "folder final"
    )


def _read(file: pathlib.Path) -> pd.DataFrame:
    try:
        return predictions.read(file)
    except (OSError, ValueError) as error:
        raise RunError(
            f"--sets: {file} cannot be read ({error}); rerun the command that trained the run, which writes it again"
        ) from error


def _warn_of_trained(run: pathlib.Path) -> None:
    """Warn if a run was trained on images of patients that it was validated on."""
    file = run / "split.csv"
    if not file.is_file():
        return
    table = pd.read_csv(file, dtype=str, na_filter=False)
    if "patient_id" not in table:
        return
    sides = [set(table["patient_id"][table["split"] == side]) - {""} for side in ("train", "val")]
    if shared := len(sides[0] & sides[1]):
        _log.warning(
            "warning: %d of %d validation patients were also trained on; the sets hold the truth too rarely for new "
            "patients", shared, len(sides[1]),
        )  # fmt: skip
