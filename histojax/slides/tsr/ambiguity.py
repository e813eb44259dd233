"""What the model's own errors may do to a stroma percentage: a range from its confusion on validation images."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from histojax.slides.tsr.spec import TSRError


class LabelArea(NamedTuple):
    """A label in a set of tiles: its name, the share of the tiles that carry it, and the area it counts for."""

    label: str
    share: float
    area: float


def wilson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion of n > 0 trials (Wilson 1927)."""
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    p = successes / n
    centre = p + z**2 / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def corrected_share(share: float, sensitivity: float, specificity: float) -> float:
    """True share of a label of which `share` is seen, within [0, 1] (Rogan and Gladen 1978).

    Needs sensitivity + specificity > 1.
    """
    return min(1.0, max(0.0, (share + specificity - 1) / (sensitivity + specificity - 1)))


def ambiguity_range(
    tumor: LabelArea, stroma: LabelArea, confusion: Mapping[str, Sequence[float]] | None
) -> dict[str, Any]:
    """Stroma percentage after correction for the model's errors, and its range: {value, low, high, labels, reason}.

    `confusion`: [tn, fp, fn, tp] of each label on validation images, at the thresholds used here. Each area is
    scaled by corrected over observed share, so that a tile divided between the two labels stays divided. The
    range spans all ends of the 95 % Wilson intervals of sensitivity and specificity. Figures are None, with a
    reason, where they cannot be had. Raises TSRError for cells that are no counts.
    """
    if not confusion:
        return unknown("the model has no confusion of its labels on validation images")
    labels: dict[str, Any] = {}
    points, ends = [], []
    for one in (tumor, stroma):
        rates, reason = _rates(one.label, confusion)
        if reason:
            return unknown(reason)
        labels[one.label] = rates
        if rates["sensitivity"]["low"] + rates["specificity"]["low"] <= 1:
            return unknown(
                f"by its validation images label {one.label!r} may be told no better than by chance: sensitivity + "
                "specificity, or the lower ends of their intervals, are 1 or less",
                labels,
            )
        points.append(_scaled(one, rates["sensitivity"]["value"], rates["specificity"]["value"]))
        corners = itertools.product(*((rate["low"], rate["high"]) for rate in rates.values()))
        ends.append([_scaled(one, sensitivity, specificity) for sensitivity, specificity in corners])
    figures = {
        "value": _percentage(*points),
        "low": _percentage(max(ends[0]), min(ends[1])),
        "high": _percentage(min(ends[0]), max(ends[1])),
    }
    if None in figures.values():
        return unknown("no more tumor and stroma is seen than the model's errors may give", labels)
    return {**figures, "labels": labels, "reason": None}


def unknown(reason: str, labels: dict[str, Any] | None = None) -> dict[str, Any]:
    """An ambiguity range that cannot be had, and why."""
    return {"value": None, "low": None, "high": None, "labels": labels or {}, "reason": reason}


def _rates(label: str, confusion: Mapping[str, Sequence[float]]) -> tuple[dict[str, dict[str, float]], str | None]:
    if label not in confusion:
        return {}, f"the model has no confusion of label {label!r} on validation images"
    cells = [float(cell) for cell in confusion[label]]
    if len(cells) != 4 or not all(math.isfinite(cell) and cell >= 0 for cell in cells):
        raise TSRError(f"the confusion of label {label!r} must be four counts [tn, fp, fn, tp]; it is {cells}")
    tn, fp, fn, tp = cells
    if tp + fn == 0 or tn + fp == 0:
        which = "no" if tp + fn == 0 else "every"
        return {}, f"{which} validation image carries label {label!r}"
    out = {}
    for name, right, n in (("sensitivity", tp, tp + fn), ("specificity", tn, tn + fp)):
        low, high = wilson(right, n)
        out[name] = {"value": right / n, "low": low, "high": high}
    return out, None


def _scaled(one: LabelArea, sensitivity: float, specificity: float) -> float:
    if one.share == 0:
        return 0.0
    return one.area * corrected_share(one.share, sensitivity, specificity) / one.share


def _percentage(tumor: float, stroma: float) -> float | None:
    return 100 * stroma / (tumor + stroma) if tumor + stroma > 0 else None
