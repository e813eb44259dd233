"""Tumor-to-stroma ratio of a slide from its tile table: areas, ratios, intervals, class, or why it is not evaluable.

Areas are summed in grid cells (stride × stride) and converted to mm² at the end: counts stay exact, and overlapping
tiles are not counted twice. The formulas are in `spec.FORMULAS`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import spatial

from histojax.evaluation import bootstrap, metrics, summary_blocks
from histojax.evaluation.metrics import Array
from histojax.slides.geometry import Geometry
from histojax.slides.labels import PREFIX, carried_labels, label_names
from histojax.slides.tsr.hot_spot import find_hot_spot
from histojax.slides.tsr.intervals import expanded_level
from histojax.slides.tsr.model_errors import LabelDraws, corrected_percentage, model_status, unknown
from histojax.slides.tsr.spec import CUTOFFS, FORMULAS, TSRError, TSRSpec

MIN_BLOCKS = 4  # with fewer blocks an interval is noise
FIGURES = ("tsr", "stroma_percentage", "tumor_percentage", "necrosis_share")
HOT_SPOT_NOTE = (
    "no interval: the field was chosen for its stroma, and resampling within it ignores that choice; "
    "its stroma percentage is the highest of many fields, not that of the tumor"
)


def measure(
    table: pd.DataFrame,
    geometry: Geometry,
    spec: TSRSpec,
    inside: Array | None = None,
    confusion: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure the tumor-to-stroma ratio of the whole tissue, the region of interest and the hot spot.

    Args:
      table: one row per tissue tile, with `row`, `column` and `prob_<label>`.
      geometry: the tile grid.
      spec: how the ratio is measured.
      inside: whether each row lies in the region of interest, boolean (n,). If given, the hot spot is searched there.
        The distance of stroma to tumor is always taken on the whole slide.
      confusion: counts of each label on validation images at the thresholds of `spec`, as for `corrected_percentage`.

    Returns:
      JSON-able: the settings and one block of figures per area. A figure that cannot be determined is None, with its
      reason.

    Raises:
      TSRError: the model lacks a label, or the table repeats a tile or has invalid probabilities.
    """
    tiles = _tiles(table, geometry, spec)
    cell_um = geometry.stride * geometry.mpp
    context = _Context(spec, geometry.cell_mm2, confusion, block=max(1, round(spec.block_um / cell_um)))
    areas = {"whole tissue": _area(tiles, context)}
    searched, within = "whole tissue", tiles
    if inside is not None:
        inside = np.asarray(inside)
        if inside.shape != (len(table),) or inside.dtype != bool:
            raise TSRError(f"inside must hold {len(table)} booleans, one per tile")
        searched, within = "region", tiles.take(inside[np.lexsort((table["column"], table["row"]))])
        areas[searched] = _area(within, context)
    side = round(spec.hot_spot_um / cell_um)
    areas["hot spot"] = _hot_spot(within, context, geometry, side, searched, areas[searched]["reason"])
    return {
        "settings": dataclasses.asdict(spec),
        "labels": list(tiles.labels),
        "model": model_status((spec.tumor, spec.stroma), confusion),
        "rules": spec.sentences(),
        "cutoff": CUTOFFS[spec.cutoff].rule,
        "formulas": dict(FORMULAS),
        "cell_mm2": geometry.cell_mm2,
        "block_um": context.block * cell_um,
        "hot_spot_um": side * cell_um,
        "areas": areas,
    }


# --- Tiles and the areas that they count for -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Tiles:
    """Tissue tiles, sorted by row and column; areas are in cells."""

    labels: tuple[str, ...]
    row: Array  # (n,)
    column: Array  # (n,)
    carried: Array  # (n, k) whether the tile carries the label
    parts: Array  # (n, k) area of the label in the tile, before division
    tumor: Array  # (n,) tumor area after the policy
    stroma: Array  # (n,) stroma area after the policy and the distance

    def take(self, which: Array) -> "_Tiles":
        """A subset of the tiles, by mask or index."""
        arrays = (self.row, self.column, self.carried, self.parts, self.tumor, self.stroma)
        return _Tiles(self.labels, *(array[which] for array in arrays))


@dataclasses.dataclass(frozen=True)
class _Context:
    """Inputs shared by all areas of a slide; `block` is in cells."""

    spec: TSRSpec
    cell_mm2: float
    confusion: Mapping[str, Any] | None
    block: int


