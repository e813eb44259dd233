"""From predictions of shifted images to curves, their area, the worst case, and the difference of two runs.

All figures of a run come from one bootstrap: a resample draws the same patients at every strength, so that a change has
an interval of its own, which is narrower than those of the two figures that it lies between.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histojax.evaluation import bootstrap, results, summary_blocks
from histojax.evaluation.bootstrap import Estimate
from histojax.evaluation.metrics import Array
from histojax.evaluation.summary_blocks import Key, Statistic
from histojax.studies.robustness.shifts import Shift

METRICS = ("accuracy", "balanced_accuracy", "gmean", "auroc", "ece", "brier")
LOWER_IS_BETTER = ("ece", "brier")
ALL = "all"
# Statistics of a curve, by the first part of their key.
AT, CHANGE_AT, MEAN, CHANGE = "at", "change at", "mean", "change"


def area_weights(strengths: Sequence[float]) -> Array:
    """Weights of the strengths in the area under a curve by trapezoids, over the length of the axis; they sum to 1."""
    steps = np.diff(np.asarray(strengths, np.float64))
    weights: Array = (np.append(steps, 0.0) + np.append(0.0, steps)) / 2 / steps.sum()
    return weights


def curve_statistic(
    tables: Mapping[str, Sequence[pd.DataFrame]], shifts: Sequence[Shift], classes: Sequence[str], positive: str | None
) -> tuple[Statistic, list[Array], Array, int]:
    """Build the function from the weights of units (r, n_units) to every figure of the curves (r,).

    Args:
      tables: name of the shift -> rows of the same images in the same order, per strength.
      shifts: the shifts.
      classes: names, in the order of the probabilities.
      positive: the positive class of two.

    Returns:
      The statistic, whether each image belongs to each class (n,), unit index of each image (n,), number of units.
      Keys of the statistic: ("at", shift, strength's number, metric), likewise "change at" from strength 0; ("mean",
      shift, metric), the area under the curve, and "change" from strength 0. The shift "all" is the mean over kinds.
    """
    rows = tables[shifts[0].name][0]
    _, unit, n_units = summary_blocks.resampled_units(rows)
    index = list(classes).index(positive) if positive is not None else None
    true, _ = results.arrays(rows, classes)
    no_magnification = np.zeros(len(rows), dtype=str)
    sides: dict[int, Statistic] = {}
    for table in (table for name in tables for table in tables[name]):
        if id(table) not in sides:  # strength 0 is the same table for every shift
            p = results.arrays(table, classes)[1]
            sides[id(table)] = results.image_statistic(true, p, unit, n_units, classes, index, no_magnification)

    def statistic(weights: Array) -> dict[Key, Array]:
        computed = {}
        for key, side in sides.items():
            block = side(weights)
            computed[key] = {name: block["image", name] for name in METRICS}
        out: dict[Key, Array] = {}
        for shift in shifts:
            curve = [computed[id(table)] for table in tables[shift.name]]
            start, weight = curve[shift.strengths.index(0)], area_weights(shift.strengths)
            for name in METRICS:
                for i, point in enumerate(curve):
                    out[AT, shift.name, str(i), name] = point[name]
                    out[CHANGE_AT, shift.name, str(i), name] = point[name] - start[name]
                mean = sum((w * point[name] for w, point in zip(weight, curve, strict=True)), np.zeros(len(weights)))
                out[MEAN, shift.name, name] = mean
                out[CHANGE, shift.name, name] = mean - start[name]
        return out | _over_kinds(out, shifts)

    return statistic, [true == i for i in range(len(classes))], unit, n_units


def _over_kinds(found: Mapping[Key, Array], shifts: Sequence[Shift]) -> dict[Key, Array]:
    """Average over shifts: first within a kind, so that five sources of stain weigh as much as one other shift."""
    kinds: dict[str, list[str]] = {}
    for shift in shifts:
        kinds.setdefault(shift.kind, []).append(shift.name)
    return {
        (what, ALL, name): np.mean(
            [np.mean([found[what, member, name] for member in members], axis=0) for members in kinds.values()], axis=0
        )
        for what in (MEAN, CHANGE)
        for name in METRICS
    }


def estimate(
    statistic: Statistic, members: Sequence[Array], unit: Array, n_units: int, **options: int
) -> dict[Key, Estimate]:
    """Estimate every figure of a statistic with its interval, if one can be given.

    Args:
      statistic: as `curve_statistic` builds it.
      members: whether each image belongs to a class, for each class, (n,).
      unit: unit index of each image, (n,).
      n_units: number of units.
      **options: `n_resamples` and `seed` of the bootstrap.
    """
    estimates = bootstrap.intervals(statistic, n_units, n_rows=len(unit), **options)
    for one in members:
        summary_blocks.withdraw_intervals(estimates, statistic, one, unit, n_units)
    return estimates


def describe(shift: Shift, estimates: Mapping[Key, Estimate]) -> dict[str, Any]:
    """Lay out the figures of a shift for JSON: `strengths`, and by metric `mean`, `change` and `worst`."""
    steps = [
        {
            "strength": strength,
            "label": label,
            "metrics": {name: estimates[AT, shift.name, str(i), name] for name in METRICS},
            "changes": {name: estimates[CHANGE_AT, shift.name, str(i), name] for name in METRICS},
        }
        for i, (strength, label) in enumerate(zip(shift.strengths, shift.labels, strict=True))
    ]
    return {
        "name": shift.name,
        "kind": shift.kind,
        "title": shift.title,
        "unit": shift.unit,
        "definition": shift.definition,
        "strengths": steps,
        "mean": {name: estimates[MEAN, shift.name, name] for name in METRICS},
        "change": {name: estimates[CHANGE, shift.name, name] for name in METRICS},
        "worst": {name: _worst(steps, name) for name in METRICS},
    }


def overall(estimates: Mapping[Key, Estimate]) -> dict[str, dict[str, Estimate]]:
    """The mean over kinds of shifts: `mean` and `change`, by metric."""
    return {what: {name: estimates[what, ALL, name] for name in METRICS} for what in (MEAN, CHANGE)}


def _worst(steps: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """Find the strength with the worst value of a metric, with its interval; None where it is undefined."""
    defined = [step for step in steps if step["metrics"][name]["value"] is not None]
    if not defined:
        return None
    sign = -1 if name in LOWER_IS_BETTER else 1
    step = min(defined, key=lambda step: sign * step["metrics"][name]["value"])
    shown = {key: step[key] for key in ("strength", "label")}
    return shown | step["metrics"][name] | {"change": step["changes"][name]}


def difference(first: Statistic, second: Statistic) -> Statistic:
    """Subtract the figures of a statistic from those of another: second − first."""

    def statistic(weights: Array) -> dict[Key, Array]:
        a, b = first(weights), second(weights)
        return {key: b[key] - a[key] for key in a}

    return statistic
