"""How the model's errors may change a stroma percentage: a range from its confusion on validation images."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from histojax.slides.tsr.spec import TSRError


class LabelArea(NamedTuple):
    """A label in a set of tiles: its name, the fraction of tiles that carry it, and the area that it counts for."""

    label: str
    fraction: float
    area: float


def wilson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion of n > 0 trials (Wilson 1927)."""
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    p = successes / n
    centre = p + z**2 / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def corrected_fraction(observed: float, sensitivity: float, specificity: float) -> float:
    """The true fraction of a label, within [0, 1], from the `observed` one (Rogan and Gladen 1978).

    Requires sensitivity + specificity > 1.
    """
    return min(1.0, max(0.0, (observed + specificity - 1) / (sensitivity + specificity - 1)))


def ambiguity_range(
    tumor: LabelArea, stroma: LabelArea, confusion: Mapping[str, Sequence[float]] | None
) -> dict[str, Any]:
    """Correct a stroma percentage for the model's errors, with a range.

    Each area is scaled by the corrected over the observed fraction, so that a tile divided between the two labels
    stays divided. The range covers all ends of the 95 % Wilson intervals of sensitivity and specificity.

    Args:
      tumor: the tumor in the tiles.
      stroma: the stroma in the tiles.
      confusion: [tn, fp, fn, tp] of each label on validation images, at the thresholds used here.

    Returns:
      {value, low, high, labels, reason}; the figures are None if they cannot be determined, with the reason.

    Raises:
      TSRError: the confusion does not hold four counts.
    """
    if not confusion:
        return unknown("the checkpoint has no confusion counts of its labels on validation images")
    labels: dict[str, Any] = {}
    points, ends = [], []
    for area in (tumor, stroma):
        rates, reason = _rates(area.label, confusion)
        if reason:
            return unknown(reason)
        labels[area.label] = rates
        if rates["sensitivity"]["low"] + rates["specificity"]["low"] <= 1:
            return unknown(
                f"on its validation images the model may recognize label {area.label!r} no better than chance: "
                "the lower ends of sensitivity and specificity add up to 1 or less",
                labels,
            )
        points.append(_scaled(area, rates["sensitivity"]["value"], rates["specificity"]["value"]))
        corners = itertools.product(*((rate["low"], rate["high"]) for rate in rates.values()))
        ends.append([_scaled(area, sensitivity, specificity) for sensitivity, specificity in corners])
    figures = {
        "value": _percentage(*points),
        "low": _percentage(max(ends[0]), min(ends[1])),
        "high": _percentage(min(ends[0]), max(ends[1])),
    }
    if None in figures.values():
        return unknown("the model's errors alone may explain all the tumor and stroma that it found", labels)
    return {**figures, "labels": labels, "reason": None}


def unknown(reason: str, labels: dict[str, Any] | None = None) -> dict[str, Any]:
    """An ambiguity range that cannot be determined, with the reason."""
    return {"value": None, "low": None, "high": None, "labels": labels or {}, "reason": reason}


def _rates(label: str, confusion: Mapping[str, Sequence[float]]) -> tuple[dict[str, dict[str, float]], str | None]:
    """Sensitivity and specificity with their intervals, or why there are none."""
    if label not in confusion:
        return {}, f"the checkpoint has no confusion counts of label {label!r} on validation images"
    cells = [float(cell) for cell in confusion[label]]
    if len(cells) != 4 or not all(math.isfinite(cell) and cell >= 0 for cell in cells):
        raise TSRError(f"the confusion of label {label!r} must be four counts [tn, fp, fn, tp]; it is {cells}")
    tn, fp, fn, tp = cells
    if tp + fn == 0 or tn + fp == 0:
        which = "no" if tp + fn == 0 else "every"
        return {}, f"{which} validation image carries label {label!r}"
    out = {}
    for name, correct, n in (("sensitivity", tp, tp + fn), ("specificity", tn, tn + fp)):
        low, high = wilson(correct, n)
        out[name] = {"value": correct / n, "low": low, "high": high}
    return out, None


def _scaled(observed: LabelArea, sensitivity: float, specificity: float) -> float:
    """The area of a label, scaled by its corrected over its observed fraction."""
    if observed.fraction == 0:
        return 0.0
    return observed.area * corrected_fraction(observed.fraction, sensitivity, specificity) / observed.fraction


def _percentage(tumor: float, stroma: float) -> float | None:
    return 100 * stroma / (tumor + stroma) if tumor + stroma > 0 else None
