"""Tumor-to-stroma ratio of a slide from its tile table: areas, ratios, intervals, class, and when not to evaluate.

Areas are summed in cells of the grid (stride × stride), so that overlapping tiles are not counted twice and counts
stay exact, and become mm² at the end. Formulas: `tsr_spec.FORMULAS`.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import spatial, special

from histojax.evaluation import bootstrap, metrics, summary_blocks
from histojax.evaluation.metrics import Array
from histojax.slides.geometry import Geometry
from histojax.slides.labels import PREFIX, carried_labels, label_names
from histojax.slides.tsr.ambiguity import LabelArea, ambiguity_range, unknown
from histojax.slides.tsr.hot_spot import find_hot_spot
from histojax.slides.tsr.spec import CUTOFFS, FORMULAS, TSRError, TSRSpec

MIN_BLOCKS = 4  # with fewer an interval is noise
FIGURES = ("tsr", "stroma_percentage", "tumor_percentage", "necrosis_share")
HOT_SPOT_NOTE = (
    "no interval: the field was chosen for its stroma, and resampling the chosen field does not see that choice; "
    "its stroma percentage is the highest of many, not that of the tumor"
)


def measure(
    table: pd.DataFrame,
    geometry: Geometry,
    spec: TSRSpec,
    inside: Array | None = None,
    confusion: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Tumor-to-stroma ratio of a slide: whole tissue, region of interest, hot spot; ready for JSON.

    `table`: a row a tissue tile, `row`, `column`, `prob_<label>`. `inside` (n,) boolean: the table's rows in the
    region of interest; the hot spot is then sought in it. Stroma's distance to tumor is taken on the whole slide.
    `confusion`: [tn, fp, fn, tp] of each label on validation images at the thresholds of `spec`, for the ambiguity
    range. What cannot be had is None beside its reason. Raises TSRError for labels the model lacks and for a table
    that is none.
    """
    tiles = _tiles(table, geometry, spec)
    cell_um = geometry.stride * geometry.mpp
    context = _Context(spec, geometry.cell_mm2, confusion, block=max(1, round(spec.block_um / cell_um)))
    areas = {"whole tissue": _area(tiles, context)}
    searched, within = "whole tissue", tiles
    if inside is not None:
        inside = np.asarray(inside)
        if inside.shape != (len(table),) or inside.dtype != bool:
            raise TSRError(f"inside must be {len(table)} booleans, one for each tile")
        searched, within = "region", tiles.take(inside[np.lexsort((table["column"], table["row"]))])
        areas[searched] = _area(within, context)
    side = round(spec.hot_spot_um / cell_um)
    areas["hot spot"] = _hot_spot(within, context, geometry, side, searched, areas[searched]["reason"])
    return {
        "settings": dataclasses.asdict(spec),
        "labels": list(tiles.labels),
        "rules": spec.sentences(),
        "cutoff": CUTOFFS[spec.cutoff].rule,
        "formulas": dict(FORMULAS),
        "cell_mm2": geometry.cell_mm2,
        "block_um": context.block * cell_um,
        "hot_spot_um": side * cell_um,
        "areas": areas,
    }


# --- Tiles and what each counts for -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Tiles:
    """Tissue tiles sorted by row and column; areas in cells."""

    labels: tuple[str, ...]
    row: Array  # (n,)
    column: Array  # (n,)
    carried: Array  # (n, k) whether a tile carries a label
    parts: Array  # (n, k) a label's part in a tile, undivided
    tumor: Array  # (n,) what counts as tumor after the policy
    stroma: Array  # (n,) what counts as stroma after the policy and the distance

    def take(self, which: Array) -> "_Tiles":
        arrays = (self.row, self.column, self.carried, self.parts, self.tumor, self.stroma)
        return _Tiles(self.labels, *(array[which] for array in arrays))


@dataclasses.dataclass(frozen=True)
class _Context:
    """What all areas of a slide share; `block` in cells."""

    spec: TSRSpec
    cell_mm2: float
    confusion: Mapping[str, Sequence[float]] | None
    block: int


