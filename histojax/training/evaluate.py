"""From a model's state to predictions, and from predictions to results."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from data_pipelines.splits import Split
from histojax.core.errors import RunError
from histojax.core.files import atomic_write
from histojax.data.pipeline import Batch, LoaderSpec, eval_batches
from histojax.data.sources import Dataset, open_dataset
from histojax.distributed.sharding import Layout
from histojax.evaluation import (
    calibration,
    decisions,
    metrics,
    multilabel,
    predictions,
    results,
    terminal,
    thresholds,
)
from histojax.training import build, checkpoint
from histojax.training.loading import load
from histojax.training.program import Program
from histojax.training.state import ModelState

POSITIVE = "malignant"


@dataclasses.dataclass(frozen=True)
class EvalOutput:
    """What a model said of a set of images.

    Attributes:
      probabilities: `f32 [n, k]`, in the order of the images.
      sums: the task's sums over them (loss, confusion).
    """

    probabilities: np.ndarray
    sums: dict[str, np.ndarray]


class Stopped(Exception):
    """An evaluation was asked to stop; nothing is lost but its time."""


def run_model(
    program: Program,
    model: ModelState,
    batches: Iterable[Batch],
    count: int,
    layout: Layout,
    stop: Callable[[], bool] = lambda: False,
) -> EvalOutput:
    """Every image exactly once, on all devices of all processes.

    Args:
      program: what computes.
      model: the model's state.
      batches: as `eval_batches` yields them.
      count: images in all of them.
      layout: where they go.
      stop: asked before each batch.

    Raises:
      Stopped: `stop` said so.
    """
    outputs = []
    for batch in batches:
        if stop():
            raise Stopped
        outputs.append(program.evaluate(model, layout.to_device(batch)))
        if len(outputs) > 2:  # keeps the host ahead of the device, but not by a whole dataset
            jax.block_until_ready(outputs[-3])
    probabilities: list[np.ndarray] = []
    sums: dict[str, np.ndarray] = {}
    for output in jax.device_get(outputs):
        probabilities.append(output.pop("probabilities"))
        sums = {key: sums.get(key, 0) + value.astype(np.float64) for key, value in output.items()}
    return EvalOutput(np.concatenate(probabilities)[:count], sums)


def validation_metrics(outcome: EvalOutput, dataset: Dataset, indices: np.ndarray) -> dict[str, float]:
    """Loss and the task's metrics of the images at `indices`.

    One class an image: of the confusion matrix; F1 is that of the positive class, else the macro mean. Several
    labels: at thresholds of 0.5, since the chosen ones fit these very images.
    """
    loss = {"loss": float(outcome.sums["loss_sum"] / outcome.sums["loss_weight"])}
    if dataset.multilabel:
        halves = np.full(len(dataset.classes), 0.5)
        return loss | multilabel.scores(dataset.labels[indices], outcome.probabilities, halves)
    confusion = outcome.sums["confusion"]
    f1 = metrics.f1(confusion)
    classes = dataset.classes
    return loss | {
        "accuracy": float(metrics.accuracy(confusion)),
        "balanced_accuracy": float(metrics.balanced_accuracy(confusion)),
        "gmean": float(metrics.gmean(confusion)),
        "f1": float(f1[..., classes.index(POSITIVE)] if POSITIVE in classes else metrics.macro(f1)),
    }


def default_decision_rule(dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint holds of `chosen` where there is no validation side."""
    halves = [0.5] * len(dataset.classes) if dataset.multilabel else None
    return {"thresholds": halves, "confusion": None, "decision": None, "temperatures": None}


