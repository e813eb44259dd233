"""Several labels an image, or none: thresholds, scores, and the figures of a split with their intervals.

Alphabet as in `metrics`; k labels instead of classes, each a question of its own: its probability is at or
above its threshold, or it is not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histojax.evaluation import bootstrap, metrics, predictions, summary_blocks
from histojax.evaluation.metrics import Array
from histojax.evaluation.summary_blocks import Key, Statistic

RULES = ("f1", "youden", "fixed")
_CELLS = ("tp", "fp", "fn", "tn")
_PER_LABEL = (
    "accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "gmean", "auroc",
    "average_precision", "brier",
)  # fmt: skip


# --- Thresholds ---------------------------------------------------------------------------------------------


def choose_thresholds(labels: Array, probabilities: Array, rule: str) -> Array:
    """The threshold of each label, (k,), that serves labels (n, k) and probabilities (n, k) best.

    `rule`: "f1", greatest F1; "youden", greatest recall + specificity; "sensitivity=0.95", greatest specificity of
    those whose recall is at least that; "fixed", 0.5. Thresholds lie halfway between neighbouring probabilities, so
    that none sits on an image; of equally good ones the nearest to 0.5 is taken, then the lower. A label that every or
    no image carries has nothing to choose by and keeps 0.5. Raises ValueError for another rule.
    """
    check_rule(rule)
    labels = np.asarray(labels) > 0.5
    if rule == "fixed":
        return np.full(labels.shape[1], 0.5)
    return np.array([_choose(there, p, rule) for there, p in zip(labels.T, np.asarray(probabilities).T, strict=True)])


def check_rule(rule: str) -> None:
    """Raises ValueError where `choose_thresholds` has no such rule."""
    if rule not in RULES and _sensitivity(rule) is None:
        raise ValueError(f"train.thresholds='{rule}' is not one of {', '.join(RULES)}, sensitivity=0.95")


def _sensitivity(rule: str) -> float | None:
    name, equals, share = rule.partition("=")
    try:
        value = float(share)
    except ValueError:
        return None
    return value if name == "sensitivity" and equals and 0 < value <= 1 else None


def _choose(there: Array, probabilities: Array, rule: str) -> float:
    if not there.any() or there.all():
        return 0.5
    scores = np.asarray(probabilities, np.float64)
    distinct = np.unique(scores)[::-1]
    true_positives, false_positives = metrics.threshold_counts(scores, there)
    # The last of these says yes to all, the first of all (not among them) to none, which neither rule can prefer.
    below = np.append(distinct[1:], 0.0)
    middle = below + (distinct - below) / 2
    cuts = np.where(middle > below, middle, distinct)
    positives, negatives = there.sum(), (~there).sum()
    if rule == "f1":
        value = 2 * true_positives / (true_positives + false_positives + positives)
    elif (least := _sensitivity(rule)) is not None:
        enough = true_positives / positives >= least - 1e-12
        value = np.where(enough, 1 - false_positives / negatives, -1.0)
    else:
        value = true_positives / positives - false_positives / negatives
    best = value >= value.max() - 1e-12
    away = np.where(best, np.abs(cuts - 0.5), np.inf)
    return float(cuts[away <= away.min() + 1e-12].min())


def thresholds_of(labels: Sequence[str], thresholds: Mapping[str, float] | None) -> Array:
    """Thresholds (k,) by name in the order of the labels; 0.5 for each where none are given.

    Raises PredictionsError where names are missing or unknown, or a value is no probability.
    """
    if thresholds is None:
        return np.full(len(labels), 0.5)
    if set(thresholds) != set(labels):
        raise predictions.PredictionsError(
            f"thresholds of {', '.join(thresholds)}; the table has the labels {', '.join(labels)}: give one for each"
        )
    values = np.array([float(thresholds[name]) for name in labels])
    if not ((values >= 0) & (values <= 1)).all():
        raise predictions.PredictionsError(f"thresholds {values.tolist()}: each must lie in [0, 1]")
    return values


# --- Scores of a validation ---------------------------------------------------------------------------------


def scores(labels: Array, probabilities: Array, thresholds: Array) -> dict[str, float]:
    """Point estimates for labels (n, k) and probabilities (n, k) at thresholds (k,), to choose a model by.

    accuracy (mean over the labels), subset_accuracy, hamming_loss; f1 (macro) and mean_average_precision over the
    labels that some image carries and some does not: of a small validation side a rare label may be missing, and
    that must not make every epoch nan. nan only if no label is left.
    """
    labels, probabilities = np.asarray(labels) > 0.5, np.asarray(probabilities, np.float64)
    right = (probabilities >= thresholds) == labels
    askable = np.flatnonzero(labels.any(0) & ~labels.all(0))
    f1 = [_f1(labels[:, i], probabilities[:, i] >= thresholds[i]) for i in askable]
    precision = [float(metrics.average_precision(probabilities[:, i], labels[:, i])) for i in askable]
    return {
        "accuracy": float(right.mean()),
        "f1": float(np.mean(f1)) if f1 else float("nan"),
        "subset_accuracy": float(right.all(1).mean()),
        "hamming_loss": float(1 - right.mean()),
        "mean_average_precision": float(np.mean(precision)) if precision else float("nan"),
    }


def _f1(there: Array, predicted: Array) -> float:
    return float(2 * (there & predicted).sum() / (there.sum() + predicted.sum()))


# --- A split of results.json --------------------------------------------------------------------------------


def summarise_split(
    rows: pd.DataFrame, names: Sequence[str], thresholds: Array, n_resamples: int, seed: int
) -> dict[str, Any]:
    """The block of one split, from its rows of a valid table."""
    labels = rows[[predictions.LABEL_PREFIX + name for name in names]].to_numpy(dtype=bool)
    probabilities = rows[[predictions.PREFIX + name for name in names]].to_numpy(dtype=np.float64)
    split = str(rows["split"].iloc[0])
    unit_name, unit, n_units = summary_blocks.resampled_units(rows)
    statistic = label_statistic(labels, probabilities, thresholds, unit, n_units, names)
    figures = bootstrap.intervals(statistic, n_units, n_resamples=n_resamples, seed=seed, n_rows=len(rows))
    warnings = _label_warnings(split, names, labels, probabilities >= thresholds)
    for i, name in enumerate(names):
        for side, members in (("with", labels[:, i]), ("without", ~labels[:, i])):
            if summary_blocks.withdraw_intervals(figures, statistic, members, unit, n_units):
                warnings.append(
                    f"split '{split}': all images {side} label '{name}' are of one {unit_name}; "
                    "metrics that need them have no interval"
                )
    warnings += summary_blocks.unit_warnings(split, rows, unit_name, n_units)
    warnings += summary_blocks.undefined_warnings(split, figures)
    out: dict[str, Any] = {"n_images": len(rows)}
    for column, count in (("patient_id", "n_patients"), ("slide_id", "n_slides"), ("source_id", "n_source_images")):
        known = column in rows and (rows[column] != "").all()
        out[count] = int(rows[column].nunique()) if known else None
    out["resampled"] = unit_name
    for i, name in enumerate(names):
        share = float(labels[:, i].mean())
        out.setdefault("labels", {})[name] = {
            "n_positive": int(labels[:, i].sum()),
            "prevalence": share,
            "threshold": float(thresholds[i]),
            "baseline": {"answer": "present" if share > 0.5 else "absent", "accuracy": max(share, 1 - share)},
        }
    for key, figure in figures.items():
        summary_blocks.insert(out, key, figure)
    out["warnings"] = warnings
    return out


def label_statistic(
    labels: Array, probabilities: Array, thresholds: Array, unit: Array, n_units: int, names: Sequence[str]
) -> Statistic:
    """Function from the weights of the units (r, n_units) to every figure (r,)."""
    k = len(names)
    predicted = probabilities >= thresholds
    terms = {
        "tp": labels & predicted,
        "fp": ~labels & predicted,
        "fn": labels & ~predicted,
        "tn": ~labels & ~predicted,
        "brier": (probabilities - labels) ** 2,
        "subset": (labels == predicted).all(1, keepdims=True),
        "n": np.ones((len(labels), 1)),
    }
    rankings = [metrics.Ranking(probabilities[:, i], labels[:, i], unit) for i in range(k)]
    # All that is a sum over images is summed once over each unit; a resample is then one matrix product.
    ends = np.cumsum([term.shape[1] for term in terms.values()])
    sums = np.zeros((n_units, int(ends[-1])))
    np.add.at(sums, unit, np.concatenate([term.astype(np.float64) for term in terms.values()], axis=1))

    def statistic(weights: Array) -> dict[Key, Array]:
        part = dict(zip(terms, np.split(weights @ sums, ends[:-1], axis=-1), strict=True))
        total = part["n"]
        per_label = ratios(*(part[cell] for cell in _CELLS))
        micro = ratios(*(part[cell].sum(-1, keepdims=True) for cell in _CELLS))
        areas, averages = [], []
        for ranking in rankings:
            found = ranking.counts(weights)
            areas.append(metrics.auroc_from_counts(*found))
            averages.append(metrics.average_precision_from_counts(*found))
        per_label |= {"auroc": np.stack(areas, -1), "average_precision": np.stack(averages, -1)}
        per_label["brier"] = metrics.divide(part["brier"], total)
        out: dict[Key, Array] = {
            ("image", "accuracy"): metrics.macro(per_label["accuracy"]),
            ("image", "subset_accuracy"): metrics.divide(part["subset"], total)[:, 0],
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

    return statistic


def ratios(tp: Array, fp: Array, fn: Array, tn: Array) -> dict[str, Array]:
    """What four cells (..., k) give; nan and 0 as `metrics.precision` has them."""
    positives = tp + fn
    there = positives > 0
    recall, specificity = metrics.divide(tp, positives), metrics.divide(tn, tn + fp)
    return {
        "accuracy": metrics.divide(tp + tn, tp + fp + fn + tn),
        "balanced_accuracy": (recall + specificity) / 2,
        "precision": np.where(there, metrics.divide(tp, tp + fp, undefined=0.0), np.nan),
        "recall": recall,
        "specificity": specificity,
        "f1": np.where(there, metrics.divide(2 * tp, 2 * tp + fp + fn), np.nan),
        "gmean": np.sqrt(recall * specificity),
    }


def _label_warnings(split: str, names: Sequence[str], labels: Array, predicted: Array) -> list[str]:
    out = []
    for i, name in enumerate(names):
        if not labels[:, i].any():
            out.append(f"split '{split}': no image carries label '{name}'; metrics that need one are nan")
        elif labels[:, i].all():
            out.append(f"split '{split}': every image carries label '{name}'; metrics that need one without are nan")
        if labels[:, i].any() and not predicted[:, i].any():
            out.append(f"split '{split}': label '{name}' is never predicted; its precision and F1 are given as 0")
    return out
