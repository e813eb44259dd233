"""Calibration before and after temperature scaling that is fitted on validation images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from histojax.evaluation import bootstrap, calibration, results, summary_blocks
from histojax.evaluation.metrics import Array
from histojax.evaluation.report.section_levels import Scored
from histojax.evaluation.report.sources import Source

_ROUNDING = 5e-4  # a smaller rise of an ECE is not seen in three decimals


def calibration_states(
    source: Source, rows: pd.DataFrame, scored: Scored, options: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Evaluate the calibration of the predicted class, the positive class, or each label.

    Args:
      source: of the rows.
      rows: the reported rows of the table.
      scored: label -> labels and probabilities of the rows.
      options: `n_resamples` and `seed` of the bootstrap.

    Returns:
      Entries with `of`, `temperature`, `temperature_weights` (what counted the same in its fit: images or patients),
      `before` and `after` (scores and bins; `after` is None without validation rows) and `raises_ece`, whether the
      temperature makes the ECE worse; and notes for the reader.
    """
    notes = []
    validation: pd.DataFrame | None = source.validation
    if validation is None or not len(validation) or validation["split"].iloc[0] == rows["split"].iloc[0]:
        validation = None
        notes.append("There are no validation rows besides the reported ones, so no temperature was fitted.")
    if source.multilabel:
        entries = _label_entries(source, rows, scored, validation, options)
    else:
        entries = _class_entries(source, rows, validation, options)
    for entry in entries:
        entry["temperature_weights"] = None if entry["temperature"] is None else _counted(source)
    # One temperature scales all exclusive classes, so one note about it is enough.
    for entry in entries if source.multilabel else entries[:1]:
        if entry["temperature"] in (calibration.LOWEST, calibration.HIGHEST):
            notes.append(
                f"The temperature of {entry['of'] or 'the predicted class'} reached the limit of the search, "
                f"{entry['temperature']:g}: {len(source.validation)} validation images do not determine it."
            )
        if entry["raises_ece"]:
            notes.append(_raised_ece(entry, len(source.validation)))
    return entries, notes


def _weights(source: Source) -> Array | None:
    """Return the weights of the validation rows in the fit of temperatures; None: all count the same."""
    if _counted(source) != "patients":
        return None
    return bootstrap.equal_weights(summary_blocks.resampled_units(source.validation)[1])


def _counted(source: Source) -> str:
    """Return what counts the same when temperatures are fitted, as the run's `train.temperature`."""
    return str(source.config.get("train", {}).get("temperature", "images"))


def _raised_ece(entry: dict[str, Any], n_validation: int) -> str:
    before, after = (entry[state]["scores"]["ece"]["value"] for state in ("before", "after"))
    return (
        f"The temperature of {entry['of'] or 'the predicted class'}, {entry['temperature']:.3g}, makes the ECE of "
        f"these images worse: {before:.3f} as predicted, {after:.3f} with it. It was fitted on {n_validation} "
        "validation images that are unlike these, or too few; do not use it."
    )


def _label_entries(
    source: Source, rows: pd.DataFrame, scored: Scored, validation: pd.DataFrame | None, options: dict[str, Any]
) -> list[dict[str, Any]]:
    entries = []
    fitted_on = {} if validation is None else source.labels_and_scores(validation)
    for name, (labels, scores) in scored.items():
        temperature, states = None, [scores]
        if name in fitted_on:
            val_labels, val_scores = fitted_on[name]
            both = np.stack([1 - val_scores, val_scores], axis=1)
            temperature = calibration.fit_temperature(val_labels.astype(int), both, _weights(source))
            states.append(calibration.sigmoid_at(scores, temperature))
        entries.append(_entry(name, temperature, [_label_state(rows, labels, state, options) for state in states]))
    return entries


def _class_entries(
    source: Source, rows: pd.DataFrame, validation: pd.DataFrame | None, options: dict[str, Any]
) -> list[dict[str, Any]]:
    true, probabilities = results.arrays(rows, source.classes)
    temperature, states = None, [probabilities]
    if validation is not None:
        temperature = calibration.fit_temperature(*results.arrays(validation, source.classes), _weights(source))
        states.append(calibration.softmax_at(probabilities, temperature))
    index = None if source.positive is None else source.classes.index(source.positive)
    evaluated = []
    for state in states:
        correct = state.argmax(1) == true
        scores = calibration.scores_of_classes(rows, true, state, index, **options)
        bins = _bins(rows, correct, state.max(1), options)
        classes = [_class_bins(rows, name, true == i, state[:, i]) for i, name in enumerate(source.classes)]
        evaluated.append({"scores": scores} | bins | {"classwise": classes})
    entries = [_entry(None, temperature, evaluated)]
    if index is not None:
        positive = [_label_state(rows, true == index, state[:, index], options) for state in states]
        entries.append(_entry(source.positive, temperature, positive))
    return entries


def _label_state(rows: pd.DataFrame, labels: Array, scores: Array, options: dict[str, Any]) -> dict[str, Any]:
    return {"scores": calibration.scores_of_label(rows, labels, scores, **options)} | _bins(
        rows, labels, scores, options
    )


def _bins(rows: pd.DataFrame, outcomes: Array, scores: Array, options: dict[str, Any]) -> dict[str, Any]:
    """Return `bins` of equal width and `adaptive_bins` of equal mass."""
    edges = calibration.equal_mass_edges(scores)
    return {
        "bins": calibration.reliability(rows, scores, outcomes, **options),
        "adaptive_bins": calibration.reliability(rows, scores, outcomes, edges=edges, **options),
    }


def _class_bins(rows: pd.DataFrame, name: str, outcomes: Array, scores: Array) -> dict[str, Any]:
    """Return the ECE of one class's probability and its bins of equal width, without intervals."""
    bins = calibration.reliability(rows, scores, outcomes, n_resamples=0)
    error = sum(one["n_images"] * abs(one["share"]["value"] - one["mean_probability"]) for one in bins)
    return {"class": name, "ece": error / len(rows), "bins": bins}


def _entry(of: str | None, temperature: float | None, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    after = states[1] if len(states) > 1 else None
    eces = [state["scores"]["ece"]["value"] for state in states]
    return {
        "of": of, "temperature": temperature, "before": states[0], "after": after,
        "raises_ece": eces[-1] > eces[0] + _ROUNDING,
    }  # fmt: skip
