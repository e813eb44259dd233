"""The decision rule of a run: thresholds and temperatures, chosen on validation images and then locked."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from histojax.core.positive import positive_by_name
from histojax.data.sources import Dataset
from histojax.evaluation import bootstrap, calibration, thresholds
from histojax.training.evaluate import EvalOutput


def default_decision_rule(dataset: Dataset) -> dict[str, Any]:
    """Return the decision rule of a checkpoint without validation images; see `fit_decision_rule`."""
    halves = [0.5] * len(dataset.classes) if dataset.multilabel else None
    return {
        "thresholds": halves, "confusion": None, "confusion_by_unit": None, "decision": None, "temperatures": None,
    }  # fmt: skip


def fit_decision_rule(
    output: EvalOutput, dataset: Dataset, indices: np.ndarray, rule: str, temperature: str = "images"
) -> dict[str, Any]:
    """Choose thresholds and temperatures on validation images; the checkpoint then locks them.

    Args:
      output: the model's output for the images.
      dataset: the images.
      indices: rows of the validation images in `dataset`.
      rule: how thresholds are chosen, as `train.thresholds`.
      temperature: what counts the same when temperatures are fitted, as `train.temperature`.

    Returns:
      `thresholds`: one per label, with several labels.
      `confusion`: true negatives, false positives, false negatives and true positives of each label at its threshold.
      They bound the error of a count of predicted labels.
      `confusion_by_unit`: the same counts, a row per patient, else per slide or source image; None if no images share
      one.
      `decision`: threshold of the positive class, with two classes.
      `temperatures`: the calibration, one per label, or one in all.
    """
    labels, probabilities = dataset.labels[indices], output.probabilities
    rows = dataset.records.take(indices)
    unit_name, unit, n_units = bootstrap.units(*(rows.column(name) for name in ("patient_id", "slide_id", "source_id")))
    weights = bootstrap.equal_weights(unit) if temperature == "patients" else None
    if not dataset.multilabel:
        temperatures = [calibration.fit_temperature(labels, probabilities, weights)]
        decision = _decision(labels, probabilities, dataset.classes, rule) if len(dataset.classes) == 2 else None
        return default_decision_rule(dataset) | {"decision": decision, "temperatures": temperatures}
    chosen = thresholds.choose_thresholds(labels, probabilities, rule)
    true, predicted = labels > 0.5, thresholds.is_positive(probabilities, chosen)
    cells = (~true & ~predicted, ~true & predicted, true & ~predicted, true & predicted)
    by_unit = {
        name: bootstrap.unit_sums(np.stack([cell[:, i] for cell in cells], 1), unit, n_units).astype(int).tolist()
        for i, name in enumerate(dataset.classes)
    }
    return {
        "thresholds": chosen.tolist(),
        "confusion": {name: [int(cell[:, i].sum()) for cell in cells] for i, name in enumerate(dataset.classes)},
        "confusion_by_unit": by_unit if unit_name != "image" else None,
        "decision": None,
        "temperatures": [
            calibration.fit_temperature(label, np.stack([1 - p, p], axis=1), weights)
            for label, p in zip(true.astype(int).T, probabilities.T, strict=True)
        ],
    }


def _decision(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], rule: str) -> dict[str, Any]:
    """Choose the threshold of the positive of two classes."""
    named = positive_by_name(classes)
    positive = classes.index(named) if named else 1
    is_positive, scores = (labels == positive)[:, None], probabilities[:, [positive]]
    (threshold,) = thresholds.choose_thresholds(is_positive, scores, rule).tolist()
    return {"class": classes[positive], "threshold": threshold, "rule": rule}
