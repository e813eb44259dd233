"""Decision thresholds of one or several models: those chosen on validation images, or those of the command line."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from histojax.core.errors import RunError
from histojax.evaluation import calibration
from histojax.evaluation import thresholds as threshold_rules


class ThresholdedModel(Protocol):
    """The attributes of a `Predictor` that thresholds depend on."""

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def thresholds(self) -> Mapping[str, float] | None: ...  # noqa: D102
    @property
    def decision(self) -> Mapping[str, float] | None: ...  # noqa: D102
    @property
    def temperatures(self) -> Sequence[float] | None: ...  # noqa: D102


def combine_thresholds(
    models: Sequence[ThresholdedModel], given: str = "", *, calibrated: bool = False
) -> dict[str, float] | None:
    """Return the least probability at which each label, or the positive of two classes, is assigned.

    By default it is the mean of the thresholds that the runs chose on validation images.

    Args:
      models: models with the same classes.
      given: thresholds that replace the runs' own: `0.5` for all labels, `tumor=0.4,stroma=0.6` for some; with two
        classes, that of one class.
      calibrated: whether the probabilities are calibrated by temperatures. The runs' own thresholds are then
        transformed in the same way.

    Returns:
      Threshold of each label, or of the positive class only; None: the most probable class is assigned.

    Raises:
      RunError: the runs have different classes, or lack temperatures that are needed; a threshold that is not a number
        in [0, 1], names an unknown label, or is given for more than two classes.
    """
    _check_same_classes(models)
    if calibrated and (bare := [number for number, model in enumerate(models, 1) if model.temperatures is None]):
        numbers = ", ".join(map(str, bare))
        raise RunError(
            f"--calibrated: run {numbers} has no temperature: it had no validation images, or an older version "
            "trained it"
        )
    classes = models[0].classes
    if models[0].thresholds is None:
        return _decision_threshold(models, given, calibrated)
    rows = []
    for model in models:
        own = np.array([[(model.thresholds or {})[name] for name in classes]])
        rows.append(calibrate(own, model) if calibrated else own)
    combined = dict(zip(classes, np.mean(rows, axis=(0, 1)).tolist(), strict=True))
    overrides = threshold_rules.parse(given, classes)
    if "" in overrides:
        combined = dict.fromkeys(combined, overrides.pop(""))
    return combined | overrides


def calibrate(probabilities: np.ndarray, model: ThresholdedModel) -> np.ndarray:
    """Calibrate probabilities (n, k) by the model's temperatures."""
    return calibration.at_temperatures(probabilities, model.temperatures or ())


def _check_same_classes(models: Sequence[ThresholdedModel]) -> None:
    def describe(model: ThresholdedModel) -> str:
        return f"{'classes' if model.thresholds is None else 'labels'} {', '.join(model.classes)}"

    for number, model in enumerate(models[1:], start=2):
        if describe(model) != describe(models[0]):
            raise RunError(
                f"the runs predict different things: {describe(models[0])} in run 1, {describe(model)} in run "
                f"{number}; only probabilities of the same classes can be averaged"
            )


def _decision_threshold(models: Sequence[ThresholdedModel], given: str, calibrated: bool) -> dict[str, float] | None:
    """Return the threshold of the positive one of two classes; None if there is none."""
    decisions = [model.decision for model in models]
    positives = {name for decision in decisions if decision for name in decision}
    classes = models[0].classes
    if given:
        if len(classes) != 2:
            raise RunError(
                f"--threshold={given}: the model assigns one of {len(classes)} classes per image "
                f"({', '.join(classes)}), the most probable; a threshold needs labels, or two classes"
            )
        entries = threshold_rules.parse(given, classes)
        (name, threshold) = next(iter(entries.items()))
        positive = name or (next(iter(positives)) if len(positives) == 1 else "")
        if len(entries) != 1 or not positive:
            raise RunError(f"--threshold={given}: give the threshold of one class, as {classes[-1]}=0.4")
        return {positive: threshold}
    if len(positives) != 1 or None in decisions:
        return None
    (positive,) = positives
    own = np.array([[decision[positive], 1 - decision[positive]] for decision in decisions if decision])
    if calibrated:
        own = np.concatenate([calibrate(row[None], model) for row, model in zip(own, models, strict=True)])
    return {positive: float(own[:, 0].mean())}
