"""Two tables of predictions of the same images, image by image: what differs, and by how much it could be chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histojax.core.errors import RunError
from histojax.evaluation import bootstrap, metrics, multilabel, paired, predictions, results, summary_blocks
from histojax.evaluation.metrics import Array

_EXAMPLES = 5
_OF_CLASSES = (
    "accuracy", "balanced_accuracy", "precision", "recall", "f1", "gmean", "auroc", "average_precision", "brier",
    "ece", "log_loss",
)  # fmt: skip
_OF_LABELS = ("accuracy", "subset_accuracy", "f1_macro", "f1_micro", "auroc_macro", "mean_average_precision")


def compare(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    positive: str | None = None,
    thresholds: Sequence[Mapping[str, float] | None] = (None, None),
    n_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """What two models differ in, over the images that both tables hold; every difference is second − first.

    Args:
      first, second: valid tables, one split each.
      positive: of two classes; None: the second.
      thresholds: of the labels, of either table; None: 0.5 each.
      n_resamples, seed: of the bootstrap over patients (else slides, source images, images).

    Returns:
      `n_images`, `only_first`, `only_second` (counts and some names), `resampled`, `warnings`, `differences` (name ->
      figure), `mcnemar` (question -> counts and p values) and `auroc` (class or label -> `images` and, where patients
      are known, `patients`: DeLong's test, and that for clusters).

    Raises:
      RunError: other classes, other kinds of table, no common image, or another truth of one.
    """
    classes = predictions.class_names(first)
    several = predictions.is_multilabel(first)
    others = predictions.class_names(second)
    if set(others) != set(classes) or predictions.is_multilabel(second) != several:
        raise RunError(
            f"classes {', '.join(classes)} here, {', '.join(others)} there: two tables are compared over the same ones"
        )
    common = np.intersect1d(first["image_id"].to_numpy(str), second["image_id"].to_numpy(str))
    alone = [sorted(set(table["image_id"]) - set(common.tolist())) for table in (first, second)]
    if not len(common):
        raise RunError(
            f"no image_id is in both ({alone[0][0]} … here, {alone[1][0]} … there): only predictions of the same "
            "images can be compared"
        )
    rows, other = (table.set_index("image_id").loc[common].reset_index() for table in (first, second))
    _check_truth(rows, other, classes, several)
    warnings = []
    if (rows["patient_id"] != other["patient_id"]).any():
        warnings.append("the tables name other patients for some images; those of the first are used")
    unit_name, unit, n_units = summary_blocks.resampled_units(rows)
    if several:
        found = _labels(rows, other, classes, thresholds, unit, n_units)
    else:
        found = _classes(rows, other, classes, positive, unit, n_units)
    statistic, right, questions = found
    figures = bootstrap.intervals(statistic, n_units, n_resamples=n_resamples, seed=seed, n_rows=len(rows))
    for members in [side for there, _, _ in questions.values() for side in (there, ~there)]:
        summary_blocks.withdraw_intervals(figures, statistic, members, unit, n_units)
    if n_units < summary_blocks.FEW_UNITS:
        warnings.append(f"{n_units} {unit_name}s only: the intervals are rough and likely too narrow")
    clusters = unit if unit_name != "image" else None
    return {
        "n_images": len(common),
        "only_first": {"n_images": len(alone[0]), "examples": alone[0][:_EXAMPLES]},
        "only_second": {"n_images": len(alone[1]), "examples": alone[1][:_EXAMPLES]},
        "resampled": unit_name,
        "warnings": warnings,
        "differences": {": ".join(key): figure for key, figure in figures.items()},
        "mcnemar": {
            name: paired.mcnemar(int((a & ~b).sum()), int((b & ~a).sum()))._asdict() for name, (a, b) in right.items()
        },
        "auroc": {
            name: {
                "images": paired.delong(there, a, b)._asdict(),
                "clusters": None if clusters is None else paired.delong(there, a, b, clusters)._asdict(),
            }
            for name, (there, a, b) in questions.items()
            if there.any() and not there.all()
        },
    }


_Found = tuple[summary_blocks.Statistic, dict[str, tuple[Array, Array]], dict[str, tuple[Array, Array, Array]]]


def _classes(
    rows: pd.DataFrame, other: pd.DataFrame, classes: Sequence[str], positive: str | None, unit: Array, n_units: int
) -> _Found:
    index = None if len(classes) != 2 else 1 if positive is None else list(classes).index(positive)
    true, p = results.arrays(rows, classes)
    _, q = results.arrays(other, classes)
    nowhere = np.zeros(len(rows), dtype=str)
    sides = [results.image_statistic(true, x, unit, n_units, classes, index, nowhere) for x in (p, q)]
    known = bool((rows["patient_id"] != "").all())
    groups = [metrics.group_scores(true, x, unit, n_units) for x in (p, q)] if known else []

    def statistic(weights: Array) -> dict[summary_blocks.Key, Array]:
        a, b = (side(weights) for side in sides)
        out: dict[summary_blocks.Key, Array] = {(name,): b["image", name] - a["image", name] for name in _OF_CLASSES}
        if groups:
            rates = [metrics.recognition_rate(scores, weights) for scores in groups]
            out["patient recognition_rate",] = rates[1] - rates[0]
        return out

    right = {"right or wrong": tuple(x.argmax(1) == true for x in (p, q))}
    columns = range(len(classes)) if index is None else [index]
    return statistic, right, {classes[i]: (true == i, p[:, i], q[:, i]) for i in columns}


def _labels(
    rows: pd.DataFrame, other: pd.DataFrame, names: Sequence[str], thresholds: Sequence[Mapping[str, float] | None],
    unit: Array, n_units: int,
) -> _Found:  # fmt: skip
    there = rows[[predictions.LABEL_PREFIX + name for name in names]].to_numpy(dtype=bool)
    p, q = (table[[predictions.PREFIX + name for name in names]].to_numpy(dtype=np.float64) for table in (rows, other))
    cuts = [multilabel.thresholds_of(names, of_one) for of_one in thresholds]
    sides = [
        multilabel.label_statistic(there, x, cut, unit, n_units, names) for x, cut in zip((p, q), cuts, strict=True)
    ]

    def statistic(weights: Array) -> dict[summary_blocks.Key, Array]:
        a, b = (side(weights) for side in sides)
        out: dict[summary_blocks.Key, Array] = {(name,): b["image", name] - a["image", name] for name in _OF_LABELS}
        for label in names:
            for name in ("accuracy", "f1", "auroc", "average_precision", "brier"):
                out[label, name] = b["labels", label, name] - a["labels", label, name]
        return out

    right = [(x >= cut) == there for x, cut in zip((p, q), cuts, strict=True)]
    told = {name: (right[0][:, i], right[1][:, i]) for i, name in enumerate(names)}
    told["all labels of the image"] = (right[0].all(1), right[1].all(1))
    return statistic, told, {name: (there[:, i], p[:, i], q[:, i]) for i, name in enumerate(names)}


def _check_truth(rows: pd.DataFrame, other: pd.DataFrame, classes: Sequence[str], several: bool) -> None:
    columns = [predictions.LABEL_PREFIX + name for name in classes] if several else ["label"]
    differing = (rows[columns].to_numpy() != other[columns].to_numpy()).any(1)
    if differing.any():
        names = ", ".join(rows["image_id"][differing][:_EXAMPLES])
        raise RunError(
            f"{int(differing.sum())} of {len(rows)} common images have another true label in the other table "
            f"({names}{' …' if differing.sum() > _EXAMPLES else ''}): mend the labels of one of them"
        )
