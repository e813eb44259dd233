"""From the table of predictions to the numbers of results.json."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histojax.core.files import atomic_write
from histojax.evaluation import bootstrap, metrics, multilabel, predictions, summary_blocks
from histojax.evaluation.metrics import Array
from histojax.evaluation.summary_blocks import Key

_SPLIT_ORDER = {"train": 0, "val": 1, "validation": 1, "test": 2}


def summarise(
    df: pd.DataFrame,
    *,
    positive: str | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
    thresholds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The "splits" of results.json: {split: figures with intervals}, JSON-safe (an undefined number is None).

    `positive` names the positive class of two (default: the second); `thresholds` are those of several labels, by
    name (default: 0.5 each). A figure is {"value", "low", "high"}. The order of the rows does not matter. Raises
    PredictionsError.
    """
    df = predictions.normalise(df)
    classes = predictions.class_names(df)
    several = predictions.is_multilabel(df)
    if several and positive is not None:
        raise predictions.PredictionsError(f"positive={positive!r}: a table of several labels has no positive class")
    if thresholds is not None and not several:
        raise predictions.PredictionsError("thresholds belong to several labels; this table has one class an image")
    cuts = multilabel.thresholds_of(classes, thresholds) if several else None
    if positive is not None and (positive not in classes or len(classes) != 2):
        raise predictions.PredictionsError(
            f"columns 'prob_<class>' of {len(df)} rows give {classes}: positive={positive!r} must be one of two classes"
        )
    index = None if len(classes) != 2 else 1 if positive is None else classes.index(positive)
    # A resample of images is drawn by row number: the order must come from the images themselves.
    df = df.sort_values("image_id", ignore_index=True)
    names = sorted(df["split"].unique(), key=lambda s: (_SPLIT_ORDER.get(s, 3), s))
    out = {}
    for name in names:
        rows = df[df["split"] == name].reset_index(drop=True)
        if cuts is not None:
            out[name] = multilabel.summarise_split(rows, classes, cuts, n_resamples, seed)
        else:
            out[name] = _summarise_split(rows, classes, index, n_resamples, seed)
    return out


def _summarise_split(
    rows: pd.DataFrame, classes: list[str], positive: int | None, n_resamples: int, seed: int
) -> dict[str, Any]:
    true, probabilities = arrays(rows, classes)
    split = str(rows["split"].iloc[0])
    unit_name, unit, n_units = summary_blocks.resampled_units(rows)
    magnification = rows["magnification"].to_numpy().astype(str)
    counts = np.bincount(true, minlength=len(classes))
    confusion = metrics.confusion_matrix(true, probabilities.argmax(1), len(classes))
    out: dict[str, Any] = {
        "n_images": len(rows),
        "n_patients": n_units if unit_name == "patient" else None,
        "classes": dict(zip(classes, counts.tolist(), strict=True)),
        "positive": None if positive is None else classes[positive],
        "resampled": unit_name,
    }
    statistic = image_statistic(true, probabilities, unit, n_units, classes, positive, magnification)
    figures = bootstrap.intervals(statistic, n_units, n_resamples=n_resamples, seed=seed, n_rows=len(rows))
    warnings = _class_warnings(split, classes, counts, confusion)
    for i, name in enumerate(classes):
        if summary_blocks.withdraw_intervals(figures, statistic, true == i, unit, n_units):
            warnings.append(
                f"split '{split}': all images of class '{name}' are of one {unit_name}; "
                "metrics that need the class have no interval"
            )
    warnings += summary_blocks.unit_warnings(split, rows, unit_name, n_units)
    for level in ("patient", "case"):
        column = f"{level}_id"
        if column in rows and (rows[column] != "").all():
            out[f"n_{level}s"] = rows[column].nunique()
            found, said = _group_figures(rows, column, classes, n_resamples, seed)
            figures |= found
            warnings += [f"split '{split}': {w}" for w in said]
    warnings += summary_blocks.undefined_warnings(split, figures)
    for key, figure in figures.items():
        summary_blocks.insert(out, key, figure)
    for value, at in out.get("by_magnification", {}).items():
        at["n_images"] = int((magnification == value).sum())
        here = np.bincount(true[magnification == value], minlength=len(classes))
        absent = [f"'{c}'" for c, there, n in zip(classes, counts, here, strict=True) if there and not n]
        if absent:
            warnings.append(f"split '{split}': no image of class {', '.join(absent)} at {value or '?'}; gmean is nan")
    most = int(counts.argmax())
    out["majority_baseline"] = {
        "class": classes[most],
        "accuracy": float(counts[most] / counts.sum()),
        "gmean": 0.0 if counts.min() > 0 else None,
    }
    out["confusion_matrix"] = confusion.astype(int).tolist()
    out["warnings"] = warnings
    return out


