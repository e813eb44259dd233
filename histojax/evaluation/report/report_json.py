"""report.json: everything that a report states, computed from its sources."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from histojax.core.errors import RunError
from histojax.evaluation import decisions, results
from histojax.evaluation.report import (
    section_calibration,
    section_comparisons,
    section_errors,
    section_levels,
    section_provenance,
    section_robustness,
    section_selective,
)
from histojax.evaluation.report.sources import GIVEN, VALIDATION, Source

USE = "Research use only. Not a medical device; not for diagnosis or treatment."
_RESAMPLES = 2000
_MIN_RESAMPLES = 200
_MAX_RANKED = 400_000_000  # images × scores × resamples that are ranked; more would take minutes


@dataclasses.dataclass(frozen=True)
class ReportSpec:
    """How a report is made.

    Attributes:
      split: the reported split; empty: as `Source.tested` chooses.
      resamples: of every bootstrap; None: the run's number, else 2,000, reduced for very large tables with a note.
      seed: of every bootstrap; None: the run's, else 0.
      worst: number of worst errors that are listed.
    """

    split: str = ""
    resamples: int | None = None
    seed: int | None = None
    worst: int = 24


def describe(sources: Sequence[Source], spec: ReportSpec) -> dict[str, Any]:
    """Compute the report of these sources.

    Returns:
      `use`, `sources` (one entry per source) and `comparisons` (one per pair), ready for JSON.

    Raises:
      RunError: a split that a source does not have, or two sources of the same name.
    """
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise RunError(f"several sources have the same name ({', '.join(names)}): give names with --names")
    return {
        "use": USE,
        "sources": [_describe_source(source, spec) for source in sources],
        "comparisons": _compare_all(sources, spec),
    }


def _describe_source(source: Source, spec: ReportSpec) -> dict[str, Any]:
    split = source.tested(spec.split)
    # A resample of images is drawn by row number, so the order must come from the images themselves.
    table = source.table.sort_values("image_id", ignore_index=True)
    rows = table[table["split"] == split].reset_index(drop=True)
    options, notes = _bootstrap_options(source, spec, len(table))
    if split in VALIDATION and source.thresholds is not None and source.threshold_origin != GIVEN:
        notes.append(f"The thresholds were chosen on split '{split}' itself: its metrics at them are optimistic.")
    blocks = results.summarise(
        table, positive=source.positive, thresholds=source.thresholds if source.multilabel else None, **options
    )
    notes += section_provenance.copy_own_metrics(source, blocks)
    out: dict[str, Any] = {
        "name": source.name,
        "kind": "labels" if source.multilabel else "classes",
        "classes": source.classes,
        "positive": source.positive,
        "split": split,
        "thresholds": source.thresholds,
        "threshold_origin": source.threshold_origin,
        "bootstrap": options,
        "facts": section_provenance.facts(source),
        "splits": blocks,
        "colour_and_texture": source.results.get("splits", {}).get(split, {}).get("colour_and_texture"),
    }
    scored = source.labels_and_scores(rows)
    if source.multilabel:
        curves = section_levels.curves_of(scored, blocks[split]["labels"])
        out["levels"] = {"image": {"unit": "image", "n": len(rows), "curves": curves}}
        notes.append("An image may have any number of labels, so a patient has no single label and no metrics.")
        out["coexistence"] = section_errors.coexistence(source, rows)
    else:
        out["levels"], level_notes = section_levels.levels_of_classes(source, rows, blocks[split], options)
        notes += level_notes
    out["cases_are_patients"] = section_levels.cases_are_patients(rows)
    out["decisions"] = section_levels.decisions_at_thresholds(source, rows, scored, options)
    out["calibration"], calibration_notes = section_calibration.calibration_states(source, rows, scored, options)
    notes += calibration_notes
    out["selective"] = section_selective.selective_accuracy(source, rows, scored, options)
    out["prediction_sets"] = section_selective.prediction_sets(source, rows, options)
    correctness = section_errors.correctness(source, rows)
    out["by"] = {
        column: decisions.correctness_by(rows, column, correctness, **options)
        for column in ("magnification", "subtype")
        if column in rows and rows[column].nunique() > 1
    }
    for level in ("patient", "case"):
        if f"{level}_id" in rows and (rows[f"{level}_id"] != "").any():
            out[f"{level}s"] = section_errors.groups(source, rows, f"{level}_id", correctness)
    out["worst"] = section_errors.worst(source, rows, spec.worst)
    out["training"] = section_provenance.training_curves(source)
    out["sides"] = section_provenance.split_sides(source)
    notes += section_provenance.damaged_split(source)
    out["robustness"], robustness_notes = section_robustness.robustness(source)
    notes += robustness_notes
    out["notes"] = notes
    return out


def _bootstrap_options(source: Source, spec: ReportSpec, n_rows: int) -> tuple[dict[str, Any], list[str]]:
    """Choose the resamples and the seed of the bootstrap; note it if a large table gets fewer resamples."""
    configured = source.config.get("evaluation", {}).get("resamples", _RESAMPLES)
    wanted = spec.resamples if spec.resamples is not None else int(configured)
    seed = spec.seed if spec.seed is not None else int(source.config.get("seed", 0))
    affordable = max(_MIN_RESAMPLES, _MAX_RANKED // (n_rows * len(source.scored)))
    if wanted <= affordable or spec.resamples is not None:
        return {"n_resamples": wanted, "seed": seed}, []
    note = (
        f"The bootstrap has {affordable} resamples instead of {wanted}, because the table is large; "
        "--resamples sets the number."
    )
    return {"n_resamples": affordable, "seed": seed}, [note]


def _compare_all(sources: Sequence[Source], spec: ReportSpec) -> list[dict[str, Any]]:
    """Compare every pair of sources."""
    pairs: list[dict[str, Any]] = []
    for first, second in itertools.combinations(sources, 2):
        n_rows = sum(int((s.table["split"] == s.tested(spec.split)).sum()) for s in (first, second))
        options, notes = _bootstrap_options(first, spec, n_rows)
        pair = section_comparisons.compare_pair(first, second, spec.split, options)
        pair["notes"] += notes
        pairs.append(pair)
    section_comparisons.adjust_p_values(pairs)
    return pairs
