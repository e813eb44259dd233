"""`histojax crossval`: choose thresholds on k validation folds, then train one model on all their images."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from histojax.core.errors import RunError
from histojax.core.files import write_json
from histojax.core.positive import positive_by_name
from histojax.data.sources import Dataset, open_dataset
from histojax.evaluation import predictions, results, terminal
from histojax.studies.study_runs import check_data, check_same, read_results, train
from histojax.training import build, decision_rule, default_config, evaluate, trainer

FINAL = "final"


def plan(config: ConfigDict, folds: int) -> dict[str, ConfigDict]:
    """Plan the runs: one for each fold of the images that are not tested, and one on all of these images.

    All runs train for `train.epochs` epochs and are evaluated after the last one: what the folds show is then true of
    the final run, which has no validation images.

    Args:
      config: of the model.
      folds: number of folds, at least 2.

    Returns:
      Name of the run -> its config; the final run is the last.

    Raises:
      RunError, DataError: a meaningless number of folds, or a field that does not fit.
    """
    if folds < 2:
        raise RunError(f"--folds={folds}: give 2 or more")
    if config.train.early_stopping:
        raise RunError(
            f"train.early_stopping={config.train.early_stopping}: the final run has no validation images that could "
            "stop it; set it to 0, and train.epochs to the number of epochs"
        )
    runs = {}
    for name, fields in [
        *((f"fold_{fold}", {"val_folds": folds, "val_fold": fold}) for fold in range(folds)),
        (FINAL, {"val_folds": 0, "val_fold": 0, "val_fraction": 0.0}),
    ]:
        run = config.copy_and_resolve_references()
        run.data.split.update(fields)
        run.train.best_metric = "last"
        default_config.check_values(run)
        build.split_spec(run)
        trainer.make_paths_absolute(run)
        runs[name] = run
    return runs


def measure(runs: Mapping[str, ConfigDict], workdir: pathlib.Path) -> str | None:
    """Train the runs that are not finished, each in its own folder; write `out_of_fold` and `crossval.json`.

    Args:
      runs: as `plan` returns them.
      workdir: folder of all runs.

    Returns:
      The text to print; None if the study was interrupted, in which case the same command resumes it.

    Raises:
      RunError, DataError: a run cannot be trained, or finished runs were trained on other data.
    """
    check_data({workdir / name: config for name, config in runs.items()})
    folds = [name for name in runs if name != FINAL]
    for number, name in enumerate(folds, 1):
        if not train(runs[name], workdir / name, f"{name} ({number} of {len(folds)})"):
            return None
    final = runs[FINAL]
    dataset = open_dataset(final.data)
    table = _out_of_fold(dataset, workdir, folds)
    predictions.write(table, workdir / "out_of_fold")
    rule = _decision_rule(table, dataset, final)
    if not train(final, workdir / FINAL, f"{FINAL}: all images that are not tested", rule):
        return None
    study = _summary(table, rule, final, workdir, folds)
    write_json(workdir / "crossval.json", study)
    tested = read_results(workdir / FINAL)
    return f"{terminal.headline(study)}\n{terminal.headline(tested)}"


def _out_of_fold(dataset: Dataset, workdir: pathlib.Path, folds: list[str]) -> pd.DataFrame:
    """Collect what each fold's model says of its validation images, in the order of the dataset.

    Raises:
      RunError: the folds do not contain each image once.
    """
    check_same({workdir / name: read_results(workdir / name) for name in folds}, "data")
    tables = [predictions.read(workdir / name / "predictions") for name in folds]
    table = pd.concat([one[one["split"] == "val"] for one in tables], ignore_index=True)
    if repeated := int(table["image_id"].duplicated().sum()):
        raise RunError(f"{workdir}: {repeated} images are in several folds; delete it and run the command again")
    return table.iloc[np.argsort(_positions(table, dataset))].assign(split="out_of_fold").reset_index(drop=True)


def _positions(table: pd.DataFrame, dataset: Dataset) -> np.ndarray:
    """Return the position in the dataset of each image of a table."""
    places = {image_id: i for i, image_id in enumerate(dataset.records.column("image_id"))}
    return table["image_id"].map(places).to_numpy()


def _decision_rule(table: pd.DataFrame, dataset: Dataset, config: ConfigDict) -> dict[str, Any]:
    """Choose thresholds and temperatures on the out-of-fold predictions."""
    columns = [predictions.PREFIX + name for name in dataset.classes]
    output = evaluate.EvalOutput(table[columns].to_numpy(np.float32), {})
    return decision_rule.fit_decision_rule(
        output, dataset, _positions(table, dataset), build.threshold_rule(config), config.train.temperature
    )


def _summary(
    table: pd.DataFrame, rule: Mapping[str, Any], config: ConfigDict, workdir: pathlib.Path, folds: list[str]
) -> dict[str, Any]:
    """Return the content of `crossval.json`: out-of-fold results in the layout of results.json, and the rule."""
    tested = read_results(workdir / FINAL)
    classes, locked = predictions.class_names(table), rule["thresholds"]
    blocks = results.summarise(
        table,
        positive=positive_by_name(classes),
        thresholds=None if locked is None else dict(zip(classes, locked, strict=True)),
        n_resamples=config.evaluation.resamples,
        seed=config.seed,
    )
    shared = {key: tested[key] for key in ("model", "pretrained", "image_size", "data")}
    return shared | {
        "protocol": f"out of fold: {len(folds)} folds of the images that are not tested ({tested['protocol']})",
        "runs": folds,
        "final": FINAL,
        "rule": config.train.thresholds,
        "decision_rule": {key: value for key, value in rule.items() if value is not None},
        "splits": blocks,
    }
