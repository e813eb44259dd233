"""`histojax runs`: the runs below a folder, each with its state, protocol and headline figure."""

import csv
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from histojax.core.errors import RunError
from histojax.core.files import atomic_write, read_json
from histojax.core.locks import living_owner
from histojax.core.text_table import text_table
from histojax.evaluation import formatting

_HEADER = ("run", "state", "model", "protocol", "images", "patients", "metric", "test", "")
_FIELDS = ("run", "state", "model", "protocol", "n_images", "n_patients", "metric", "value", "low", "high")
_HEADLINES = ("accuracy", "mean_average_precision")  # of one class per image, and of several labels


def find_runs(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Read what the work directories below a folder say, in the order of their names.

    Args:
      folder: it may be a work directory itself.

    Returns:
      One row per run: `run` (its path below the folder), `state` (finished, interrupted, failed, running, killed, or
      damaged), `model`, `protocol`, and of a run with results `n_images`, `n_patients` (None: unknown) and `metric` of
      the test side with `value`, `low` and `high`.

    Raises:
      RunError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder")
    found = []
    for path, folders, files in os.walk(folder):
        if "run.json" in files:
            found.append(_row(pathlib.Path(path), os.path.relpath(path, folder)))
            folders.clear()  # what lies in a work directory are no runs
        folders.sort()
    if not found:
        raise RunError(f"{folder}: no run below this folder; a work directory of `histojax train` has a run.json")
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the rows of `find_runs`."""
    body = []
    for row in rows:
        patients = "" if "value" not in row else "?" if row["n_patients"] is None else str(row["n_patients"])
        cells = [row["run"], row["state"], row["model"], row["protocol"], str(row.get("n_images", "")), patients]
        figure = [formatting.number(row["value"]), formatting.interval(row)] if "value" in row else ["", ""]
        body.append([*cells, row.get("metric", "").replace("_", " "), *figure])
    return "\n".join(text_table([_HEADER, *body], right=(4, 5, 7))) + "\n"


def write_csv(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Write the rows of `find_runs`; what is not known stays empty."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _FIELDS)
        writer.writeheader()
        writer.writerows({key: row.get(key) for key in _FIELDS} for row in rows)


def _row(path: pathlib.Path, name: str) -> dict[str, Any]:
    run, results = read_json(path / "run.json"), read_json(path / "results.json")
    row = {"run": name, "state": _state(path, run), "model": "", "protocol": ""}
    for facts in filter(None, (run, results)):
        row |= {key: str(facts[key]) for key in ("model", "protocol") if facts.get(key)}
    block = ((results or {}).get("splits") or {}).get("test")
    if not block:
        return row
    metric = next((name for name in _HEADLINES if name in block["image"]), "")
    figure = {key: block["image"].get(metric, {}).get(key) for key in ("value", "low", "high")}
    return row | {"n_images": block["n_images"], "n_patients": block.get("n_patients"), "metric": metric} | figure


def _state(path: pathlib.Path, run: Mapping[str, Any] | None) -> str:
    """Return how the last session of a run ended, or that it has not."""
    sessions = (run or {}).get("sessions")
    if not isinstance(sessions, list) or not sessions:
        return "damaged"
    status = str(sessions[-1].get("status", "")).partition(":")[0]
    if status != "running":
        return status
    return "running" if living_owner(path) else "killed"
