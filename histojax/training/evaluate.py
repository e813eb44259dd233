"""Predictions of a trained model, and their results."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from data_pipelines.splits import Split
from histojax.core import plugins
from histojax.core.errors import RunError
from histojax.core.files import atomic_write, write_json
from histojax.core.positive import positive_by_name
from histojax.data.batches import Batch
from histojax.data.pipeline import LoaderSpec, eval_batches
from histojax.data.sources import Dataset, open_dataset
from histojax.distributed.sharding import Layout
from histojax.evaluation import (
    decisions,
    metrics,
    multilabel,
    own_metrics,
    predictions,
    results,
    terminal,
)
from histojax.storage import places
from histojax.training import build, checkpoint, colours, default_config, experiments, stains
from histojax.training.loading import load
from histojax.training.program import Program
from histojax.training.state import ModelState


@dataclasses.dataclass(frozen=True)
class EvalOutput:
    """A model's output for a set of images.

    Attributes:
      probabilities: `f32 [n, k]`, in the order of the images.
      sums: the task's sums over the images (`Task.evaluation_sums`).
      normalised: whether each image had enough tissue for stain normalisation, `bool [n]`; None: there was none.
    """

    probabilities: np.ndarray
    sums: dict[str, np.ndarray]
    normalised: np.ndarray | None = None


class Stopped(Exception):
    """An evaluation stopped on request; only its time is lost."""


def run_model(
    program: Program,
    model: ModelState,
    batches: Iterable[Batch],
    count: int,
    layout: Layout,
    stop: Callable[[], bool] = lambda: False,
) -> EvalOutput:
    """Evaluate every image exactly once, on all devices of all processes.

    Args:
      program: the compiled functions.
      model: the model's state.
      batches: as `eval_batches` yields them.
      count: number of images in all batches, without padding.
      layout: the devices.
      stop: called before each batch; True stops the evaluation.

    Raises:
      Stopped: `stop` returned True.
    """
    outputs = []
    for batch in batches:
        if stop():
            raise Stopped
        outputs.append(program.evaluate(model, layout.to_device(batch)))
        if len(outputs) > 2:  # the host runs ahead of the device, but not by a whole dataset
            jax.block_until_ready(outputs[-3])
    probabilities: list[np.ndarray] = []
    normalised: list[np.ndarray] = []
    sums: dict[str, np.ndarray] = {}
    for output in jax.device_get(outputs):
        probabilities.append(output.pop("probabilities"))
        if "normalised" in output:
            normalised.append(output.pop("normalised"))
        sums = {key: sums.get(key, 0) + value.astype(np.float64) for key, value in output.items()}
    flags = np.concatenate(normalised)[:count] if normalised else None
    return EvalOutput(np.concatenate(probabilities)[:count], sums, flags)


def validation_metrics(output: EvalOutput, dataset: Dataset, indices: np.ndarray) -> dict[str, float]:
    """Compute the loss and the task's metrics.

    With one class per image they come from the confusion matrix; F1 is the positive class's, or the macro mean if the
    data has no such class. With several labels the thresholds are 0.5, because fitted ones were chosen on these images.

    Args:
      output: the model's output for the images.
      dataset: the images.
      indices: rows of the evaluated images in `dataset`.
    """
    loss = {"loss": float(output.sums["loss_sum"] / output.sums["loss_weight"])}
    if dataset.multilabel:
        halves = np.full(len(dataset.classes), 0.5)
        return loss | multilabel.scores(dataset.labels[indices], output.probabilities, halves)
    confusion, classes = output.sums["confusion"], dataset.classes
    f1, positive = metrics.f1(confusion), positive_by_name(classes)
    return loss | {
        "accuracy": float(metrics.accuracy(confusion)),
        "balanced_accuracy": float(metrics.balanced_accuracy(confusion)),
        "gmean": float(metrics.gmean(confusion)),
        "f1": float(f1[..., classes.index(positive)] if positive else metrics.macro(f1)),
    }


def predict_split(
    program: Program, model: ModelState, dataset: Dataset, split: Split, sides: Sequence[str], spec: LoaderSpec,
    layout: Layout, stop: Callable[[], bool] = lambda: False,
) -> pd.DataFrame:  # fmt: skip
    """Predict the images of a split's sides.

    Args:
      program: the compiled functions.
      model: the model's state.
      dataset: the images.
      split: their split.
      sides: the sides to predict, such as `val` and `test`; an empty side adds no rows.
      spec: how batches are made.
      layout: the devices.
      stop: called before each batch; True stops the evaluation.

    Returns:
      The table of predictions, one row per image.

    Raises:
      Stopped: `stop` returned True.
    """
    tables, further = [], dataset.records.further_columns()
    for side in sides:
        indices = split.indices(side)
        if not len(indices):
            continue
        output = run_model(program, model, eval_batches(dataset, indices, spec), len(indices), layout, stop)
        rows = dataset.records.take(indices)
        more_columns = ("slide_id", "source_id") if dataset.multilabel else ("case_id", "subtype")
        table = predictions.make_table(
            rows.column("image_id"),
            dataset.labels[indices],
            output.probabilities,
            dataset.classes,
            split=side,
            patient_id=rows.column("patient_id"),
            magnification=rows.column("magnification"),
            **{name: rows.column(name) for name in more_columns},
        )
        table = table.assign(**{name: [values[i] for i in indices] for name, values in further.items()})
        if output.normalised is not None:
            table[stains.COLUMN] = output.normalised.astype(int)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def write_results(
    workdir: pathlib.Path,
    table: pd.DataFrame,
    facts: Mapping[str, Any],
    config: ConfigDict,
    meta: Mapping[str, Any],
    dataset: Dataset,
    split: Split,
) -> None:
    """Write `predictions.parquet`, `predictions.csv`, `results.json` and its text `results.txt`.

    Args:
      workdir: the folder to write to.
      table: the predictions.
      facts: the head of results.json: `protocol`, `split_hash`, `checkpoint_step`, `data`, …
      config: `evaluation`, `seed` and `paper` are read.
      meta: metadata of the checkpoint: `classes`, `thresholds`, `decision`.
      dataset: the images, whose colour and texture are measured.
      split: their split.
    """
    predictions.write(table, workdir / "predictions")
    classes, locked, summary = meta["classes"], meta["thresholds"], dict(facts)
    # A paper's figures for other labels answer another question.
    if locked is not None and set(config.paper.label_accuracy) == set(classes):
        summary["reported"] = config.paper.to_dict()
    options = {"n_resamples": config.evaluation.resamples, "seed": config.seed}
    positive = positive_by_name(classes)
    own = own_metrics.find(config.evaluation.metrics)
    summary["splits"] = results.summarise(
        table,
        positive=positive,
        thresholds=None if locked is None else dict(zip(classes, locked, strict=True)),
        own=own,
        **options,
    )
    if own:
        summary["own_metrics"] = {metric.name: plugins.qualified_name(metric.function) for metric in own}
    if decision := meta.get("decision"):  # older checkpoints have none
        summary["thresholds"] = {decision["class"]: decision["threshold"]}
        summary["threshold_rule"] = decision["rule"]
        for side, block in summary["splits"].items():
            rows = table[table["split"] == side]
            is_positive, scores = rows["label"] == decision["class"], rows[predictions.PREFIX + decision["class"]]
            block["decisions"] = {
                name: decisions.at_threshold(rows, is_positive.to_numpy(), scores.to_numpy(), threshold, **options)
                for name, threshold in (("half", 0.5), ("locked", decision["threshold"]))
            }
    if stains.COLUMN in table:
        stains.add_to_results(summary, table, meta["stain"])
    found = colours.colour_baseline(dataset, split, table, config.data.image_size, positive=positive, **options)
    if found is not None:
        summary["splits"]["test"]["colour_and_texture"] = found
    write_json(workdir / "results.json", summary)
    with atomic_write(workdir / "results.txt") as temporary:
        temporary.write_text(terminal.table(summary), encoding="utf-8")


def evaluate_checkpoint(
    path: pathlib.Path,
    output: pathlib.Path | None,
    *,
    data_root: str = "",
    magnification: str = "",
    image_size: int = 0,
    overrides: Sequence[experiments.Override] = (),
) -> pathlib.Path:
    """Evaluate a checkpoint; it holds everything that model, preprocessing and split are rebuilt from.

    Images other than the run's own are tested only if the model was neither trained nor selected on them: such
    images, their copies, and the other images of their groups are left out.

    Args:
      path: a work directory, a series of checkpoints, or one checkpoint.
      output: folder for the results; None: a folder in the run's work directory. Results on images other than the
        run's own go to its subfolder `eval/<root>-<magnification>`.
      data_root: dataset root; empty: the run's.
      magnification: magnification of the images; empty: the run's.
      image_size: height and width of the model's input; 0: the run's.
      overrides: fields of the run's config with other values, such as `data.on_bad_image` or `data.prepared_dir`.

    Returns:
      The folder with the results, which the first process writes.

    Raises:
      RunError: the checkpoint is missing or damaged, or no image is left to test.
      DataError: the images are missing or damaged.
    """
    path = checkpoint.find(path)
    if output is None:
        output = _default_output(path, image_size)
    trained = load(path, image_size=image_size)
    meta, config = trained.meta, trained.config
    changed = experiments.override(config, overrides)
    default_config.check_values(config, changed)
    default_config.check_used(config, changed)
    plugins.load(config.plugins)
    own_metrics.check(config.evaluation.metrics, len(meta["classes"]), config.data.task == "multilabel")
    saved = Split.from_json(meta["split"])
    dataset, split = open_run_images(config, meta["classes"], saved, data_root, magnification)
    same = split.hash == saved.hash
    sides = [side for side in ("val", "test") if len(split.indices(side))] if same else ["test"]
    spec = build.loader_spec(config, trained.layout, training=False, stain=trained.stain)
    table = predict_split(trained.program, trained.model, dataset, split, sides, spec, trained.layout)
    protocol = saved.protocol
    if not same:
        seen = len(dataset.records) - len(split.indices("test"))
        protocol = f"other images than the run's; {seen} of patients seen in training left out; model: {protocol}"
        names = (pathlib.Path(config.data.root).name or "synthetic", config.data.magnification)
        output = output / "eval" / "-".join(name for name in names if name)
    facts = result_facts(config, dataset, split, protocol, path, meta)
    if jax.process_index() == 0:
        output.mkdir(parents=True, exist_ok=True)
        write_results(output, table, facts, config, meta, dataset, split)
    return output


def _default_output(path: pathlib.Path, image_size: int) -> pathlib.Path:
    """Return the folder for a checkpoint's results in the work directory that holds the checkpoint."""
    run = checkpoint.run_of(path)
    if run is None:
        raise RunError(f"{path} is not in a work directory: give the folder for the results with --workdir=DIR")
    size = f"-{image_size}px" if image_size else ""
    return run / "eval" / f"{path.parent.name}-{path.name}{size}"