def _tiles(table: pd.DataFrame, geometry: Geometry, spec: TSRSpec) -> _Tiles:
    labels = label_names(table)
    spec.check_labels(labels)
    if table.duplicated(["row", "column"]).any():
        raise TSRError("the tile table has a row and column twice: each tile must stand in it once")
    # In one order whatever the table's, so that the same tiles give the same digits.
    ordered = table.sort_values(["row", "column"])
    probabilities = ordered[[PREFIX + label for label in labels]].to_numpy(np.float64)
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise TSRError("the tile table has probabilities that are missing or outside [0, 1]: predict the slide again")
    row, column = (ordered[name].to_numpy(np.int64) for name in ("row", "column"))
    carried = carried_labels(ordered, spec.thresholds or None)
    parts = probabilities if spec.measure == "probability" else carried.astype(np.float64)
    at = [labels.index(spec.tumor), labels.index(spec.stroma)]
    divided = parts[:, at]
    if spec.measure == "label" and spec.policy != "both":
        both = carried[:, at].all(1)
        if spec.policy == "half":
            divided[both] = 0.5
        else:
            # Both thresholds may be 0, and a tile of two probabilities 0 has no proportion: half each.
            total = probabilities[:, at].sum(1, keepdims=True)
            divided[both] = metrics.divide(probabilities[:, at], total, undefined=0.5)[both]
    tumor, stroma = divided.T
    if spec.tumor_distance_um:
        reach = spec.tumor_distance_um / (geometry.stride * geometry.mpp)
        stroma = np.where(_near_tumor(row, column, carried[:, at[0]], reach), stroma, 0.0)
    return _Tiles(labels, row, column, carried, parts, tumor, stroma)


def _near_tumor(row: Array, column: Array, is_tumor: Array, reach: float) -> Array:
    """Which tiles (n,) have a tumor tile at most `reach` cells away, centre to centre, (n,)."""
    if not is_tumor.any():
        return np.zeros(len(row), bool)
    positions = np.stack([row, column], 1)
    distance, _ = spatial.cKDTree(positions[is_tumor]).query(positions)
    return distance <= reach * (1 + 1e-9)


# --- Areas of interest --------------------------------------------------------------------------------------


def _area(tiles: _Tiles, context: _Context) -> dict[str, Any]:
    """Counts, areas and figures of a set of tiles, with intervals over its blocks."""
    out = _counts(tiles, context)
    out["reason"] = _not_evaluable(out, context.spec)
    if out["reason"] is None:
        out["status"] = "evaluated"
        _fill(out, tiles, context)
    return out


def _hot_spot(
    within: _Tiles, context: _Context, geometry: Geometry, side: int, searched: str, reason: str | None
) -> dict[str, Any]:
    """The most stroma-rich field of `within`; `reason` why that is itself not evaluable, or None."""
    spec, field = context.spec, None
    if reason is None:
        is_tumor = within.carried[:, within.labels.index(spec.tumor)] & (within.tumor > 0)
        field, reason = find_hot_spot(within.row, within.column, is_tumor, within.tumor, within.stroma, side)
    else:
        reason = f"{searched}: {reason}"
    tiles = within.take(field.holds(within.row, within.column) if field else np.zeros(len(within.row), bool))
    out = _counts(tiles, context) | {"reason": reason, "searched": searched, "box": None}
    if field:
        out["status"] = "evaluated"
        # A cell is centred in its tile, which overlap makes larger than the cell.
        margin = (geometry.tile - geometry.stride) // 2
        out["box"] = {
            "minx": field.column * geometry.stride + margin,
            "miny": field.row * geometry.stride + margin,
            "width": side * geometry.stride,
            "height": side * geometry.stride,
        }
        _fill(out, tiles, context, resample=False)
        out["notes"].append(HOT_SPOT_NOTE)
    return out