def _tiles(table: pd.DataFrame, geometry: Geometry, spec: TSRSpec) -> _Tiles:
    """Decide what each tile of the table counts for."""
    labels = label_names(table)
    spec.check_labels(labels)
    if table.duplicated(["row", "column"]).any():
        raise TSRError("the tile table repeats a row and column: each tile must appear once")
    # Sorted, so that the same tiles give the same digits in any order.
    ordered = table.sort_values(["row", "column"])
    probabilities = ordered[[PREFIX + label for label in labels]].to_numpy(np.float64)
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise TSRError("the tile table has missing probabilities or ones outside [0, 1]: predict the slide again")
    row, column = (ordered[name].to_numpy(np.int64) for name in ("row", "column"))
    carried = carried_labels(ordered, spec.thresholds or None)
    parts = probabilities if spec.measure == "probability" else carried.astype(np.float64)
    pair = [labels.index(spec.tumor), labels.index(spec.stroma)]
    divided = parts[:, pair]
    if spec.measure == "label" and spec.policy != "both":
        both = carried[:, pair].all(1)
        if spec.policy == "half":
            divided[both] = 0.5
        else:
            # With thresholds of 0, both probabilities may be 0: the tile then counts half for each.
            total = probabilities[:, pair].sum(1, keepdims=True)
            divided[both] = metrics.divide(probabilities[:, pair], total, undefined=0.5)[both]
    tumor, stroma = divided.T
    if spec.tumor_distance_um:
        reach = spec.tumor_distance_um / (geometry.stride * geometry.mpp)
        stroma = np.where(_near_tumor(row, column, carried[:, pair[0]], reach), stroma, 0.0)
    return _Tiles(labels, row, column, carried, parts, tumor, stroma)


def _near_tumor(row: Array, column: Array, is_tumor: Array, reach: float) -> Array:
    """Whether each tile has a tumor tile at most `reach` cells away, centre to centre, (n,)."""
    if not is_tumor.any():
        return np.zeros(len(row), bool)
    positions = np.stack([row, column], 1)
    distance, _ = spatial.cKDTree(positions[is_tumor]).query(positions)
    return distance <= reach * (1 + 1e-9)


# --- Areas of interest --------------------------------------------------------------------------------------


def _area(tiles: _Tiles, context: _Context) -> dict[str, Any]:
    """Counts, areas and figures of a set of tiles, with intervals over its blocks."""
    out = _counts(tiles, context)
    out["reason"] = _why_not_evaluable(out, context.spec)
    if out["reason"] is None:
        out["status"] = "evaluated"
        _add_figures(out, tiles, context)
    return out


def _hot_spot(
    within: _Tiles, context: _Context, geometry: Geometry, side: int, searched: str, reason: str | None
) -> dict[str, Any]:
    """Counts and figures of the most stroma-rich field of `within`; `reason` says why `within` is not evaluable."""
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
        # A cell lies in the centre of its tile, which is larger than the cell if tiles overlap.
        right, down = geometry.tile - geometry.stride, geometry.tile_height - geometry.stride_height
        out["box"] = {
            "minx": field.column * geometry.stride + right // 2,
            "miny": field.row * geometry.stride_height + down // 2,
            "width": side * geometry.stride,
            "height": side * geometry.stride_height,
        }
        _add_figures(out, tiles, context, resample=False)
        out["notes"].append(HOT_SPOT_NOTE)
    return out


def _counts(tiles: _Tiles, context: _Context) -> dict[str, Any]:
    """Counts and areas, which do not depend on evaluation, and empty figures."""
    n, cell = len(tiles.row), context.cell_mm2
    pair = [tiles.labels.index(context.spec.tumor), tiles.labels.index(context.spec.stroma)]
    return {
        "status": "not evaluable",
        "reason": None,
        "tiles": n,
        "tissue_mm2": n * cell,
        "labels": {
            label: {"tiles": int(tiles.carried[:, i].sum()), "mm2": float(tiles.parts[:, i].sum() * cell)}
            for i, label in enumerate(tiles.labels)
        },
        "tiles_of_both": int(tiles.carried[:, pair].all(1).sum()),
        "tumor_mm2": float(tiles.tumor.sum() * cell),
        "stroma_mm2": float(tiles.stroma.sum() * cell),
        **{name: _figure(reason="not evaluable") for name in FIGURES},
        "stroma_class": {"name": None, "rule": CUTOFFS[context.spec.cutoff].rule, "same_class_share": None},
        "corrected": _corrected_figure(unknown("not evaluable"), context.spec),
        "blocks": None,
        "notes": [],
    }


