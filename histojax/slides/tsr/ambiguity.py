"""How the model's errors may change a stroma percentage: a range from its confusion on validation images."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from histojax.evaluation.metrics import Array
from histojax.slides.tsr.intervals import clustered_proportion, wilson
from histojax.slides.tsr.spec import TSRError

_ROUNDING = 1e-9
MIN_ABOVE_CHANCE = 0.2  # of sensitivity + specificity - 1, below which a model does not tell a label from the rest
SHOWN, NOT_SHOWN, CANNOT_TELL, UNKNOWN = "tells apart", "not shown", "cannot tell", "unknown"


class LabelArea(NamedTuple):
    """A label in a set of tiles: its name, the fraction of tiles that carry it, and the area that it counts for."""

    label: str
    fraction: float
    area: float


def ambiguity_range(tumor: LabelArea, stroma: LabelArea, confusion: Mapping[str, Any] | None) -> dict[str, Any]:
    """Correct a stroma percentage for the model's errors, with a range.

    The true fraction of a label is (observed + specificity - 1) / (sensitivity + specificity - 1) (Rogan and Gladen
    1978). Each area is scaled by the corrected over the observed fraction, so that a tile divided between the two
    labels stays divided. The range covers all ends of the 95 % intervals of sensitivity and specificity; an end cannot
    lie beyond a fraction of 0 or 1. If the corrected fraction itself lies beyond them, the rates of the validation
    images do not hold for these tiles, and there is no correction.

    Args:
      tumor: the tumor in the tiles.
      stroma: the stroma in the tiles.
      confusion: counts of each label on validation images, at the thresholds used here: [tn, fp, fn, tp] of
        independent images, or one such row per patient, slide or source image.

    Returns:
      {value, low, high, labels, reason, note}; the figures are None if they cannot be determined, with the reason.

    Raises:
      TSRError: the confusion does not hold counts of four.
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
        reason = _why_not_correctable(area, rates["sensitivity"], rates["specificity"])
        if reason:
            return unknown(f"cannot be corrected: {reason}", labels)
        points.append(_scaled(area, rates["sensitivity"]["value"], rates["specificity"]["value"]))
        corners = itertools.product(*((rate["low"], rate["high"]) for rate in rates.values()))
        ends.append([_scaled(area, sensitivity, specificity) for sensitivity, specificity in corners])
    figures = {
        "value": _percentage(*points),
        "low": _percentage(max(ends[0]), min(ends[1])),
        "high": _percentage(min(ends[0]), max(ends[1])),
    }
    if None in figures.values():
        reason = "the model's errors alone may explain all the tumor and stroma that it found"
        return unknown(f"cannot be corrected: {reason}", labels)
    if figures["low"] == figures["high"]:
        return unknown("cannot be corrected: only one of the two labels was found", labels)
    return {**figures, "labels": labels, "reason": None, "note": _note(labels)}