def _counts(tiles: _Tiles, context: _Context) -> dict[str, Any]:
    """What is counted whether or not it is evaluated, and empty figures."""
    n, cell = len(tiles.row), context.cell_mm2
    at = [tiles.labels.index(context.spec.tumor), tiles.labels.index(context.spec.stroma)]
    return {
        "status": "not evaluable",
        "reason": None,
        "tiles": n,
        "tissue_mm2": n * cell,
        "labels": {
            label: {"tiles": int(tiles.carried[:, i].sum()), "mm2": float(tiles.parts[:, i].sum() * cell)}
            for i, label in enumerate(tiles.labels)
        },
        "tiles_of_both": int(tiles.carried[:, at].all(1).sum()),
        "tumor_mm2": float(tiles.tumor.sum() * cell),
        "stroma_mm2": float(tiles.stroma.sum() * cell),
        **{name: _figure(reason="not evaluable") for name in FIGURES},
        "stroma_class": {"name": None, "rule": CUTOFFS[context.spec.cutoff].rule, "same_class_share": None},
        "ambiguity": unknown("not evaluable"),
        "blocks": None,
        "notes": [],
    }


def _not_evaluable(counts: dict[str, Any], spec: TSRSpec) -> str | None:
    if not counts["tiles"]:
        return "no tissue tile"
    if counts["tissue_mm2"] < spec.min_tissue_mm2:
        return (
            f"too little tissue: {counts['tissue_mm2']:.3g} mm² where --min_tissue_mm2 asks for {spec.min_tissue_mm2:g}"
        )
    if counts["tumor_mm2"] + counts["stroma_mm2"] == 0:
        return f"no tumor ({spec.tumor}) and no stroma ({spec.stroma}): their ratio is not defined"
    if counts["tumor_mm2"] < spec.min_tumor_mm2:
        return (
            f"too little tumor ({spec.tumor}): {counts['tumor_mm2']:.3g} mm² where --min_tumor_mm2 asks for "
            f"{spec.min_tumor_mm2:g}"
        )
    return None


def _fill(out: dict[str, Any], tiles: _Tiles, context: _Context, resample: bool = True) -> None:
    """Puts figures, class and ambiguity range into the counts of an evaluated area."""
    spec, cutoff = context.spec, CUTOFFS[context.spec.cutoff]
    unit, n_blocks = _blocks(tiles, context.block)
    terms = np.stack([tiles.tumor, tiles.stroma, _necrosis(tiles, spec), np.ones(len(tiles.row))], 1)
    sums = np.zeros((n_blocks, terms.shape[1]))
    np.add.at(sums, unit, terms)

    def statistic(weights: Array) -> dict[str, Array]:
        tumor, stroma, necrosis, tissue = (weights @ sums).T
        return {
            "stroma_percentage": metrics.divide(100 * stroma, tumor + stroma),
            "necrosis_share": metrics.divide(necrosis, tissue),
        }

    telling = int((sums[:, :2].sum(1) > 0).sum())
    why_none = None
    if not resample:
        why_none = "a chosen field has no interval"
    elif telling < MIN_BLOCKS:
        why_none = f"no interval: blocks with tumor or stroma are {telling}, and it takes {MIN_BLOCKS}"
    resamples = 0 if why_none else spec.resamples
    level = _expanded_level(telling) if resamples else 0.95
    figures = bootstrap.intervals(statistic, n_blocks, n_resamples=resamples, seed=spec.seed, level=level)
    percentage = _with_interval(figures["stroma_percentage"], why_none)
    out |= _ratios(percentage, spec)
    if spec.necrosis:
        out["necrosis_share"] = _with_interval(figures["necrosis_share"], why_none)
    else:
        out["necrosis_share"] = _figure(reason="--necrosis names no label")
    high = bool(cutoff.high(percentage["value"]))
    out["stroma_class"]["name"] = "stroma-high" if high else "stroma-low"
    out["blocks"] = {"tissue": n_blocks, "tumor_or_stroma": telling}
    out["ambiguity"] = _ambiguity(tiles, context)
    if resamples:
        out["stroma_class"]["same_class_share"] = _same_class_share(statistic, n_blocks, spec, high)
        if telling < summary_blocks.FEW_UNITS:
            out["notes"].append(f"blocks with tumor or stroma are {telling} only: the interval is rough")
        undefined = figures["stroma_percentage"].get("undefined") or 0.0
        if undefined >= 0.01:
            out["notes"].append(f"{undefined:.1%} of the resamples have neither tumor nor stroma and are left out")


