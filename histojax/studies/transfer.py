"""The magnification transfer matrix: models trained at one magnification of BreakHis, tested at each.

A fold's model is tested on the images of its own test cases only, at whatever magnification, so that no tissue of its
training is among them, and every cell of a row is about the same patients as far as they have images there.
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
from histojax.data.sources import open_dataset
from histojax.evaluation import predictions, results
from histojax.studies.protocols_table import columns, interval, number
from histojax.training import build, evaluate

_log = logging.getLogger(__name__)
_FIGURES = ("accuracy", "gmean")


def matrix(trained: Sequence[Mapping[str, ConfigDict]], workdir: pathlib.Path) -> dict[str, Any]:
    """Tests finished runs at every magnification that their data have.

    Args:
      trained: of each protocol and magnification the folds, folder below the work directory -> config.
      workdir: of all.

    Returns:
      `trained_at`, `tested_at` and `cells`, each with `trained_at`, `tested_at`, `n_images`, `n_patients`, `accuracy`
      and `gmean` with their intervals over patients; None where no test case has images.

    Raises:
      RunError: nothing that is trained at one magnification.
    """
    rows = [runs for runs in trained if next(iter(runs.values())).data.pipeline == "breakhis"]
    if not rows:
        raise RunError("--transfer needs BreakHis and a case-disjoint protocol, such as case_deduplicated")
    cells = []
    for runs in rows:
        first = next(iter(runs.values()))
        whole = pd.concat([_tested(workdir / name) for name in runs], ignore_index=True)
        for at in MAGNIFICATIONS:
            of = {"protocol": first.data.split.protocol, "trained_at": first.data.magnification, "tested_at": at}
            cells.append(of | _figures(whole[whole["magnification"] == at], first))
    return {
        "trained_at": list(dict.fromkeys(cell["trained_at"] for cell in cells)),
        "tested_at": list(MAGNIFICATIONS),
        "cells": cells,
    }


def table(found: Mapping[str, Any]) -> str:
    """The matrix as text: accuracy, then GMean, trained by tested."""
    lines = []
    for figure, title in zip(_FIGURES, ("accuracy", "GMean"), strict=True):
        body = [[f"{title}, trained at", *(f"tested at {at}" for at in found["tested_at"])]]
        for protocol, at in dict.fromkeys((cell["protocol"], cell["trained_at"]) for cell in found["cells"]):
            own = [c for c in found["cells"] if (c["protocol"], c["trained_at"]) == (protocol, at)]
            body.append([f"{at} ({protocol})", *(_cell(one, figure) for one in own)])
        lines += ["", *columns(body)]
    counted = "; ".join(
        f"{cell['trained_at']} to {cell['tested_at']} {cell['n_images']}/{cell['n_patients']}"
        for cell in found["cells"]
        if cell["n_images"]
    )
    return "\n".join([*lines, "", f"Test images/patients, all folds together: {counted}"]) + "\n"


def _cell(cell: Mapping[str, Any], figure: str) -> str:
    if not cell["n_images"]:
        return "no image"
    return f"{number(cell[figure]['value'])} {interval(cell[figure])}".strip()


def _figures(pooled: pd.DataFrame, config: ConfigDict) -> dict[str, Any]:
    if pooled.empty:
        return {"n_images": 0, "n_patients": 0} | dict.fromkeys(_FIGURES)
    positive = evaluate.POSITIVE if evaluate.POSITIVE in predictions.class_names(pooled) else None
    options = {"n_resamples": config.evaluation.resamples, "seed": config.seed}
    block = results.summarise(pooled, positive=positive, **options)["test"]
    return {"n_images": block["n_images"], "n_patients": block["n_patients"]} | {
        figure: block["image"][figure] for figure in _FIGURES
    }


def _tested(run: pathlib.Path) -> pd.DataFrame:
    """What the model of a finished run says of its test cases' images at every magnification; kept in the run."""
    path = run / "transfer"
    if path.with_suffix(".parquet").is_file():
        return predictions.read(path)
    trained = evaluate.load(run)
    config = trained.config
    config.data.magnification = "all"
    dataset = open_dataset(config.data, trained.meta["classes"])
    saved = Split.from_json(trained.meta["split"])
    tested = {row.group for row in saved.rows if row.side == "test"}
    placed = dataset.place(saved)
    rows = (row if row.group in tested else dataclasses.replace(row, side="") for row in placed.rows)
    split = dataclasses.replace(placed, rows=tuple(rows))
    spec = build.loader_spec(config, trained.layout, training=False)
    table = evaluate.predict_split(trained.program, trained.model, dataset, split, ["test"], spec, trained.layout)
    predictions.write(table, path)
    jax.clear_caches()
    _log.info(f"{run.parent.name}/{run.name}: tested at every magnification")
    return table
