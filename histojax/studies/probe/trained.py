"""Rows of networks that `histojax protocols` trained, beside those of frozen features."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from histojax.core.errors import RunError
from histojax.core.files import read_json
from histojax.evaluation import predictions
from histojax.studies.probe.inputs import ProbeData
from histojax.studies.probe.plans import Plan
from histojax.studies.probe.rows import Row

STUDY = "protocols.json"
HEAD = "trained"


def is_study(path: pathlib.Path) -> bool:
    """Return whether a path is the work directory of `histojax protocols`."""
    return (path / STUDY).is_file()


def describe(path: pathlib.Path) -> dict[str, Any]:
    """Return where the weights of a study came from, for probe.json.

    Raises:
      RunError: its protocols.json is damaged.
    """
    first = _rows(path)[0]
    config = read_json(path / first["runs"][0] / "config.json")
    facts = {key: first[key] for key in ("model", "pretrained")}
    return {"name": path.name, "path": str(path), "made_by": facts | {"config": config}}


def of_study(data: ProbeData, plan: Plan, path: pathlib.Path) -> Row | None:
    """Return the predictions of a study for the test images of each fold.

    Args:
      data: the images.
      plan: the folds.
      path: work directory of `histojax protocols`.

    Returns:
      None: it holds no runs that tested the same images, fold by fold.

    Raises:
      RunError: its protocols.json is damaged.
    """
    names = data.records.column("image_id")
    wanted = [set(names[fold.test].tolist()) for fold in plan.folds]
    for row in _rows(path):
        if len(row["runs"]) != len(wanted):
            continue
        tables = [predictions.read(path / run / "predictions") for run in row["runs"]]
        tables = [table[table["split"] == "test"].reset_index(drop=True) for table in tables]
        if [set(table["image_id"]) for table in tables] == wanted:
            return Row(path.name, HEAD, 1.0, tuple(tables), 1, tuple({} for _ in tables))
    return None


def _rows(path: pathlib.Path) -> list[Mapping[str, Any]]:
    try:
        rows: list[Mapping[str, Any]] = json.loads((path / STUDY).read_text(encoding="utf-8"))["rows"]
    except (ValueError, KeyError) as error:
        raise RunError(f"{path / STUDY}: damaged ({error}); run histojax protocols again to write it") from error
    return rows