def arrays(rows: pd.DataFrame, classes: Sequence[str]) -> tuple[Array, Array]:
    """Class indices (n,) and probabilities (n, k)."""
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
) -> Callable[[Array], dict[Key, Array]]:
    """Function from the weights of the units (r, n_units) to the image-level metrics (r,)."""
    n, k = probabilities.shape
    cells = np.zeros((n, k * k))
    cells[np.arange(n), true * k + probabilities.argmax(1)] = 1
    magnifications = sorted(set(magnification.tolist()), key=lambda m: (len(m), m))
    if len(magnifications) < 2:
        magnifications = []
    # All that is a sum over images is summed once over each unit; a resample is then one matrix product.
    blocks = {
        "confusion": cells,
        "calibration": metrics.calibration_terms(true, probabilities),
        "brier": metrics.brier_terms(true, probabilities, positive)[:, None],
        "log_loss": metrics.log_loss_terms(true, probabilities)[:, None],
    } | {f"at {m}": cells * (magnification == m)[:, None] for m in magnifications}
    columns = range(k) if positive is None else [positive]
    rankings = [metrics.Ranking(probabilities[:, column], true == column, unit) for column in columns]
    ends = np.cumsum([block.shape[1] for block in blocks.values()])
    sums = np.zeros((n_units, int(ends[-1])))
    np.add.at(sums, unit, np.concatenate(list(blocks.values()), axis=1))

    def statistic(weights: Array) -> dict[Key, Array]:
        part = dict(zip(blocks, np.split(weights @ sums, ends[:-1], axis=-1), strict=True))
        confusion = part["confusion"].reshape(-1, k, k)
        total = confusion.sum((-2, -1))
        per_class = {
            "precision": metrics.precision(confusion),
            "recall": metrics.recall(confusion),
            "f1": metrics.f1(confusion),
        }
        areas, averages = [], []
        for ranking_of_class in rankings:
            found = ranking_of_class.counts(weights)
            areas.append(metrics.auroc_from_counts(*found))
            averages.append(metrics.average_precision_from_counts(*found))
        ranking = {"auroc": np.stack(areas, -1), "average_precision": np.stack(averages, -1)}

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
        out["image", "brier"] = metrics.divide(part["brier"][:, 0], total)
        out["image", "ece"] = metrics.ece_from_sums(part["calibration"], total)
        out["image", "log_loss"] = metrics.divide(part["log_loss"][:, 0], total)
        if positive is None:
            per_class |= ranking
        for i, label in enumerate(classes):
            out |= {("per_class", label, name): values[:, i] for name, values in per_class.items()}
        for m in magnifications:
            at = part[f"at {m}"].reshape(-1, k, k)
            out["by_magnification", m, "accuracy"] = metrics.accuracy(at)
            out["by_magnification", m, "gmean"] = metrics.gmean(at)
        return out

    return statistic


def _group_figures(
    rows: pd.DataFrame, column: str, classes: Sequence[str], n_resamples: int, seed: int
) -> tuple[dict[Key, bootstrap.Figure], list[str]]:
    """Figures over patients or cases, resampled over the same, and what is to be warned of."""
    level = column.removesuffix("_id")
    ids, group = np.unique(rows[column].to_numpy().astype(str), return_inverse=True)
    n_groups = len(ids)
    scores = metrics.group_scores(*arrays(rows, classes), group, n_groups)
    mixed = int((scores.label < 0).sum())
    warnings = []
    if mixed:
        warnings.append(
            f"{mixed} of {n_groups} {level}s carry images of several classes and are left out "
            "of majority_accuracy and mean_probability_accuracy"
        )
    if n_groups < 2 and level != "patient":  # of patients, blocks.unit_warnings says it
        warnings.append(f"fewer than two {level}s: no interval over {level}s")

    def statistic(weights: Array) -> dict[Key, Array]:
        return {
            (level, "recognition_rate"): metrics.recognition_rate(scores, weights),
            (level, "majority_accuracy"): metrics.majority_accuracy(scores, weights),
            (level, "mean_probability_accuracy"): metrics.mean_probability_accuracy(scores, weights),
        }

    return bootstrap.intervals(statistic, n_groups, n_resamples=n_resamples, seed=seed), warnings


def _class_warnings(split: str, classes: Sequence[str], counts: Array, confusion: Array) -> list[str]:
    out = []
    for i, name in enumerate(classes):
        if counts[i] == 0:
            out.append(f"split '{split}': class '{name}' has no image; metrics that need it are nan")
        elif confusion[:, i].sum() == 0:
            out.append(f"split '{split}': class '{name}' is never predicted; its precision and F1 are given as 0")
    return out


def group_table(df: pd.DataFrame, by: str = "patient_id") -> pd.DataFrame:
    """A row for each split and patient (or `by="case_id"`): label, scores, mean probabilities.

    `label` is empty where the images of a group carry several. Images without `by` are left out. Raises
    PredictionsError for a table of several labels, or without any group.
    """
    df = predictions.normalise(df)
    if predictions.is_multilabel(df):
        raise predictions.PredictionsError("a table of several labels has no class of a group to compare with")
    classes = predictions.class_names(df)
    names = np.array([*classes, ""], dtype=object)  # index -1: no single label
    tables = []
    known = df[df[by] != ""] if by in df else df.iloc[:0]
    for split, rows in known.groupby("split", sort=True):
        ids, group = np.unique(rows[by].to_numpy().astype(str), return_inverse=True)
        scores = metrics.group_scores(*arrays(rows, classes), group, len(ids))
        columns = {
            "split": [split] * len(ids),
            by: ids.astype(object),
            "label": names[scores.label],
            "n_images": scores.n_images,
            "share_right": scores.share_right,
            "majority": names[scores.majority],
        }
        columns |= {predictions.PREFIX + c: scores.mean_probability[:, i] for i, c in enumerate(classes)}
        tables.append(pd.DataFrame(columns))
    if not tables:
        raise predictions.PredictionsError(
            f"column '{by}': missing or empty in all {len(df)} rows: fill it, or group by another"
        )
    return pd.concat(tables, ignore_index=True)


def write_json(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write strict JSON (nan raises ValueError), whole or not at all: until then an old file stays."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")
