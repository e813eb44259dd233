"""Metrics, confusion matrices and curves per level: images, patients, cases; and decisions at thresholds."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from histojax.evaluation import curves, decisions, predictions, results
from histojax.evaluation.metrics import Array
from histojax.evaluation.report.sources import Source
from histojax.evaluation.thresholds import DEFAULT

Scored = Mapping[str, tuple[Array, Array]]  # class or label -> whether images are positive (n,), probabilities (n,)


def levels_of_classes(
    source: Source, rows: pd.DataFrame, block: Mapping[str, Any], options: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Evaluate images, and patients and cases by their mean probabilities.

    Args:
      source: of the rows, with exclusive classes.
      rows: the reported rows of the table.
      block: their block of `results.summarise`.
      options: `n_resamples` and `seed` of the bootstrap.

    Returns:
      Level -> its metrics, confusion matrix and curves; and notes for the reader.
    """
    out, notes = {"image": _level("image", rows, source, block)}, []
    for level in ("patient", "case"):
        column = f"{level}_id"
        if column not in rows or (rows[column] == "").any():
            continue
        groups = results.group_table(rows, column)
        single = groups[groups["label"] != ""]
        if len(single) < len(groups):
            notes.append(
                f"{len(groups) - len(single)} of {len(groups)} {level}s have images of several classes; at {level} "
                "level they count in the recognition rate only."
            )
        rates = {name: block[level][name] for name in ("recognition_rate", "majority_accuracy")}
        if not len(single):
            out[level] = {"unit": level, "n": len(groups), "figures": rates, "confusion_matrix": [], "curves": {}}
            continue
        table = _one_row_per_group(single, column, source, str(rows["split"].iloc[0]))
        summary = results.summarise(table, positive=source.positive, **options)
        out[level] = _level(level, table, source, next(iter(summary.values())))
        out[level]["figures"] |= rates
    return out, notes


def cases_are_patients(rows: pd.DataFrame) -> bool:
    """Whether every patient is one case, and every case one patient, so that both levels are the same."""
    if "case_id" not in rows or (rows[["patient_id", "case_id"]] == "").any(axis=None):
        return False
    pairs = rows[["patient_id", "case_id"]].drop_duplicates()
    return bool(pairs["patient_id"].is_unique and pairs["case_id"].is_unique)


def shown_levels(source: Mapping[str, Any]) -> dict[str, Any]:
    """Take the levels of a source that differ: cases are left out where they are the patients.

    Args:
      source: an entry of `sources` of `report_json.describe`.
    """
    hidden = ("case",) if source["cases_are_patients"] else ()
    return {name: level for name, level in source["levels"].items() if name not in hidden}


def _one_row_per_group(groups: pd.DataFrame, column: str, source: Source, split: str) -> pd.DataFrame:
    """Build a table of predictions with one row per patient or case."""
    return predictions.make_table(
        groups[column].tolist(),
        groups["label"].tolist(),
        groups[[predictions.PREFIX + name for name in source.classes]].to_numpy(),
        source.classes,
        split=split,
        patient_id=groups[column].tolist(),
    )


def _level(level: str, table: pd.DataFrame, source: Source, block: Mapping[str, Any]) -> dict[str, Any]:
    areas = {source.positive: block["image"]} if source.positive is not None else block["per_class"]
    return {
        "unit": level,
        "n": len(table),
        "resampled": block["resampled"] if level == "image" else level,
        "n_by_class": block["classes"],
        "figures": dict(block["image"]),
        "per_class": block["per_class"],
        "confusion_matrix": block["confusion_matrix"],
        "curves": curves_of(source.labels_and_scores(table), areas),
    }


def curves_of(scored: Scored, areas: Mapping[str, Any]) -> dict[str, Any]:
    """Compute ROC and precision-recall curves per class or label, thinned, with their areas.

    Args:
      scored: class or label -> labels and probabilities.
      areas: class or label -> estimates `auroc` and `average_precision`.
    """
    out = {}
    for name, (labels, scores) in scored.items():
        roc, precision = curves.roc(scores, labels), curves.precision_recall(scores, labels)
        out[name] = {
            "n_positive": int(labels.sum()),
            "prevalence": float(labels.mean()),
            "auroc": areas[name]["auroc"],
            "average_precision": areas[name]["average_precision"],
            "roc": None if roc is None else _points(roc),
            "precision_recall": None if precision is None else _points(precision),
        }
    return out


def _points(curve: curves.Curve) -> dict[str, list[float]]:
    kept = curves.thinned(curve)
    return {"x": kept.x.round(6).tolist(), "y": kept.y.round(6).tolist()}


def decisions_at_thresholds(
    source: Source, rows: pd.DataFrame, scored: Scored, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Evaluate the positive class, or each label, at 0.5 and at its locked threshold."""
    if source.positive is None and not source.multilabel:
        return []
    out = []
    for name, (labels, scores) in scored.items():
        points = [{"name": "0.5"} | decisions.at_threshold(rows, labels, scores, DEFAULT, **options)]
        if source.thresholds is not None:
            locked = decisions.at_threshold(rows, labels, scores, source.thresholds[name], **options)
            points.append({"name": "locked"} | locked)
        out.append({"of": name, "points": points})
    return out