def _blocks(tiles: _Tiles, side: int) -> tuple[Array, int]:
    """Block of each tile (n,) and how many there are: squares of side × side cells.

    They start at the tiles' first row and column: where the tissue lies on the glass changes no figure.
    """
    row, column = (tiles.row - tiles.row.min()) // side, (tiles.column - tiles.column.min()) // side
    names, unit = np.unique(row * (column.max() + 1) + column, return_inverse=True)
    return unit, len(names)


def _necrosis(tiles: _Tiles, spec: TSRSpec) -> Array:
    return tiles.parts[:, tiles.labels.index(spec.necrosis)] if spec.necrosis else np.zeros(len(tiles.row))


def _expanded_level(n: int) -> float:
    """Level at which percentiles of n ≥ 2 resampled units are as wide as Student's t would have them at 95 %.

    The bootstrap's spread is √((n − 1)/n) of the unbiased one and its tails are normal: with few units both are too
    narrow. Hesterberg 2015, What teachers should know about the bootstrap, "expanded percentile".
    """
    t = float(special.stdtrit(n - 1, 0.975))
    return 2 * statistics.NormalDist().cdf(math.sqrt(n / (n - 1)) * t) - 1


def _same_class_share(
    statistic: Callable[[Array], dict[str, Array]], n_blocks: int, spec: TSRSpec, high: bool
) -> float | None:
    """Share of the resamples, those of the interval, that fall on the same side of the cut-off."""
    chunks = bootstrap.weight_chunks(n_blocks, spec.resamples, spec.seed)
    resampled = np.concatenate([statistic(weights)["stroma_percentage"] for weights in chunks])
    defined = resampled[np.isfinite(resampled)]
    return float((CUTOFFS[spec.cutoff].high(defined) == high).mean()) if len(defined) else None


def _ambiguity(tiles: _Tiles, context: _Context) -> dict[str, Any]:
    spec = context.spec
    if spec.measure != "label":
        return unknown("the correction is one of labels (--measure label)")
    tumor, stroma = (
        LabelArea(label, float(tiles.carried[:, tiles.labels.index(label)].mean()), float(area.sum()))
        for label, area in ((spec.tumor, tiles.tumor), (spec.stroma, tiles.stroma))
    )
    return ambiguity_range(tumor, stroma, context.confusion)


# --- Figures: {value, low, high, reason} --------------------------------------------------------------------


def _figure(
    value: float | None = None, low: float | None = None, high: float | None = None, reason: str | None = None
) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "reason": reason}


def _with_interval(figure: bootstrap.Estimate, why_none: str | None) -> dict[str, Any]:
    low, high = figure["low"], figure["high"]
    if why_none is None and low == high:
        # No spread between blocks is what all-tumor or all-stroma looks like; it is not certainty.
        why_none = "no interval: the resamples are all alike"
    if why_none is not None:
        return _figure(figure["value"], reason=why_none)
    return _figure(figure["value"], low, high)


def _ratios(stroma: dict[str, Any], spec: TSRSpec) -> dict[str, dict[str, Any]]:
    """Stroma percentage, tumor percentage and TSR: functions of the first, ends and all (percentiles allow it)."""
    # A falling function of a figure swaps its ends.
    flipped = [stroma[end] for end in ("value", "high", "low")]
    tumor, tumor_low, tumor_high = (None if x is None else 100 - x for x in flipped)
    tsr, tsr_low, tsr_high = ((100 - x) / x if x else None for x in flipped)
    reason = stroma["reason"]
    if stroma["value"] == 0:
        reason = f"no stroma ({spec.stroma}): the ratio has no bound"
    elif stroma["low"] == 0:
        reason = "no upper end: in resamples without stroma the ratio has no bound"
    return {
        "stroma_percentage": stroma,
        "tumor_percentage": _figure(tumor, tumor_low, tumor_high, stroma["reason"]),
        "tsr": _figure(tsr, tsr_low, tsr_high, reason),
    }
