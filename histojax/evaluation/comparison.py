"""Compare two tables of predictions of the same images: differences, and whether they could be due to chance."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histojax.core.errors import RunError
from histojax.evaluation import (
    bootstrap,
    group_metrics,
    multilabel,
    paired,
    predictions,
    results,
    summary_blocks,
)
from histojax.evaluation import thresholds as decision_thresholds
from histojax.evaluation.metrics import Array

_EXAMPLES = 5
_CLASS_METRICS = (
    "accuracy", "balanced_accuracy", "precision", "recall", "f1", "gmean", "auroc", "average_precision", "brier",
    "ece", "log_loss",
)  # fmt: skip
_MULTILABEL_METRICS = ("accuracy", "subset_accuracy", "f1_macro", "f1_micro", "auroc_macro", "mean_average_precision")
_LABEL_METRICS = ("accuracy", "f1", "auroc", "average_precision", "brier")


@dataclasses.dataclass(frozen=True)
class _PairedScores:
    """What two models predict for the same n images.

    Attributes:
      statistic: unit weights (r, n_units) -> differences of metrics, second − first.
      correct: question -> whether the first and the second model are correct, (n,) each.
      scores: class or label -> whether images are positive, scores of the first and of the second model, (n,) each.
    """

    statistic: summary_blocks.Statistic
    correct: dict[str, tuple[Array, Array]]
    scores: dict[str, tuple[Array, Array, Array]]


def compare(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    positive: str | None = None,
    thresholds: Sequence[Mapping[str, float] | None] = (None, None),
    n_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two models over the images that both tables hold. Every difference is second − first.

    Args:
      first: valid table of one split.
      second: valid table of one split.
      positive: the positive class of two; None: the second.
      thresholds: label -> threshold for each of the tables; None: 0.5 each.
      n_resamples: of the bootstrap over patients (else slides, source images, images).
      seed: of the bootstrap.

    Returns:
      `n_images`, `only_first`, `only_second` (counts and some names), `resampled`, `warnings`, `differences` (name ->
      estimate), `mcnemar` (question -> counts and p values) and `auroc` (class or label -> DeLong's test as `images`
      and, where patients are known, its version for clustered images as `clusters`).

    Raises:
      RunError: the tables differ in classes or kind, share no image, or disagree on a true label.
    """
    classes = predictions.class_names(first)
    is_multilabel = predictions.is_multilabel(first)
    _check_classes(first, second)
    rows, other, only = _align(first, second)
    _check_labels(rows, other, classes, is_multilabel)
    warnings = []
    if (rows["patient_id"] != other["patient_id"]).any():
        warnings.append("the tables name different patients for some images; those of the first table are used")
    unit_name, unit, n_units = summary_blocks.resampled_units(rows)
    if is_multilabel:
        pair = _pair_of_labels(rows, other, classes, thresholds, unit, n_units)
    else:
        pair = _pair_of_classes(rows, other, classes, positive, unit, n_units)
    estimates = bootstrap.intervals(pair.statistic, n_units, n_resamples=n_resamples, seed=seed, n_rows=len(rows))
    for members in [side for labels, _, _ in pair.scores.values() for side in (labels, ~labels)]:
        summary_blocks.withdraw_intervals(estimates, pair.statistic, members, unit, n_units)
    if n_units < summary_blocks.FEW_UNITS:
        warnings.append(f"only {n_units} {unit_name}s: the intervals are rough and likely too narrow")
    return {
        "n_images": len(rows),
        "only_first": {"n_images": len(only[0]), "examples": only[0][:_EXAMPLES]},
        "only_second": {"n_images": len(only[1]), "examples": only[1][:_EXAMPLES]},
        "resampled": unit_name,
        "warnings": warnings,
        "differences": {": ".join(key): estimate for key, estimate in estimates.items()},
        "mcnemar": {
            name: paired.mcnemar(int((a & ~b).sum()), int((b & ~a).sum()))._asdict()
            for name, (a, b) in pair.correct.items()
        },
        "auroc": _delong_tests(pair, unit, unit_name),
    }


def _check_classes(first: pd.DataFrame, second: pd.DataFrame) -> None:
    classes, others = predictions.class_names(first), predictions.class_names(second)
    if set(others) != set(classes) or predictions.is_multilabel(second) != predictions.is_multilabel(first):
        raise RunError(
            f"the first table has the classes {', '.join(classes)}, the second {', '.join(others)}: only tables with "
            "the same classes, or the same labels, can be compared"
        )


def _align(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, list[list[str]]]:
    """Take the common images of two tables in the same order; list the images that only one table holds."""
    common = np.intersect1d(first["image_id"].to_numpy(str), second["image_id"].to_numpy(str))
    only = [sorted(set(table["image_id"]) - set(common.tolist())) for table in (first, second)]
    if not len(common):
        raise RunError(
            f"no image_id is in both tables (first: {only[0][0]} …, second: {only[1][0]} …): only predictions of the "
            "same images can be compared"
        )
    rows, other = (table.set_index("image_id").loc[common].reset_index() for table in (first, second))
    return rows, other, only