def model_status(labels: Sequence[str], confusion: Mapping[str, Any] | None) -> dict[str, Any]:
    """Say whether a model tells labels from everything else, by its errors on validation images.

    Args:
      labels: those that a ratio is made of.
      confusion: as for `ambiguity_range`.

    Returns:
      {status, reason}. `tells apart`: for each label, the lower ends of sensitivity and specificity add up to more than
      1. `cannot tell`: for one, sensitivity + specificity - 1 is below `MIN_ABOVE_CHANCE`. `not shown`: neither.
      `unknown`: there are no counts. The reason is None for the first.

    Raises:
      TSRError: the confusion does not hold counts of four.
    """
    status, reason = SHOWN, None
    for label in labels:
        if not confusion:
            return {"status": UNKNOWN, "reason": "the checkpoint has no confusion counts on validation images"}
        rates, missing = _rates(label, confusion)
        if missing:
            return {"status": UNKNOWN, "reason": missing}
        sensitivity, specificity = rates["sensitivity"], rates["specificity"]
        text = " and ".join(f"{name} {r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for name, r in rates.items())
        text = f"{text} on validation images{_sources_text([sensitivity, specificity])}"
        if sensitivity["value"] + specificity["value"] - 1 < MIN_ABOVE_CHANCE:
            reason = (
                f"the model cannot tell {label} from the rest: {text}; their sum is less than {MIN_ABOVE_CHANCE} above "
                "that of chance"
            )
            return {"status": CANNOT_TELL, "reason": reason}
        if status == SHOWN and sensitivity["low"] + specificity["low"] <= 1:
            status, reason = NOT_SHOWN, f"not shown that the model can tell {label} from the rest: {text}"
    return {"status": status, "reason": reason}


def unknown(reason: str, labels: dict[str, Any] | None = None) -> dict[str, Any]:
    """An ambiguity range that cannot be determined, with the reason."""
    return {"value": None, "low": None, "high": None, "labels": labels or {}, "reason": reason, "note": None}


def _rates(label: str, confusion: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Sensitivity and specificity with their intervals, or why there are none."""
    if label not in confusion:
        return {}, f"the checkpoint has no confusion counts of label {label!r} on validation images"
    cells = np.asarray(confusion[label], np.float64)
    if cells.shape[-1:] != (4,) or cells.ndim > 2 or not (np.isfinite(cells) & (cells >= 0)).all():
        raise TSRError(f"the confusion of label {label!r} must be counts [tn, fp, fn, tp]; it is {confusion[label]}")
    tn, fp, fn, tp = cells.reshape(-1, 4).T
    if not (tp + fn).any() or not (tn + fp).any():
        which = "every" if (tp + fn).any() else "no"
        return {}, f"{which} validation image carries label {label!r}"
    return {"sensitivity": _rate(tp, fn, cells.ndim == 2), "specificity": _rate(tn, fp, cells.ndim == 2)}, None


def _rate(correct: Array, wrong: Array, clustered: bool) -> dict[str, Any]:
    """A rate with its interval and the number of clusters that it rests on (None: images are independent)."""
    trials = correct + wrong
    if clustered:
        low, high = clustered_proportion(correct, trials)
    else:
        low, high = wilson(float(correct.sum()), float(trials.sum()))
    sources = int((trials > 0).sum()) if clustered else None
    return {"value": float(correct.sum() / trials.sum()), "low": low, "high": high, "sources": sources}


def _why_not_correctable(area: LabelArea, sensitivity: Mapping[str, Any], specificity: Mapping[str, Any]) -> str | None:
    """Why the fraction of a label cannot be corrected; None if it can."""
    if sensitivity["low"] + specificity["low"] <= 1:
        return (
            f"on its validation images the model may recognize label {area.label!r} no better than chance: "
            "the lower ends of sensitivity and specificity add up to 1 or less"
            + _sources_text([sensitivity, specificity])
        )
    least, most = 1 - specificity["value"], sensitivity["value"]
    if least - _ROUNDING <= area.fraction <= most + _ROUNDING:
        return None
    return (
        f"{area.fraction:.1%} of the tiles carry label {area.label!r}, but with the sensitivity and specificity of the "
        f"validation images it would be {least:.1%} to {most:.1%}: the model makes other errors on this slide"
    )


def _scaled(observed: LabelArea, sensitivity: float, specificity: float) -> float:
    """The area of a label, scaled by its corrected over its observed fraction."""
    if observed.fraction == 0:
        return 0.0
    corrected = (observed.fraction + specificity - 1) / (sensitivity + specificity - 1)
    return observed.area * min(1.0, max(0.0, corrected)) / observed.fraction


def _percentage(tumor: float, stroma: float) -> float | None:
    return 100 * stroma / (tumor + stroma) if tumor + stroma > 0 else None


def _note(labels: Mapping[str, Any]) -> str:
    """What the range rests on."""
    sources = _sources_text([rate for rates in labels.values() for rate in rates.values()])
    return sources.removeprefix(", ") or "validation images are taken as independent"


def _sources_text(rates: Sequence[Mapping[str, Any]]) -> str:
    """The number of clusters that rates rest on, as the end of a sentence; empty if images are independent."""
    sources = [rate["sources"] for rate in rates if rate["sources"] is not None]
    if not sources:
        return ""
    least, most = min(sources), max(sources)
    number = f"{least}" if least == most else f"{least} to {most}"
    return f", from {number} validation patients, slides or source images"
