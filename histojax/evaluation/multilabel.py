"""Metrics of tables in which an image has any number of labels, and the block of a split in results.json.

Shapes as in `metrics`, with k labels instead of classes. Each label is decided separately: it is predicted where its
probability reaches its threshold.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from histojax.evaluation import bootstrap, metrics, predictions, summary_blocks
from histojax.evaluation.metrics import Array
from histojax.evaluation.own_metrics import Metric, with_own
from histojax.evaluation.summary_blocks import Key, Statistic
from histojax.evaluation.thresholds import is_positive

_CELLS = ("tp", "fp", "fn", "tn")
_PER_LABEL = (
    "accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "gmean", "auroc",
    "average_precision", "brier",
)  # fmt: skip


def scores(labels: Array, probabilities: Array, thresholds: Array) -> dict[str, float]:
    """Compute the point estimates by which a model is chosen on validation images.

    `f1` (macro) and `mean_average_precision` are means over the labels that some images carry and some do not. A rare
    label may be missing from a small validation set, and that must not make every epoch nan. Both are nan only if no
    label is left.

    Args:
      labels: 0 or 1, (n, k).
      probabilities: (n, k).
      thresholds: (k,).

    Returns:
      `accuracy` (mean over the labels), `f1`, `subset_accuracy`, `hamming_loss`, `mean_average_precision`.
    """
    labels, probabilities = np.asarray(labels) > 0.5, np.asarray(probabilities, np.float64)
    predicted = is_positive(probabilities, thresholds)
    correct = predicted == labels
    defined = np.flatnonzero(labels.any(0) & ~labels.all(0))
    f1 = [_f1(labels[:, i], predicted[:, i]) for i in defined]
    precision = [float(metrics.average_precision(probabilities[:, i], labels[:, i])) for i in defined]
    return {
        "accuracy": float(correct.mean()),
        "f1": float(np.mean(f1)) if f1 else float("nan"),
        "subset_accuracy": float(correct.all(1).mean()),
        "hamming_loss": float(1 - correct.mean()),
        "mean_average_precision": float(np.mean(precision)) if precision else float("nan"),
    }


def _f1(labels: Array, predicted: Array) -> float:
    return float(2 * (labels & predicted).sum() / (labels.sum() + predicted.sum()))


# --- The block of a split -----------------------------------------------------------------------------------


def arrays(rows: pd.DataFrame, names: Sequence[str]) -> tuple[Array, Array]:
    """Take labels (n, k), boolean, and probabilities (n, k) from rows of a table."""
    labels = rows[[predictions.LABEL_PREFIX + name for name in names]].to_numpy(dtype=bool)
    return labels, rows[[predictions.PREFIX + name for name in names]].to_numpy(dtype=np.float64)


def summarise_split(
    rows: pd.DataFrame,
    names: Sequence[str],
    thresholds: Array,
    n_resamples: int,
    seed: int,
    own: Sequence[Metric] = (),
) -> dict[str, Any]:
    """Build the block of one split in results.json.

    Args:
      rows: rows of a valid table, all of one split.
      names: labels, (k,).
      thresholds: (k,).
      n_resamples: of the bootstrap.
      seed: of the bootstrap.
      own: metrics of the user's own.
    """
    labels, probabilities = arrays(rows, names)
    split = str(rows["split"].iloc[0])
    unit_name, unit, n_units = summary_blocks.resampled_units(rows)
    statistic = label_statistic(labels, probabilities, thresholds, unit, n_units, names)
    statistic = with_own(statistic, own, labels, probabilities, unit, n_units)
    estimates = bootstrap.intervals(statistic, n_units, n_resamples=n_resamples, seed=seed, n_rows=len(rows))
    warnings = _label_warnings(split, names, labels, is_positive(probabilities, thresholds))
    for i, name in enumerate(names):
        for side, members in (("with", labels[:, i]), ("without", ~labels[:, i])):
            if summary_blocks.withdraw_intervals(estimates, statistic, members, unit, n_units):
                warnings.append(
                    f"split '{split}': all images {side} label '{name}' belong to one {unit_name}; "
                    "metrics that need them have no interval"
                )
    warnings += summary_blocks.unit_warnings(split, rows, unit_name, n_units)
    warnings += summary_blocks.undefined_warnings(split, estimates)
    block: dict[str, Any] = {"n_images": len(rows)}
    for column, count in (("patient_id", "n_patients"), ("slide_id", "n_slides"), ("source_id", "n_source_images")):
        known = column in rows and (rows[column] != "").all()
        block[count] = int(rows[column].nunique()) if known else None
    block["resampled"] = unit_name
    for i, name in enumerate(names):
        prevalence = float(labels[:, i].mean())
        block.setdefault("labels", {})[name] = {
            "n_positive": int(labels[:, i].sum()),
            "prevalence": prevalence,
            "threshold": float(thresholds[i]),
            "baseline": {
                "answer": "present" if prevalence > 0.5 else "absent",
                "accuracy": max(prevalence, 1 - prevalence),
            },
        }
    for key, estimate in estimates.items():
        summary_blocks.insert(block, key, estimate)
    block["warnings"] = warnings
    return block


def label_statistic(
    labels: Array, probabilities: Array, thresholds: Array, unit: Array, n_units: int, names: Sequence[str]
) -> Statistic:
    """Build the function from unit weights (r, n_units) to every metric (r,).

    Args:
      labels: boolean, (n, k).
      probabilities: (n, k).
      thresholds: (k,).
      unit: unit index of each image, (n,).
      n_units: number of units.
      names: labels, (k,).
    """
    predicted = is_positive(probabilities, thresholds)
    terms = {
        "tp": labels & predicted,
        "fp": ~labels & predicted,
        "fn": labels & ~predicted,
        "tn": ~labels & ~predicted,
        "brier": (probabilities - labels) ** 2,
        "subset": (labels == predicted).all(1, keepdims=True),
        "n": np.ones((len(labels), 1)),
    }
    rankings = [metrics.Ranking(probabilities[:, i], labels[:, i], unit) for i in range(len(names))]
    # Every sum over images is taken once per unit. A resample is then one matrix product.
    ends = np.cumsum([term.shape[1] for term in terms.values()])
    sums = np.zeros((n_units, int(ends[-1])))
    np.add.at(sums, unit, np.concatenate([term.astype(np.float64) for term in terms.values()], axis=1))

    def statistic(weights: Array) -> dict[Key, Array]:
        part = dict(zip(terms, np.split(weights @ sums, ends[:-1], axis=-1), strict=True))
        per_label = ratios(*(part[cell] for cell in _CELLS))
        per_label |= metrics.ranking_metrics(rankings, weights)
        per_label["brier"] = metrics.divide(part["brier"], part["n"])
        micro = ratios(*(part[cell].sum(-1, keepdims=True) for cell in _CELLS))
        subset_accuracy = metrics.divide(part["subset"], part["n"])[:, 0]
        return _named(per_label, micro, subset_accuracy, names)

    return statistic


def _named(
    per_label: dict[str, Array], micro: dict[str, Array], subset_accuracy: Array, names: Sequence[str]
) -> dict[Key, Array]:
    """Key every metric by its place in the block, in the order of results.json."""
    out: dict[Key, Array] = {
        ("image", "accuracy"): metrics.macro(per_label["accuracy"]),
        ("image", "subset_accuracy"): subset_accuracy,
        ("image", "hamming_loss"): 1 - metrics.macro(per_label["accuracy"]),
    }
    for name in ("precision", "recall", "f1"):
        out["image", f"{name}_macro"] = metrics.macro(per_label[name])
        out["image", f"{name}_micro"] = micro[name][:, 0]
    out["image", "auroc_macro"] = metrics.macro(per_label["auroc"])
    out["image", "mean_average_precision"] = metrics.macro(per_label["average_precision"])
    for i, label in enumerate(names):
        out |= {("labels", label, name): per_label[name][:, i] for name in _PER_LABEL}
    return out


def ratios(tp: Array, fp: Array, fn: Array, tn: Array) -> dict[str, Array]:
    """Compute the metrics of four cells (..., k); nan and 0 in the same cases as `metrics.precision`."""
    positives = tp + fn
    present = positives > 0
    recall, specificity = metrics.divide(tp, positives), metrics.divide(tn, tn + fp)
    return {
        "accuracy": metrics.divide(tp + tn, tp + fp + fn + tn),
        "balanced_accuracy": (recall + specificity) / 2,
        "precision": np.where(present, metrics.divide(tp, tp + fp, undefined=0.0), np.nan),
        "recall": recall,
        "specificity": specificity,
        "f1": np.where(present, metrics.divide(2 * tp, 2 * tp + fp + fn), np.nan),
        "gmean": np.sqrt(recall * specificity),
    }


def _label_warnings(split: str, names: Sequence[str], labels: Array, predicted: Array) -> list[str]:
    warnings = []
    for i, name in enumerate(names):
        if not labels[:, i].any():
            warnings.append(f"split '{split}': no image carries label '{name}'; metrics that need one are nan")
        elif labels[:, i].all():
            warnings.append(
                f"split '{split}': every image carries label '{name}'; metrics that need one without it are nan"
            )
        if labels[:, i].any() and not predicted[:, i].any():
            warnings.append(f"split '{split}': label '{name}' is never predicted; its precision and F1 are set to 0")
    return warnings
