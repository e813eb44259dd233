"""Errors of a model: correctness per image, patient and case, the worst errors, and labels that coexist."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from histojax.evaluation import multilabel, predictions, results
from histojax.evaluation.metrics import Array
from histojax.evaluation.report.sources import Source
from histojax.evaluation.thresholds import is_positive

FEW_IMAGES = 5  # a patient with fewer images is marked: its fraction of correct images says little
_MAX_GROUPS = 1000  # patients or cases that a report keeps


def correctness(source: Source, rows: pd.DataFrame) -> dict[str, Array]:
    """Score the correctness of each image, (n,); nan where an image does not count. The first entry has no nan."""
    if source.multilabel:
        labels, predicted, _ = _label_decisions(source, rows)
        same = predicted == labels
        return {"labels right": same.mean(1), "all labels right": same.all(1).astype(np.float64)}
    true, probabilities = results.arrays(rows, source.classes)
    correct = (probabilities.argmax(1) == true).astype(np.float64)
    out = {"accuracy": correct}
    if source.positive is not None:
        index = source.classes.index(source.positive)
        out["sensitivity"] = np.where(true == index, correct, np.nan)
        out["specificity"] = np.where(true != index, correct, np.nan)
    return out


def groups(source: Source, rows: pd.DataFrame, column: str, scores: Mapping[str, Array]) -> dict[str, Any]:
    """List patients or cases, the least correct first.

    Args:
      source: of the rows.
      rows: rows of the table, (n,).
      column: `patient_id` or `case_id`.
      scores: as `correctness` gives them; the first is used.

    Returns:
      `share` (name of the score), `n`, `n_few`, and `rows` with `id`, `n_images`, `labels`, `share_right`, `few` and,
      with a positive class, `mean_probability`.
    """
    name, score = next(iter(scores.items()))
    names, index = np.unique(rows[column].to_numpy().astype(str), return_inverse=True)
    counts = np.bincount(index)
    correct = np.bincount(index, weights=score)
    labels = _labels_by_group(source, rows, names, index)
    probability = None
    if source.positive is not None:
        probability = np.bincount(index, weights=rows[predictions.PREFIX + source.positive].to_numpy())
    table = []
    for i in np.lexsort((names, correct / counts)):
        if names[i] == "":
            continue
        row: dict[str, Any] = {"id": str(names[i]), "n_images": int(counts[i]), "labels": labels[i]}
        row |= {"share_right": float(correct[i] / counts[i]), "few": bool(counts[i] < FEW_IMAGES)}
        if probability is not None:
            row["mean_probability"] = float(probability[i] / counts[i])
        table.append(row)
    return {"share": name, "n": len(table), "n_few": sum(row["few"] for row in table), "rows": table[:_MAX_GROUPS]}


def _labels_by_group(source: Source, rows: pd.DataFrame, names: Array, index: Array) -> list[list[str]]:
    """List the true classes of each group, or its labels with the number of images that carry them."""
    if source.multilabel:
        labels, _ = multilabel.arrays(rows, source.classes)
        counts = [np.bincount(index, weights=labels[:, i], minlength=len(names)) for i in range(len(source.classes))]
        return [
            [f"{label} {int(count[i])}" for label, count in zip(source.classes, counts, strict=True) if count[i]]
            for i in range(len(names))
        ]
    found: list[set[str]] = [set() for _ in names]
    for i, label in zip(index, rows["label"], strict=True):
        found[i].add(str(label))
    return [sorted(labels) for labels in found]


def worst(source: Source, rows: pd.DataFrame, n: int) -> dict[str, Any]:
    """List the n errors of which the model was most certain, and count all errors.

    Returns:
      `n_errors`, and `rows` with `image_id`, `patient_id`, `truth`, `said` (the predicted class, or the label in
      question), its `probability`, and columns of the table where known.
    """
    if source.multilabel:
        labels, predicted, probabilities = _label_decisions(source, rows)
        error = np.where(predicted != labels, np.abs(probabilities - labels), -1.0)
        answer, score = error.argmax(1), error.max(1)
    else:
        true, probabilities = results.arrays(rows, source.classes)
        answer = probabilities.argmax(1)
        score = np.where(answer != true, 1 - probabilities[np.arange(len(true)), true], -1.0)
    n_errors = int((score >= 0).sum())
    order = np.lexsort((rows["image_id"].to_numpy().astype(str), -score))
    listed = []
    for i in order[: min(n, n_errors)]:
        row = rows.iloc[i]
        name = source.classes[answer[i]]
        entry: dict[str, Any] = {"image_id": row["image_id"], "patient_id": row["patient_id"]}
        entry |= {key: row[key] for key in ("magnification", "subtype", "path") if key in rows and str(row[key])}
        if source.multilabel:
            entry["truth"] = f"{name} {'present' if row[predictions.LABEL_PREFIX + name] else 'absent'}"
        else:
            entry["truth"] = row["label"]
        entry["probability"] = float(row[predictions.PREFIX + name])
        entry["said"] = name
        listed.append({key: value if isinstance(value, float) else str(value) for key, value in entry.items()})
    return {"n_errors": n_errors, "rows": listed}


def coexistence(source: Source, rows: pd.DataFrame) -> dict[str, Any]:
    """Count how many images carry each pair of labels, truly and as predicted, and the commonest sets of labels."""
    labels, predicted, _ = _label_decisions(source, rows)
    names = source.classes
    pairs = {key: (x.T.astype(int) @ x.astype(int)).tolist() for key, x in (("true", labels), ("predicted", predicted))}
    sets: dict[str, dict[str, int]] = {}
    for true_row, predicted_row in zip(labels, predicted, strict=True):
        true_set, predicted_set = (
            " + ".join(name for name, present in zip(names, row, strict=True) if present) or "none"
            for row in (true_row, predicted_row)
        )
        for key, name in (("true", true_set), ("predicted", predicted_set)):
            sets.setdefault(name, {"true": 0, "predicted": 0, "both": 0})[key] += 1
        sets[true_set]["both"] += true_set == predicted_set
    ordered = sorted(sets.items(), key=lambda item: (-item[1]["true"], -item[1]["predicted"], item[0]))
    return {"pairs": pairs, "sets": [{"labels": name} | counts for name, counts in ordered[:20]], "n_sets": len(sets)}


def _label_decisions(source: Source, rows: pd.DataFrame) -> tuple[Array, Array, Array]:
    """Take labels, decisions at the thresholds, and probabilities, each (n, k)."""
    labels, probabilities = multilabel.arrays(rows, source.classes)
    cuts = np.array([source.label_thresholds[name] for name in source.classes])
    return labels, is_positive(probabilities, cuts), probabilities