def _check_labels(rows: pd.DataFrame, other: pd.DataFrame, classes: Sequence[str], is_multilabel: bool) -> None:
    columns = [predictions.LABEL_PREFIX + name for name in classes] if is_multilabel else ["label"]
    differing = (rows[columns].to_numpy() != other[columns].to_numpy()).any(1)
    if differing.any():
        names = ", ".join(rows["image_id"][differing][:_EXAMPLES])
        raise RunError(
            f"{int(differing.sum())} of {len(rows)} common images have different true labels in the two tables "
            f"({names}{' …' if differing.sum() > _EXAMPLES else ''}): correct the labels of one table"
        )


def _pair_of_classes(
    rows: pd.DataFrame, other: pd.DataFrame, classes: Sequence[str], positive: str | None, unit: Array, n_units: int
) -> _PairedScores:
    index = None if len(classes) != 2 else 1 if positive is None else list(classes).index(positive)
    true, p = results.arrays(rows, classes)
    _, q = results.arrays(other, classes)
    no_magnification = np.zeros(len(rows), dtype=str)
    sides = [results.image_statistic(true, x, unit, n_units, classes, index, no_magnification) for x in (p, q)]
    patients_known = bool((rows["patient_id"] != "").all())
    groups = [group_metrics.group_scores(true, x, unit, n_units) for x in (p, q)] if patients_known else []

    def statistic(weights: Array) -> dict[summary_blocks.Key, Array]:
        a, b = (side(weights) for side in sides)
        out: dict[summary_blocks.Key, Array] = {(name,): b["image", name] - a["image", name] for name in _CLASS_METRICS}
        if groups:
            rates = [group_metrics.recognition_rate(scores, weights) for scores in groups]
            out["patient recognition_rate",] = rates[1] - rates[0]
        return out

    columns = range(len(classes)) if index is None else [index]
    return _PairedScores(
        statistic,
        {"right or wrong": (p.argmax(1) == true, q.argmax(1) == true)},
        {classes[i]: (true == i, p[:, i], q[:, i]) for i in columns},
    )


def _pair_of_labels(
    rows: pd.DataFrame, other: pd.DataFrame, names: Sequence[str], given: Sequence[Mapping[str, float] | None],
    unit: Array, n_units: int,
) -> _PairedScores:  # fmt: skip
    labels, p = multilabel.arrays(rows, names)
    _, q = multilabel.arrays(other, names)
    cuts = [decision_thresholds.to_array(names, one) for one in given]
    sides = [
        multilabel.label_statistic(labels, x, cut, unit, n_units, names) for x, cut in zip((p, q), cuts, strict=True)
    ]

    def statistic(weights: Array) -> dict[summary_blocks.Key, Array]:
        a, b = (side(weights) for side in sides)
        out: dict[summary_blocks.Key, Array] = {
            (name,): b["image", name] - a["image", name] for name in _MULTILABEL_METRICS
        }
        for label in names:
            out |= {(label, name): b["labels", label, name] - a["labels", label, name] for name in _LABEL_METRICS}
        return out

    a, b = (decision_thresholds.is_positive(x, cut) == labels for x, cut in zip((p, q), cuts, strict=True))
    correct = {name: (a[:, i], b[:, i]) for i, name in enumerate(names)}
    correct["all labels of the image"] = (a.all(1), b.all(1))
    return _PairedScores(statistic, correct, {name: (labels[:, i], p[:, i], q[:, i]) for i, name in enumerate(names)})


def _delong_tests(pair: _PairedScores, unit: Array, unit_name: str) -> dict[str, Any]:
    """Test the difference of the areas under the ROC curve, where images of both kinds exist."""
    images = np.arange(len(unit))
    clustered = unit_name != "image"
    return {
        name: {
            "images": _delong_test(labels, a, b, images, "image"),
            "clusters": _delong_test(labels, a, b, unit, unit_name) if clustered else None,
        }
        for name, (labels, a, b) in pair.scores.items()
        if labels.any() and not labels.all()
    }


def _delong_test(labels: Array, first: Array, second: Array, unit: Array, unit_name: str) -> dict[str, Any]:
    """Run `paired.delong`; `why_no_p` says in a clause why there is no p value, and is empty where there is one."""
    found = paired.delong(labels, first, second, unit)._asdict()
    reasons = []
    for kind, members in (("positive", labels), ("negative", ~labels)):
        if len(np.unique(unit[members])) < 2:
            reasons.append(f"only one {unit_name} {'is' if unit_name == 'image' else 'has images that are'} {kind}")
    return found | {"why_no_p": "" if found["p"] is not None else " and ".join(reasons)}
