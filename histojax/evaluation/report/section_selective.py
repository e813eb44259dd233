"""Answers with a reservation: accuracy of the most confident answers, and coverage of prediction sets."""

from typing import Any

import numpy as np
import pandas as pd

from histojax.core.errors import RunError
from histojax.evaluation import bootstrap, conformal, results, selective, summary_blocks
from histojax.evaluation.metrics import Array
from histojax.evaluation.report.section_levels import Scored
from histojax.evaluation.report.sources import Source

LEVEL = 0.9  # of the sets that a report checks


def selective_accuracy(
    source: Source, rows: pd.DataFrame, scored: Scored, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Estimate the accuracy of the most confident answers, of the predicted class or of each label.

    The answer is the most probable one, and its probability the confidence.

    Args:
      source: of the rows.
      rows: the reported rows of the table.
      scored: label -> labels and probabilities of the rows.
      options: `n_resamples` and `seed` of the bootstrap.

    Returns:
      Entries with `of` (None: the predicted class), and `area` and `points` as `selective.curve` returns them.
    """
    if source.multilabel:
        parts = {
            name: (np.maximum(scores, 1 - scores), (scores >= 0.5) == labels)
            for name, (labels, scores) in scored.items()
        }
        return [{"of": name} | selective.curve(rows, *part, **options) for name, part in parts.items()]
    true, probabilities = results.arrays(rows, source.classes)
    found = selective.curve(rows, probabilities.max(1), probabilities.argmax(1) == true, **options)
    return [{"of": None} | found]


def prediction_sets(source: Source, rows: pd.DataFrame, options: dict[str, Any]) -> dict[str, Any] | None:
    """Check prediction sets that are fitted on validation rows.

    Args:
      source: of the rows.
      rows: the reported rows of the table.
      options: `n_resamples` and `seed` of the bootstrap.

    Returns:
      `level`; `refused`, why there are none; and otherwise `unit` and `n_units`, that they rest on, and `entries`, with
      `of`, the estimate `coverage` (mean over units of the fraction of a unit's images whose set holds the truth), and
      the fractions of images `one`, `several` and `none` by the answers in the set. None where no validation rows
      stand beside the reported ones.
    """
    validation = source.validation
    if not len(validation) or validation["split"].iloc[0] == rows["split"].iloc[0]:
        return None
    try:
        rule = conformal.fit(validation, LEVEL)
    except RunError as error:
        return {"level": LEVEL, "refused": str(error)}
    entries = []
    for name, held, truth in _held(source, rows, rule):
        sizes = held.sum(1)
        fractions = {"one": sizes == 1, "several": sizes > 1, "none": sizes == 0}
        coverage = _coverage(rows, held[np.arange(len(truth)), truth], options)
        entries.append({"of": name, "coverage": coverage} | {key: float(is_.mean()) for key, is_ in fractions.items()})
    facts = {"level": LEVEL, "refused": None, "unit": rule.unit, "n_units": rule.n_units}
    return facts | {"least": rule.described(), "entries": entries}


def _held(source: Source, rows: pd.DataFrame, rule: conformal.SetRule) -> list[tuple[str | None, Array, Array]]:
    """Return the sets (n, k) and the index of the truth (n,) of the predicted class, or of each label."""
    if not source.multilabel:
        true, probabilities = results.arrays(rows, source.classes)
        return [(None, rule.held(probabilities)[""], true)]
    pairs = source.labels_and_scores(rows)
    held = rule.held(np.stack([scores for _, scores in pairs.values()], axis=1))
    return [(name, held[name], labels.astype(int)) for name, (labels, _) in pairs.items()]


def _coverage(rows: pd.DataFrame, covered: Array, options: dict[str, Any]) -> bootstrap.Estimate:
    """Estimate the mean over units of the fraction of their images that are covered, boolean (n,)."""
    _, unit, n_units = summary_blocks.resampled_units(rows)
    sums = bootstrap.unit_sums(np.stack([covered, np.ones(len(covered))], axis=1), unit, n_units)
    fractions = sums[:, 0] / sums[:, 1]

    def statistic(weights: Array) -> dict[str, Array]:
        return {"coverage": weights @ fractions / weights.sum(1)}

    return bootstrap.intervals(statistic, n_units, **options)["coverage"]
