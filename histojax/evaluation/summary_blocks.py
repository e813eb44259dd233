"""What the blocks of results.json share, one class an image or several labels: units, warnings, withdrawn intervals."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from histojax.evaluation import bootstrap
from histojax.evaluation.metrics import Array

Key = tuple[str, ...]
Statistic = Callable[[Array], dict[Key, Array]]
FEW_UNITS = 10  # below it a percentile interval covers markedly less than it says


def resampled_units(rows: pd.DataFrame) -> tuple[str, Array, int]:
    """What is resampled for a split; see `bootstrap.units`."""
    slide, source = (rows[c].to_numpy() if c in rows else None for c in ("slide_id", "source_id"))
    return bootstrap.units(rows["patient_id"].to_numpy(), slide, source)


def unit_warnings(split: str, rows: pd.DataFrame, unit_name: str, n_units: int) -> list[str]:
    """What there is to say of the units that the intervals rest on."""
    out = []
    empty = int((rows["patient_id"] == "").sum())
    if 0 < empty < len(rows):
        out.append(
            f"split '{split}': {empty} of {len(rows)} images have no patient_id; no patient-level "
            f"figures, and the intervals are over {unit_name}s"
        )
    elif empty:
        out.append(
            f"split '{split}': patients unknown; the intervals are over {unit_name}s and too narrow where "
            "one patient has several"
        )
    if n_units < 2:
        out.append(f"split '{split}': fewer than two {unit_name}s; no intervals")
    elif n_units < FEW_UNITS:
        out.append(f"split '{split}': {n_units} {unit_name}s only; the intervals are rough and likely too narrow")
    return out


def undefined_warnings(split: str, figures: dict[Key, bootstrap.Figure]) -> list[str]:
    """Says so where more than a hundredth of the resamples lack what a figure needs."""
    share = max((figure.get("undefined") or 0.0) for figure in figures.values())
    if share < 0.01:
        return []
    return [
        f"split '{split}': a class or label is missing from up to {share:.1%} of the resamples; "
        "intervals of the metrics that need it leave those out"
    ]


def withdraw_intervals(
    figures: dict[Key, bootstrap.Figure], statistic: Statistic, members: Array, unit: Array, n_units: int
) -> bool:
    """Removes the intervals of metrics that need a class of which one unit owns all images; whether there was one.

    Every resample in which such a metric is defined holds that same unit, so its spread is not seen: the
    interval would be far too narrow, in the extreme a point. `members` (n,): which images are of the class.
    """
    owners = np.unique(unit[members])
    if len(owners) != 1 or n_units < 2:
        return False
    without = np.ones((1, n_units))
    without[0, owners[0]] = 0
    for key, value in statistic(without).items():
        if np.isnan(value[0]):
            figures[key] = {"value": figures[key]["value"], "low": None, "high": None}
    return True


def insert(tree: dict[str, Any], key: Key, leaf: object) -> None:
    """Puts a leaf where its key says."""
    for part in key[:-1]:
        tree = tree.setdefault(part, {})
    tree[key[-1]] = leaf
