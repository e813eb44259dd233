"""Parts that all blocks of results.json share, for classes and for labels: units, warnings, withdrawn intervals."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from histojax.evaluation import bootstrap
from histojax.evaluation.metrics import Array

Key = tuple[str, ...]
Statistic = Callable[[Array], dict[Key, Array]]
FEW_UNITS = 10  # with fewer, a percentile interval covers markedly less than its nominal level


def resampled_units(rows: pd.DataFrame) -> tuple[str, Array, int]:
    """Choose the unit that is resampled for a split; see `bootstrap.units`."""
    slide, source = (rows[c].to_numpy() if c in rows else None for c in ("slide_id", "source_id"))
    return bootstrap.units(rows["patient_id"].to_numpy(), slide, source)


def unit_warnings(split: str, rows: pd.DataFrame, unit_name: str, n_units: int) -> list[str]:
    """Warnings about the units that the intervals rest on."""
    warnings = []
    unknown = int((rows["patient_id"] == "").sum())
    if 0 < unknown < len(rows):
        warnings.append(
            f"split '{split}': {unknown} of {len(rows)} images have no patient_id; patient-level metrics are left "
            f"out, and the intervals are over {unit_name}s"
        )
    elif unknown:
        warnings.append(
            f"split '{split}': patients are unknown; the intervals are over {unit_name}s and too narrow where "
            "a patient has several"
        )
    if n_units < 2:
        warnings.append(f"split '{split}': fewer than two {unit_name}s; no intervals")
    elif n_units < FEW_UNITS:
        warnings.append(f"split '{split}': only {n_units} {unit_name}s; the intervals are rough and likely too narrow")
    return warnings


def undefined_warnings(split: str, estimates: dict[Key, bootstrap.Estimate]) -> list[str]:
    """Warn if metrics are undefined in at least 1 % of the resamples."""
    fraction = max((estimate.get("undefined") or 0.0) for estimate in estimates.values())
    if fraction < 0.01:
        return []
    return [
        f"split '{split}': up to {fraction:.1%} of the resamples lack a class or label; "
        "intervals of the metrics that need it leave those resamples out"
    ]


def withdraw_intervals(
    estimates: dict[Key, bootstrap.Estimate], statistic: Statistic, members: Array, unit: Array, n_units: int
) -> bool:
    """Remove the intervals of metrics that need a class whose images all belong to one unit.

    Every resample in which such a metric is defined holds that same unit, so its spread cannot be seen: the interval
    would be far too narrow, in the extreme a point.

    Args:
      estimates: of the statistic; changed in place.
      statistic: as in `bootstrap.intervals`.
      members: whether each image belongs to the class, (n,).
      unit: unit index of each image, (n,).
      n_units: number of units.

    Returns:
      Whether one unit holds all images of the class.
    """
    owners = np.unique(unit[members])
    if len(owners) != 1 or n_units < 2:
        return False
    without_owner = np.ones((1, n_units))
    without_owner[0, owners[0]] = 0
    for key, value in statistic(without_owner).items():
        if np.isnan(value[0]):
            estimates[key] = {"value": estimates[key]["value"], "low": None, "high": None}
    return True


def insert(tree: dict[str, Any], key: Key, leaf: object) -> None:
    """Store a leaf in nested dicts at the path that its key gives."""
    for part in key[:-1]:
        tree = tree.setdefault(part, {})
    tree[key[-1]] = leaf