def fit_decision_rule(outcome: EvalOutput, dataset: Dataset, indices: np.ndarray, rule: str) -> dict[str, Any]:
    """What is chosen on validation images, those at `indices`, and locked in the checkpoint.

    `thresholds` of several labels, by the rule, and how often each label is right at its own (`confusion`: true
    negatives, false positives, false negatives, true positives; they say how far a count of predicted labels can be
    off); of two classes the `decision` of the positive one; `temperatures` that calibrate.
    """
    truth, said = dataset.labels[indices], outcome.probabilities
    if not dataset.multilabel:
        temperatures = [calibration.fit_temperature(truth, said)]
        decision = _decision(truth, said, dataset.classes, rule) if len(dataset.classes) == 2 else None
        return default_decision_rule(dataset) | {"decision": decision, "temperatures": temperatures}
    cuts = thresholds.choose_thresholds(truth, said, rule)
    there, yes = truth > 0.5, thresholds.is_positive(said, cuts)
    cells = (~there & ~yes, ~there & yes, there & ~yes, there & yes)
    pairs = zip(there.astype(int).T, said.T, strict=True)
    return {
        "thresholds": cuts.tolist(),
        "confusion": {name: [int(cell[:, i].sum()) for cell in cells] for i, name in enumerate(dataset.classes)},
        "decision": None,
        "temperatures": [calibration.fit_temperature(one, np.stack([1 - p, p], axis=1)) for one, p in pairs],
    }


def _decision(truth: np.ndarray, said: np.ndarray, classes: Sequence[str], rule: str) -> dict[str, Any]:
    positive = classes.index(POSITIVE) if POSITIVE in classes else 1
    (cut,) = thresholds.choose_thresholds((truth == positive)[:, None], said[:, [positive]], rule).tolist()
    return {"class": classes[positive], "threshold": cut, "rule": rule}


def predict_split(
    program: Program, model: ModelState, dataset: Dataset, split: Split, sides: Sequence[str], spec: LoaderSpec,
    layout: Layout, stop: Callable[[], bool] = lambda: False,
) -> pd.DataFrame:  # fmt: skip
    """The table of predictions over the given sides of a split, a row an image; `stop` as of `run_model`."""
    tables = []
    for side in sides:
        indices = split.indices(side)
        if not len(indices):
            continue
        outcome = run_model(program, model, eval_batches(dataset, indices, spec), len(indices), layout, stop)
        rows = dataset.records.take(indices)
        further = ("slide_id", "source_id") if dataset.multilabel else ("case_id", "subtype")
        tables.append(
            predictions.make_table(
                rows.column("image_id"),
                dataset.labels[indices],
                outcome.probabilities,
                dataset.classes,
                split=side,
                patient_id=rows.column("patient_id"),
                magnification=rows.column("magnification"),
                **{name: rows.column(name) for name in further},
            )
        )
    return pd.concat(tables, ignore_index=True)


def write_results(
    workdir: pathlib.Path, table: pd.DataFrame, facts: Mapping[str, Any], config: ConfigDict, meta: Mapping[str, Any]
) -> None:
    """Write `predictions.parquet`, `predictions.csv`, `results.json` and, for people, `results.txt`.

    Args:
      workdir: where to.
      table: of predictions.
      facts: `protocol`, `split_hash`, `checkpoint_step`, `data`, … as results.json has them at the top.
      config: `evaluation`, `seed`, `paper`.
      meta: of the checkpoint: `classes`, `thresholds`.
    """
    predictions.write(table, workdir / "predictions")
    classes, cuts = meta["classes"], meta["thresholds"]
    summary = dict(facts)
    if cuts is not None and set(config.paper.label_accuracy) == set(classes):  # else it is another question
        summary["reported"] = config.paper.to_dict()
    options = {"n_resamples": config.evaluation.resamples, "seed": config.seed}
    summary["splits"] = results.summarise(
        table,
        positive=POSITIVE if POSITIVE in classes else None,
        thresholds=None if cuts is None else dict(zip(classes, cuts, strict=True)),
        **options,
    )
    if locked := meta.get("decision"):  # older checkpoints have none
        summary["thresholds"] = {locked["class"]: locked["threshold"]}
        summary["threshold_rule"] = locked["rule"]
        for split, block in summary["splits"].items():
            rows = table[table["split"] == split]
            there, scores = rows["label"] == locked["class"], rows[predictions.PREFIX + locked["class"]]
            block["decisions"] = {
                name: decisions.at_threshold(rows, there.to_numpy(), scores.to_numpy(), cut, **options)
                for name, cut in (("half", 0.5), ("locked", locked["threshold"]))
            }
    results.write_json(summary, workdir / "results.json")
    with atomic_write(workdir / "results.txt") as temporary:
        temporary.write_text(terminal.table(summary), encoding="utf-8")


