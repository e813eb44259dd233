"""The report's section on robustness: what `histojax robustness` left in a run's folder."""

import json
from typing import Any

from histojax.evaluation.report.sources import Source

_FILE = "robustness/robustness.json"
HEADLINE = "balanced_accuracy"


def robustness(source: Source) -> tuple[dict[str, Any] | None, list[str]]:
    """Read the robustness of a run.

    Returns:
      The run's entry in robustness.json, or None; and notes: why a file that exists is not shown.
    """
    path = source.path / _FILE
    if not source.results or not path.is_file():
        return None, []
    try:
        (run,) = json.loads(path.read_text(encoding="utf-8"))["runs"]
        stated = {key: run[key] for key in ("split_hash", "checkpoint_step")}
        complete = all(shift["mean"][HEADLINE] and shift["strengths"] for shift in run["shifts"])
    except (ValueError, KeyError, TypeError) as error:
        return None, [f"{_FILE} is damaged ({error!r}) and not shown; run `histojax robustness` with --redo"]
    if not complete or stated != {key: source.results.get(key) for key in stated}:
        return None, [
            f"{_FILE} is of another checkpoint or split, and not shown; run `histojax robustness` with --redo"
        ]
    return run, []


def worst(run: dict[str, Any]) -> dict[str, Any] | None:
    """Find the shift and strength with the lowest balanced accuracy; None where it is undefined."""
    found = [(shift, shift["worst"][HEADLINE]) for shift in run["shifts"] if shift["worst"][HEADLINE]]
    if not found:
        return None
    shift, point = min(found, key=lambda pair: pair[1]["value"])
    return {"title": shift["title"], "unit": shift["unit"], **point}