def _why_not_evaluable(counts: dict[str, Any], spec: TSRSpec) -> str | None:
    """The reason why an area is not evaluated; None if it is."""
    if not counts["tiles"]:
        return "no tissue tiles"
    if counts["tissue_mm2"] < spec.min_tissue_mm2:
        return f"too little tissue: {counts['tissue_mm2']:.3g} mm², --min_tissue_mm2 requires {spec.min_tissue_mm2:g}"
    if counts["tumor_mm2"] + counts["stroma_mm2"] == 0:
        return f"no tumor ({spec.tumor}) and no stroma ({spec.stroma}): the ratio is undefined"
    if counts["tumor_mm2"] < spec.min_tumor_mm2:
        return (
            f"too little tumor ({spec.tumor}): {counts['tumor_mm2']:.3g} mm², --min_tumor_mm2 requires "
            f"{spec.min_tumor_mm2:g}"
        )
    return None


def _add_figures(out: dict[str, Any], tiles: _Tiles, context: _Context, resample: bool = True) -> None:
    """Add figures, stroma class and corrected percentage to the counts of an evaluated area."""
    spec, cutoff = context.spec, CUTOFFS[context.spec.cutoff]
    unit, n_blocks = _blocks(tiles, context.block)
    pair = [tiles.labels.index(spec.tumor), tiles.labels.index(spec.stroma)]
    tissue = np.ones(len(tiles.row))
    terms = np.stack([tiles.tumor, tiles.stroma, _necrosis(tiles, spec), tissue, *tiles.carried[:, pair].T], 1)
    sums = np.zeros((n_blocks, terms.shape[1]))
    np.add.at(sums, unit, terms)

    def statistic(weights: Array) -> dict[str, Array]:
        tumor, stroma, necrosis, tissue = (weights @ sums[:, :4]).T
        return {
            "stroma_percentage": metrics.divide(100 * stroma, tumor + stroma),
            "necrosis_share": metrics.divide(necrosis, tissue),
        }

    informative = int((sums[:, :2].sum(1) > 0).sum())
    no_interval = None
    if not resample:
        no_interval = "a chosen field has no interval"
    elif informative < MIN_BLOCKS:
        no_interval = f"no interval: only {informative} blocks have tumor or stroma, at least {MIN_BLOCKS} are needed"
    resamples = 0 if no_interval else spec.resamples
    level = expanded_level(informative) if resamples else 0.95
    figures = bootstrap.intervals(statistic, n_blocks, n_resamples=resamples, seed=spec.seed, level=level)
    percentage = _with_interval(figures["stroma_percentage"], no_interval)
    out |= _ratios(percentage, spec)
    if spec.necrosis:
        out["necrosis_share"] = _with_interval(figures["necrosis_share"], no_interval)
    else:
        out["necrosis_share"] = _figure(reason="no label for necrosis (--necrosis)")
    high = bool(cutoff.high(percentage["value"]))
    out["stroma_class"]["name"] = "stroma-high" if high else "stroma-low"
    out["blocks"] = {"tissue": n_blocks, "tumor_or_stroma": informative}
    if spec.measure != "label":
        out["corrected"] = _corrected_figure(unknown("the correction requires --measure label"), spec)
    elif no_interval:
        out["corrected"] = _corrected_figure(unknown(no_interval), spec)
    if resamples:
        chunks = bootstrap.weight_chunks(n_blocks, spec.resamples, spec.seed)
        resampled = np.concatenate([weights @ sums for weights in chunks])
        percentages = metrics.divide(100 * resampled[:, 1], resampled[:, 0] + resampled[:, 1])
        out["stroma_class"]["same_class_share"] = _same_class_share(percentages, spec, high)
        if spec.measure == "label":
            out["corrected"] = _corrected(resampled, tiles.carried[:, pair].mean(0), context, level)
        if informative < summary_blocks.FEW_UNITS:
            out["notes"].append(f"only {informative} blocks have tumor or stroma: the interval is rough")
        undefined = figures["stroma_percentage"].get("undefined") or 0.0
        if undefined >= 0.01:
            out["notes"].append(f"{undefined:.1%} of the resamples have neither tumor nor stroma and are excluded")