def open_run_images(
    config: ConfigDict, classes: Sequence[str], saved: Split, data_root: str, magnification: str
) -> tuple[Dataset, Split]:
    """Open the images to evaluate and place the run's split on them; `config.data` is changed to describe them."""
    if data_root:
        config.data.root = places.absolute(data_root)
    elif config.data.root and not places.exists(config.data.root):
        raise RunError(f"{config.data.root}: the run's images are not there; name their folder with --data_root=PATH")
    if magnification:
        config.data.magnification = magnification
    dataset = open_dataset(config.data, classes)
    split = dataset.place(saved)
    if not len(split.indices("test")):
        raise RunError(
            f"{dataset.prepared.description}: no image is left to test, because every image belongs to patients that "
            "the model was trained or selected on"
        )
    return dataset, split


def result_facts(
    config: ConfigDict,
    dataset: Dataset,
    split: Split,
    protocol: str,
    path: pathlib.Path,
    meta: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the head of results.json.

    Args:
      config: the run's config.
      dataset: the images.
      split: their split.
      protocol: description of the split protocol.
      path: the checkpoint.
      meta: its metadata.
    """
    definition = split.definition if split.hash == meta["split"]["hash"] else None
    return {
        "protocol": protocol,
        # Neither other images than the run's nor older checkpoints follow a named protocol.
        "protocol_id": definition.tag if definition else None,
        "split_hash": split.hash,
        "model": config.model.name,
        "image_size": config.data.image_size,
        "pretrained": meta["pretrained"] or "none: trained from random initial weights",
        "checkpoint": str(path),
        "checkpoint_step": meta["step"],
        "data": dataset.facts(split) | {"split_warnings": list(split.warnings)},
    }
