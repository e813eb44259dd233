"""The magnification transfer matrix: models trained at one magnification of BreakHis, tested at each.

A fold's model is tested only on the fold's test cases, at every magnification. No test image shows tissue that the
model was trained on. All cells of a row cover the same patients, except those without images at a magnification.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import pandas as pd
from ml_collections import ConfigDict

from data_pipelines.breakhis.filenames import MAGNIFICATIONS
from data_pipelines.splits import Split
from histojax.core.errors import RunError
from histojax.core.files import read_json, write_json
from histojax.core.positive import positive_by_name
from histojax.core.text_table import text_table
from histojax.data.sources import open_dataset
from histojax.evaluation import formatting, predictions, results
from histojax.training import build, evaluate, loading

_log = logging.getLogger(__name__)
_METRICS = {"accuracy": "accuracy", "gmean": "GMean"}  # key -> heading


def matrix(trained: Sequence[Mapping[str, ConfigDict]], workdir: pathlib.Path) -> dict[str, Any]:
    """Test finished runs at every magnification that their data has.

    Args:
      trained: one entry per protocol and magnification: folder of each fold below the work directory -> its config.
      workdir: folder of all runs.

    Returns:
      `trained_at`, `tested_at` and `cells`. Each cell has `protocol`, `trained_at`, `tested_at`, `n_images`,
      `n_patients`, and `accuracy` and `gmean` with intervals over patients; None where no test case has images.

    Raises:
      RunError: no run is trained on BreakHis under a case-disjoint protocol.
    """
    breakhis = [runs for runs in trained if next(iter(runs.values())).data.pipeline == "breakhis"]
    if not breakhis:
        raise RunError("--transfer needs BreakHis and a case-disjoint protocol, such as case_deduplicated")
    cells = []
    for runs in breakhis:
        config = next(iter(runs.values()))
        pooled = pd.concat([_predict_test_cases(workdir / name) for name in runs], ignore_index=True)
        for magnification in MAGNIFICATIONS:
            place = {
                "protocol": config.data.split.protocol,
                "trained_at": config.data.magnification,
                "tested_at": magnification,
            }
            cells.append(place | _cell(pooled[pooled["magnification"] == magnification], config))
    return {
        "trained_at": list(dict.fromkeys(cell["trained_at"] for cell in cells)),
        "tested_at": list(MAGNIFICATIONS),
        "cells": cells,
    }


def _cell(pooled: pd.DataFrame, config: ConfigDict) -> dict[str, Any]:
    """Evaluate the test images of all folds at one magnification."""
    if pooled.empty:
        return {"n_images": 0, "n_patients": 0} | dict.fromkeys(_METRICS)
    positive = positive_by_name(predictions.class_names(pooled))
    options = {"n_resamples": config.evaluation.resamples, "seed": config.seed}
    block = results.summarise(pooled, positive=positive, **options)["test"]
    counts = {"n_images": block["n_images"], "n_patients": block["n_patients"]}
    return counts | {metric: block["image"][metric] for metric in _METRICS}


def _predict_test_cases(run: pathlib.Path) -> pd.DataFrame:
    """Predict the images of a run's test cases at every magnification; the predictions are stored in the run.

    Stored predictions are used again for the same checkpoint and the same images.
    """
    path, facts_path = run / "transfer", run / "transfer.json"
    trained = loading.load(run)
    config = trained.config
    config.data.magnification = "all"
    dataset = open_dataset(config.data, trained.meta["classes"])
    facts = {"checkpoint_step": trained.meta["step"], "split": trained.meta["split"]["hash"], "data": dataset.hash}
    if read_json(facts_path) == facts and path.with_suffix(".parquet").is_file():
        return predictions.read(path)
    saved = Split.from_json(trained.meta["split"])
    test_cases = {row.group for row in saved.rows if row.side == "test"}
    placed = dataset.place(saved)
    rows = (row if row.group in test_cases else dataclasses.replace(row, side="") for row in placed.rows)
    split = dataclasses.replace(placed, rows=tuple(rows))
    spec = build.loader_spec(config, trained.layout, training=False, stain=trained.stain)
    table = evaluate.predict_split(trained.program, trained.model, dataset, split, ["test"], spec, trained.layout)
    facts_path.unlink(missing_ok=True)
    predictions.write(table, path)
    write_json(facts_path, facts)
    jax.clear_caches()
    _log.info(f"{run.parent.name}/{run.name}: tested at every magnification")
    return table


def table(found: Mapping[str, Any]) -> str:
    """Format the matrix as text: accuracy, then GMean, one row per training magnification.

    Args:
      found: as `matrix` returns it.
    """
    lines = []
    for metric, heading in _METRICS.items():
        body = [[f"{heading}, trained at", *(f"tested at {at}" for at in found["tested_at"])]]
        for protocol, at in dict.fromkeys((cell["protocol"], cell["trained_at"]) for cell in found["cells"]):
            row = [c for c in found["cells"] if (c["protocol"], c["trained_at"]) == (protocol, at)]
            body.append([f"{at} ({protocol})", *(_format_cell(cell, metric) for cell in row)])
        lines += ["", *text_table(body)]
    counts = "; ".join(
        f"{cell['trained_at']} to {cell['tested_at']} {cell['n_images']}/{cell['n_patients']}"
        for cell in found["cells"]
        if cell["n_images"]
    )
    return "\n".join([*lines, "", f"Test images/patients, all folds together: {counts}"]) + "\n"


def _format_cell(cell: Mapping[str, Any], metric: str) -> str:
    return formatting.with_interval(cell[metric]) if cell["n_images"] else "no image"
