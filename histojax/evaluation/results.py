"""Compute the numbers of results.json from a table of predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histojax.evaluation import bootstrap, group_metrics, metrics, multilabel, predictions, summary_blocks
from histojax.evaluation import thresholds as decision_thresholds
from histojax.evaluation.metrics import Array
from histojax.evaluation.own_metrics import Metric, with_own
from histojax.evaluation.summary_blocks import Key, Statistic

_SPLIT_ORDER = {"train": 0, "val": 1, "validation": 1, "test": 2}


def summarise(
    df: pd.DataFrame,
    *,
    positive: str | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
    thresholds: Mapping[str, float] | None = None,
    own: Sequence[Metric] = (),
) -> dict[str, Any]:
    """Compute the "splits" of results.json. The order of the rows does not matter.

    Args:
      df: table of predictions.
      positive: the positive class of two; None: the second.
      n_resamples: of the bootstrap.
      seed: of the bootstrap.
      thresholds: label -> threshold; None: 0.5 each. Only for tables with labels.
      own: metrics of the user's own, which stand beside ours.

    Returns:
      Split -> block of estimates ({"value", "low", "high"}), ready for JSON: an undefined number is None.

    Raises:
      PredictionsError: a table that cannot be evaluated, or arguments that do not fit it.
      RunError: a metric of the user's own fails.
    """
    df = predictions.normalise(df)
    classes = predictions.class_names(df)
    is_multilabel = predictions.is_multilabel(df)
    if is_multilabel and positive is not None:
        raise predictions.PredictionsError(
            f"positive={positive!r}: a table with labels (label_<name>) has no positive class; leave it out"
        )
    if thresholds is not None and not is_multilabel:
        raise predictions.PredictionsError(
            "thresholds apply to tables with labels (label_<name>); this table has one class per image"
        )
    label_thresholds = decision_thresholds.to_array(classes, thresholds) if is_multilabel else None
    if positive is not None and (positive not in classes or len(classes) != 2):
        raise predictions.PredictionsError(
            f"positive={positive!r} must be one of two classes; columns 'prob_<class>' ({len(df)} rows) give {classes}"
        )
    index = None if len(classes) != 2 else 1 if positive is None else classes.index(positive)
    # A resample of images is drawn by row number, so the order must come from the images themselves.
    df = df.sort_values("image_id", ignore_index=True)
    names = sorted(df["split"].unique(), key=lambda s: (_SPLIT_ORDER.get(s, 3), s))
    blocks = {}
    for name in names:
        rows = df[df["split"] == name].reset_index(drop=True)
        if label_thresholds is not None:
            blocks[name] = multilabel.summarise_split(rows, classes, label_thresholds, n_resamples, seed, own)
        else:
            blocks[name] = _summarise_split(rows, classes, index, n_resamples, seed, own)
    return blocks


def _summarise_split(
    rows: pd.DataFrame,
    classes: list[str],
    positive: int | None,
    n_resamples: int,
    seed: int,
    own: Sequence[Metric],
) -> dict[str, Any]:
    """Build the block of one split with exclusive classes."""
    true, probabilities = arrays(rows, classes)
    split = str(rows["split"].iloc[0])
    unit_name, unit, n_units = summary_blocks.resampled_units(rows)
    magnification = rows["magnification"].to_numpy().astype(str)
    counts = np.bincount(true, minlength=len(classes))
    confusion = metrics.confusion_matrix(true, probabilities.argmax(1), len(classes))
    block: dict[str, Any] = {
        "n_images": len(rows),
        "n_patients": n_units if unit_name == "patient" else None,
        "classes": dict(zip(classes, counts.tolist(), strict=True)),
        "positive": None if positive is None else classes[positive],
        "resampled": unit_name,
    }
    statistic = image_statistic(true, probabilities, unit, n_units, classes, positive, magnification)
    statistic = with_own(statistic, own, true, probabilities, unit, n_units)
    estimates = bootstrap.intervals(statistic, n_units, n_resamples=n_resamples, seed=seed, n_rows=len(rows))
    warnings = _class_warnings(split, classes, counts, confusion)
    for i, name in enumerate(classes):
        if summary_blocks.withdraw_intervals(estimates, statistic, true == i, unit, n_units):
            warnings.append(
                f"split '{split}': all images of class '{name}' belong to one {unit_name}; "
                "metrics that need the class have no interval"
            )
    warnings += summary_blocks.unit_warnings(split, rows, unit_name, n_units)
    for level in ("patient", "case"):
        column = f"{level}_id"
        if column in rows and (rows[column] != "").all():
            block[f"n_{level}s"] = rows[column].nunique()
            group_estimates, group_warnings = _group_estimates(rows, column, classes, n_resamples, seed)
            estimates |= group_estimates
            warnings += [f"split '{split}': {warning}" for warning in group_warnings]
    warnings += summary_blocks.undefined_warnings(split, estimates)
    for key, estimate in estimates.items():
        summary_blocks.insert(block, key, estimate)
    warnings += _complete_magnifications(block, split, classes, true, magnification)
    most = int(counts.argmax())
    block["majority_baseline"] = {
        "class": classes[most],
        "accuracy": float(counts[most] / counts.sum()),
        "gmean": 0.0 if counts.min() > 0 else None,
    }
    block["confusion_matrix"] = confusion.astype(int).tolist()
    block["warnings"] = warnings
    return block


def _complete_magnifications(
    block: dict[str, Any], split: str, classes: Sequence[str], true: Array, magnification: Array
) -> list[str]:
    """Add the image counts of each magnification; return warnings about classes that one lacks."""
    warnings = []
    counts = np.bincount(true, minlength=len(classes))
    for value, estimates in block.get("by_magnification", {}).items():
        selected = magnification == value
        estimates["n_images"] = int(selected.sum())
        counts_here = np.bincount(true[selected], minlength=len(classes))
        absent = [f"'{c}'" for c, n, here in zip(classes, counts, counts_here, strict=True) if n and not here]
        if absent:
            warnings.append(f"split '{split}': no image of class {', '.join(absent)} at {value or '?'}; gmean is nan")
    return warnings


def arrays(rows: pd.DataFrame, classes: Sequence[str]) -> tuple[Array, Array]:
    """Take class indices (n,) and probabilities (n, k) from rows of a table."""
    true = rows["label"].map({name: i for i, name in enumerate(classes)}).to_numpy(dtype=np.int64)
    return true, rows[[predictions.PREFIX + c for c in classes]].to_numpy(dtype=np.float64)


def image_statistic(
    true: Array,
    probabilities: Array,
    unit: Array,
    n_units: int,
    classes: Sequence[str],
    positive: int | None,
    magnification: Array,
) -> Statistic:
    """Build the function from unit weights (r, n_units) to the image-level metrics (r,).

    Args:
      true: class indices, (n,).
      probabilities: (n, k).
      unit: unit index of each image, (n,).
      n_units: number of units.
      classes: names, (k,).
      positive: index of the positive class of two, else None.
      magnification: of each image, (n,); with fewer than two values there are no metrics by magnification.
    """
    n, k = probabilities.shape
    cells = np.zeros((n, k * k))
    cells[np.arange(n), true * k + probabilities.argmax(1)] = 1
    magnifications = sorted(set(magnification.tolist()), key=lambda m: (len(m), m))
    if len(magnifications) < 2:
        magnifications = []
    # Every sum over images is taken once per unit. A resample is then one matrix product.
    terms = {
        "confusion": cells,
        "calibration": metrics.calibration_terms(true, probabilities),
        "brier": metrics.brier_terms(true, probabilities, positive)[:, None],
        "log_loss": metrics.log_loss_terms(true, probabilities)[:, None],
    } | {f"at {m}": cells * (magnification == m)[:, None] for m in magnifications}
    columns = range(k) if positive is None else [positive]
    rankings = [metrics.Ranking(probabilities[:, column], true == column, unit) for column in columns]
    ends = np.cumsum([term.shape[1] for term in terms.values()])
    sums = np.zeros((n_units, int(ends[-1])))
    np.add.at(sums, unit, np.concatenate(list(terms.values()), axis=1))

    def statistic(weights: Array) -> dict[Key, Array]:
        part = dict(zip(terms, np.split(weights @ sums, ends[:-1], axis=-1), strict=True))
        confusion = part["confusion"].reshape(-1, k, k)
        total = confusion.sum((-2, -1))
        out = _confusion_metrics(confusion, metrics.ranking_metrics(rankings, weights), classes, positive)
        out["image", "brier"] = metrics.divide(part["brier"][:, 0], total)
        out["image", "ece"] = metrics.ece_from_sums(part["calibration"], total)
        out["image", "log_loss"] = metrics.divide(part["log_loss"][:, 0], total)
        for m in magnifications:
            confusion_at = part[f"at {m}"].reshape(-1, k, k)
            out["by_magnification", m, "accuracy"] = metrics.accuracy(confusion_at)
            out["by_magnification", m, "gmean"] = metrics.gmean(confusion_at)
        return out

    return statistic


def _confusion_metrics(
    confusion: Array, ranking: dict[str, Array], classes: Sequence[str], positive: int | None
) -> dict[Key, Array]:
    """Key the metrics of confusion matrices (r, k, k) and rankings (r, c) by their place in the block."""
    per_class = {
        "precision": metrics.precision(confusion),
        "recall": metrics.recall(confusion),
        "f1": metrics.f1(confusion),
    }
    out: dict[Key, Array] = {
        ("image", "accuracy"): metrics.accuracy(confusion),
        ("image", "balanced_accuracy"): metrics.balanced_accuracy(confusion),
    }
    for name, values in per_class.items():
        out["image", name] = metrics.macro(values) if positive is None else values[:, positive]
    out |= {("image", f"{name}_macro"): metrics.macro(values) for name, values in per_class.items()}
    out["image", "gmean"] = metrics.gmean(confusion)
    out["image", "iba"] = metrics.iba(confusion, positive)
    out |= {("image", name): metrics.macro(values) for name, values in ranking.items()}
    if positive is None:
        per_class |= ranking
    for i, label in enumerate(classes):
        out |= {("per_class", label, name): values[:, i] for name, values in per_class.items()}
    return out


def _group_estimates(
    rows: pd.DataFrame, column: str, classes: Sequence[str], n_resamples: int, seed: int
) -> tuple[dict[Key, bootstrap.Estimate], list[str]]:
    """Estimate metrics over patients or cases, resampling the same groups; return warnings as well."""
    level = column.removesuffix("_id")
    ids, group = np.unique(rows[column].to_numpy().astype(str), return_inverse=True)
    n_groups = len(ids)
    scores = group_metrics.group_scores(*arrays(rows, classes), group, n_groups)
    mixed = int((scores.label < 0).sum())
    warnings = []
    if mixed:
        warnings.append(
            f"{mixed} of {n_groups} {level}s have images of several classes and are left out "
            "of majority_accuracy and mean_probability_accuracy"
        )
    if n_groups < 2 and level != "patient":  # for patients, summary_blocks.unit_warnings says so
        warnings.append(f"fewer than two {level}s: no interval over {level}s")

    def statistic(weights: Array) -> dict[Key, Array]:
        return {
            (level, "recognition_rate"): group_metrics.recognition_rate(scores, weights),
            (level, "majority_accuracy"): group_metrics.majority_accuracy(scores, weights),
            (level, "mean_probability_accuracy"): group_metrics.mean_probability_accuracy(scores, weights),
        }

    return bootstrap.intervals(statistic, n_groups, n_resamples=n_resamples, seed=seed), warnings


def _class_warnings(split: str, classes: Sequence[str], counts: Array, confusion: Array) -> list[str]:
    warnings = []
    for i, name in enumerate(classes):
        if counts[i] == 0:
            warnings.append(f"split '{split}': class '{name}' has no image; metrics that need it are nan")
        elif confusion[:, i].sum() == 0:
            warnings.append(f"split '{split}': class '{name}' is never predicted; its precision and F1 are set to 0")
    return warnings


def group_table(df: pd.DataFrame, by: str = "patient_id") -> pd.DataFrame:
    """Summarise a table per split and patient (or `by="case_id"`): label, scores, mean probabilities.

    `label` is empty where the images of a group carry several. Images without a value of `by` are left out.

    Raises:
      PredictionsError: a table with labels, or without any group.
    """
    df = predictions.normalise(df)
    if predictions.is_multilabel(df):
        raise predictions.PredictionsError(
            "a table with labels (label_<name>) has no single class per group, so it has no group table"
        )
    classes = predictions.class_names(df)
    names = np.array([*classes, ""], dtype=object)  # index -1: no single label
    tables = []
    known = df[df[by] != ""] if by in df else df.iloc[:0]
    for split, rows in known.groupby("split", sort=True):
        ids, group = np.unique(rows[by].to_numpy().astype(str), return_inverse=True)
        scores = group_metrics.group_scores(*arrays(rows, classes), group, len(ids))
        columns = {
            "split": [split] * len(ids),
            by: ids.astype(object),
            "label": names[scores.label],
            "n_images": scores.n_images,
            "share_right": scores.fraction_correct,
            "majority": names[scores.majority],
        }
        columns |= {predictions.PREFIX + c: scores.mean_probability[:, i] for i, c in enumerate(classes)}
        tables.append(pd.DataFrame(columns))
    if not tables:
        raise predictions.PredictionsError(
            f"column '{by}': missing or empty in all {len(df)} rows: fill it, or group by another column"
        )
    return pd.concat(tables, ignore_index=True)