def evaluate_checkpoint(
    path: pathlib.Path,
    output: pathlib.Path | None,
    *,
    data_root: str = "",
    magnification: str = "",
    image_size: int = 0,
) -> pathlib.Path:
    """`histojax eval`: rebuilds model, preprocessing and split from a checkpoint alone and evaluates it.

    Args:
      path: a work directory, a series of checkpoints, or one checkpoint.
      output: where results go; None: into the run's own folder. Results on other images than the run's own
        go to a subfolder `eval/<root>-<magnification>` of it.
      data_root: other images than the run's; empty: the run's. Nothing that the model was trained or selected
        on is tested: such images, their copies and other images of their groups are left out.
      magnification: another one than the run's; empty: the run's.
      image_size: height and width of the model's input; 0: the run's.

    Returns:
      The folder with the results, which the first process writes.

    Raises:
      RunError, DataError: no or a damaged checkpoint, no images.
    """
    path = checkpoint.find(path)
    if output is None:
        run = checkpoint.run_of(path)
        if run is None:
            raise RunError(f"{path} lies in no work directory: say with --workdir=DIR where results go")
        size = f"-{image_size}px" if image_size else ""
        output = run / "eval" / f"{path.parent.name}-{path.name}{size}"
    trained = load(path, image_size=image_size)
    meta, config = trained.meta, trained.config
    if data_root:
        config.data.root = str(pathlib.Path(data_root).expanduser().resolve())
    if magnification:
        config.data.magnification = magnification
    dataset = open_dataset(config.data, meta["classes"])
    saved = Split.from_json(meta["split"])
    split = dataset.place(saved)
    same = split.hash == saved.hash
    sides = [side for side in ("val", "test") if len(split.indices(side))] if same else ["test"]
    if not len(split.indices("test")):
        raise RunError(
            f"{dataset.prepared.description}: every image belongs to patients that the model was trained or "
            "selected on, so nothing is left to test"
        )
    spec = build.loader_spec(config, trained.layout, training=False)
    table = predict_split(trained.program, trained.model, dataset, split, sides, spec, trained.layout)
    protocol = saved.protocol
    if not same:
        seen = len(dataset.records) - len(split.indices("test"))
        protocol = f"other images than the run's; {seen} of patients seen in training left out; model: {protocol}"
    facts = result_facts(config, dataset, split, protocol, path, meta)
    if not same:
        names = (pathlib.Path(config.data.root).name or "synthetic", config.data.magnification)
        output = output / "eval" / "-".join(name for name in names if name)
    if jax.process_index() == 0:
        output.mkdir(parents=True, exist_ok=True)
        write_results(output, table, facts, config, meta)
    return output


def result_facts(
    config: ConfigDict,
    dataset: Dataset,
    split: Split,
    protocol: str,
    path: pathlib.Path,
    meta: Mapping[str, Any],
) -> dict[str, Any]:
    """The head of results.json; `path` and `meta` are the checkpoint's."""
    own = split.definition if split.hash == meta["split"]["hash"] else None
    return {
        "protocol": protocol,
        "protocol_id": own.tag if own else None,  # other images follow no protocol by name, nor do older checkpoints
        "split_hash": split.hash,
        "model": config.model.name,
        "image_size": config.data.image_size,
        "pretrained": meta["pretrained"] or "none: trained from random initial weights",
        "checkpoint": str(path),
        "checkpoint_step": meta["step"],
        "data": dataset.facts(split) | {"split_warnings": list(split.warnings)},
    }
