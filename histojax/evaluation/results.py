"""From the table of predictions to the numbers of results.json and the table of the terminal."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histojax.evaluation import bootstrap, metrics, predictions
from histojax.evaluation.metrics import Array
from histojax.files import replacing

Key = tuple[str, ...]
FEW_UNITS = 10  # below it a percentile interval covers markedly less than it says
_SPLIT_ORDER = {"train": 0, "val": 1, "validation": 1, "test": 2}


# --- Numbers ------------------------------------------------------------------------------------------------


def summarise(
    df: pd.DataFrame, *, positive: str | None = None, n_resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """The "splits" of results.json: {split: figures with intervals}, JSON-safe (an undefined number is None).

    `positive` names the positive class of two (default: the second). A figure is {"value", "low", "high"}.
    The order of the rows does not matter. Raises PredictionsError.
    """
    df = predictions.normalise(df)
    classes = predictions.class_names(df)
    if positive is not None and (positive not in classes or len(classes) != 2):
        raise predictions.PredictionsError(
            f"columns 'prob_<class>' of {len(df)} rows give {classes}: positive={positive!r} must be one of two classes"
        )
    index = None if len(classes) != 2 else 1 if positive is None else classes.index(positive)
    # A resample of images is drawn by row number: the order must come from the images themselves.
    df = df.sort_values("image_id", ignore_index=True)
    names = sorted(df["split"].unique(), key=lambda s: (_SPLIT_ORDER.get(s, 3), s))
    return {
        name: _summarise_split(df[df["split"] == name].reset_index(drop=True), classes, index, n_resamples, seed)
        for name in names
    }


def _summarise_split(
    rows: pd.DataFrame, classes: list[str], positive: int | None, n_resamples: int, seed: int
) -> dict[str, Any]:
    true, probabilities = _arrays(rows, classes)
    split = str(rows["split"].iloc[0])
    unit_name, unit, n_units = bootstrap.units(rows["patient_id"].to_numpy())
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
    statistic = _image_statistic(true, probabilities, unit, n_units, classes, positive, magnification)
    figures = bootstrap.intervals(statistic, n_units, n_resamples=n_resamples, seed=seed, n_rows=len(rows))
    warnings = _class_warnings(split, classes, counts, confusion)
    for i, name in enumerate(classes):
        owners = np.unique(unit[true == i])
        if len(owners) == 1 and n_units > 1:
            _withdraw_intervals(figures, statistic, int(owners[0]), n_units)
            warnings.append(
                f"split '{split}': all images of class '{name}' are of one {unit_name}; "
                "metrics that need the class have no interval"
            )
    warnings += _unit_warnings(split, rows, unit_name, n_units)
    for level in ("patient", "case"):
        column = f"{level}_id"
        if column in rows and (rows[column] != "").all():
            out[f"n_{level}s"] = rows[column].nunique()
            found, said = _group_figures(rows, column, classes, n_resamples, seed)
            figures |= found
            warnings += [f"split '{split}': {w}" for w in said]
    undefined = max((figure.get("undefined") or 0.0) for figure in figures.values())
    if undefined >= 0.01:
        warnings.append(
            f"split '{split}': a class is missing from up to {undefined:.1%} of the resamples; "
            "intervals of the metrics that need it leave those out"
        )
    for key, figure in figures.items():
        _insert(out, key, figure)
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


def _withdraw_intervals(
    figures: dict[Key, bootstrap.Figure], statistic: Callable[[Array], dict[Key, Array]], owner: int, n_units: int
) -> None:
    """Removes the intervals of metrics that need a class of which one unit owns all images.

    Every resample in which such a metric is defined holds that same unit, so its spread is not seen: the
    interval would be far too narrow, in the extreme a point.
    """
    without = np.ones((1, n_units))
    without[0, owner] = 0
    for key, value in statistic(without).items():
        if np.isnan(value[0]):
            figures[key] = {"value": figures[key]["value"], "low": None, "high": None}


def _arrays(rows: pd.DataFrame, classes: Sequence[str]) -> tuple[Array, Array]:
    """Class indices (n,) and probabilities (n, k)."""
    true = rows["label"].map({name: i for i, name in enumerate(classes)}).to_numpy(dtype=np.int64)
    return true, rows[[predictions.PREFIX + c for c in classes]].to_numpy(dtype=np.float64)


def _image_statistic(
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
        image_weights = weights[:, unit]
        columns = range(k) if positive is None else [positive]
        areas, averages = [], []
        for column in columns:
            found = metrics.threshold_counts(probabilities[:, column], true == column, image_weights)
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
    _, group, n_groups = bootstrap.units(rows[column].to_numpy())
    scores = metrics.group_scores(*_arrays(rows, classes), group, n_groups)
    mixed = int((scores.label < 0).sum())
    warnings = []
    if mixed:
        warnings.append(
            f"{mixed} of {n_groups} {level}s carry images of several classes and are left out "
            "of majority_accuracy and mean_probability_accuracy"
        )
    if n_groups < 2 and level != "patient":  # of patients, _unit_warnings says it
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


def _unit_warnings(split: str, rows: pd.DataFrame, unit_name: str, n_units: int) -> list[str]:
    out = []
    empty = int((rows["patient_id"] == "").sum())
    if 0 < empty < len(rows):
        out.append(
            f"split '{split}': {empty} of {len(rows)} images have no patient_id; no patient-level "
            "figures, and the intervals are over images"
        )
    elif empty:
        out.append(
            f"split '{split}': patients unknown; the intervals are over images and too narrow where "
            "one patient has several"
        )
    if n_units < 2:
        out.append(f"split '{split}': fewer than two {unit_name}s; no intervals")
    elif n_units < FEW_UNITS:
        out.append(f"split '{split}': {n_units} {unit_name}s only; the intervals are rough and likely too narrow")
    return out


def _insert(tree: dict[str, Any], key: Key, leaf: object) -> None:
    for part in key[:-1]:
        tree = tree.setdefault(part, {})
    tree[key[-1]] = leaf


def group_table(df: pd.DataFrame, by: str = "patient_id") -> pd.DataFrame:
    """A row for each split and patient (or `by="case_id"`): label, scores, mean probabilities.

    `label` is empty where the images of a group carry several. Images without `by` are left out.
    """
    df = predictions.normalise(df)
    classes = predictions.class_names(df)
    names = np.array([*classes, ""], dtype=object)  # index -1: no single label
    tables = []
    known = df[df[by] != ""] if by in df else df.iloc[:0]
    for split, rows in known.groupby("split", sort=True):
        ids, group = np.unique(rows[by].to_numpy().astype(str), return_inverse=True)
        scores = metrics.group_scores(*_arrays(rows, classes), group, len(ids))
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


# --- For the terminal ---------------------------------------------------------------------------------------


def table(results: Mapping[str, Any]) -> str:
    """Plain text of results.json: a block for each split, with intervals, and the warnings at the foot."""
    lines = []
    for name in ("protocol", "split_hash", "model", "pretrained", "checkpoint_step", "data"):
        if results.get(name) is not None:
            value = results[name]
            if isinstance(value, Mapping):
                value = value.get("description", json.dumps(value))
            lines.append(f"{name:<16}{value if isinstance(value, str) else json.dumps(value)}")
    for split, block in results["splits"].items():
        lines += ["", *_split_lines(split, block)]
    warnings = [w for block in results["splits"].values() for w in block["warnings"]]
    if warnings:
        lines += ["", *(f"warning: {w}" for w in warnings)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _split_lines(split: str, block: Mapping[str, Any]) -> list[str]:
    counted = [f"{block['n_images']} images"]
    counted += [f"{block[k]} {k[2:]}" for k in ("n_patients", "n_cases") if block.get(k) is not None]
    classes = ", ".join(f"{name} {count}" for name, count in block["classes"].items())
    baseline, positive = block["majority_baseline"], block["positive"]
    rows: list[tuple[str, str, str]] = [("metric", "value", f"95 % interval over {block['resampled']}s")]

    def add(name: str, figure: Mapping[str, float | None], over: str | None = None) -> None:
        low, high = figure.get("low"), figure.get("high")
        interval = "" if low is None or high is None else f"[{low:.4f}, {high:.4f}]"
        rows.append((name, _number(figure["value"]), interval + (f" over {over}" if over and interval else "")))

    image = block["image"]
    add("accuracy", image["accuracy"])
    add(f"  always '{baseline['class']}'", {"value": baseline["accuracy"]})
    # The patient's number stands beside the image's, always: the two tell different stories.
    for level in ("patient", "case"):
        if level in block:
            for name, figure in block[level].items():
                add(f"{level} {_words(name)}", figure, f"{level}s")
    add("gmean", image["gmean"])
    add(f"  always '{baseline['class']}'", {"value": baseline["gmean"]})
    for name, figure in image.items():
        if name not in ("accuracy", "gmean"):
            of_positive = positive is not None and name in ("precision", "recall", "f1")
            add(f"{_words(name)} ({positive})" if of_positive else _words(name), figure)
    for label, figures in block["per_class"].items():
        for name, figure in figures.items():
            add(f"{label}: {_words(name)}", figure)
    for value, figures in block.get("by_magnification", {}).items():
        for name in ("accuracy", "gmean"):
            add(f"at {value or '?'} ({figures['n_images']} images): {name}", figures[name])
    width = max(len(row[0]) for row in rows)
    body = [f"  {name:<{width}}  {value:>7}  {interval}".rstrip() for name, value, interval in rows]
    return [f"{split}: {', '.join(counted)} ({classes})", *body]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.4f}"


def write_json(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write strict JSON (nan raises ValueError), whole or not at all: until then an old file stays."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")