def _blocks(tiles: _Tiles, side: int) -> tuple[Array, int]:
    """The block of each tile (n,), squares of side × side cells, and the number of blocks.

    Blocks start at the tiles' first row and column, so that the position of the tissue on the glass does not matter.
    """
    row, column = (tiles.row - tiles.row.min()) // side, (tiles.column - tiles.column.min()) // side
    names, unit = np.unique(row * (column.max() + 1) + column, return_inverse=True)
    return unit, len(names)


def _necrosis(tiles: _Tiles, spec: TSRSpec) -> Array:
    """Necrosis area of each tile, (n,)."""
    return tiles.parts[:, tiles.labels.index(spec.necrosis)] if spec.necrosis else np.zeros(len(tiles.row))


def _same_class_share(percentages: Array, spec: TSRSpec, high: bool) -> float | None:
    """Fraction of resampled percentages on the same side of the cut-off as the value; None if none is defined."""
    defined = percentages[np.isfinite(percentages)]
    return float((CUTOFFS[spec.cutoff].high(defined) == high).mean()) if len(defined) else None


def _corrected(resampled: Array, observed: Array, context: _Context, level: float) -> dict[str, Any]:
    """The percentage corrected for the model's errors.

    Args:
      resampled: sums of `_add_figures` in resamples of the blocks, (r, 6).
      observed: fraction of tiles that carry tumor and stroma, (2,).
      context: inputs shared by all areas.
      level: of the interval's percentiles.
    """
    spec = context.spec
    areas, tissue, carried = resampled[:, :2], resampled[:, 3], resampled[:, 4:]
    tumor, stroma = (
        LabelDraws(label, float(observed[i]), carried[:, i] / tissue, areas[:, i])
        for i, label in enumerate((spec.tumor, spec.stroma))
    )
    return _corrected_figure(corrected_percentage(tumor, stroma, context.confusion, level, spec.seed), spec)


def _corrected_figure(corrected: dict[str, Any], spec: TSRSpec) -> dict[str, Any]:
    """A corrected percentage with its class instead of its draws."""
    draws = corrected.pop("draws")
    share = None
    if corrected["value"] is not None:
        share = _same_class_share(draws, spec, bool(CUTOFFS[spec.cutoff].high(corrected["value"])))
    return corrected | {"same_class_share": share}


# --- Figures: {value, low, high, reason} --------------------------------------------------------------------


def _figure(
    value: float | None = None, low: float | None = None, high: float | None = None, reason: str | None = None
) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "reason": reason}


def _with_interval(figure: bootstrap.Estimate, no_interval: str | None) -> dict[str, Any]:
    """A figure with its interval, or without one for the reason `no_interval`."""
    low, high = figure["low"], figure["high"]
    if no_interval is None and low == high:
        # Blocks of only tumor or only stroma have no spread; that is not certainty.
        no_interval = "no interval: all resamples are equal"
    if no_interval is not None:
        return _figure(figure["value"], reason=no_interval)
    return _figure(figure["value"], low, high)


def _ratios(stroma: dict[str, Any], spec: TSRSpec) -> dict[str, dict[str, Any]]:
    """Stroma percentage, tumor percentage and TSR; the latter two are functions of the first, as are their ends."""
    # A decreasing function swaps the ends of an interval.
    flipped = [stroma[end] for end in ("value", "high", "low")]
    tumor, tumor_low, tumor_high = (None if x is None else 100 - x for x in flipped)
    tsr, tsr_low, tsr_high = ((100 - x) / x if x else None for x in flipped)
    reason = stroma["reason"]
    if stroma["value"] == 0:
        reason = f"no stroma ({spec.stroma}): the ratio is unbounded"
    elif stroma["low"] == 0:
        reason = "no upper end: the ratio is unbounded in resamples without stroma"
    return {
        "stroma_percentage": stroma,
        "tumor_percentage": _figure(tumor, tumor_low, tumor_high, stroma["reason"]),
        "tsr": _figure(tsr, tsr_low, tsr_high, reason),
    }
