"""Columns of the clinical table as covariates of a model: numbers as they are, categories as indicators."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from histojax.core.errors import RunError
from histojax.core.printable import printable
from histojax.evaluation.metrics import Array
from histojax.slides.outcome.spec import OutcomeSpec
from histojax.slides.outcome.tables import Patient


class Covariate(NamedTuple):
    """One covariate of a model.

    Attributes:
      name: the column, followed by the category of an indicator.
      reference: category that an indicator is compared with; None for a number.
      values: number, or 1 in the category and 0 elsewhere, (n,).
    """

    name: str
    reference: str | None
    values: Array


def covariates(patients: Sequence[Patient], spec: OutcomeSpec) -> list[Covariate]:
    """Return the covariates of `spec.adjust` for the patients that are analysed.

    A column of numbers is one covariate, unless `spec.categorical` names it. Any other has an indicator for each of its
    categories but the first one in order, the reference.

    Raises:
      RunError: a column mixes numbers and words, or all patients have the same value.
    """
    out: list[Covariate] = []
    for column in spec.adjust:
        cells = [patient.covariates[column] for patient in patients]
        numbers = [None if column in spec.categorical else _number(cell) for cell in cells]
        if len(set(cells)) < 2:
            raise RunError(
                f"--adjust {column}: all {len(cells)} patients have '{printable(cells[0])}'; drop the column"
            )
        words = [i for i, number in enumerate(numbers) if number is None]
        if not words:
            out.append(Covariate(column, None, np.array(numbers, np.float64)))
        elif len(words) < len(cells):
            raise RunError(
                f"{patients[words[0]].place}, column {column}: '{printable(cells[words[0]])}' is no number, but other "
                f"cells are. Correct it, leave it empty, or name the column in --categorical ({len(words)} such cells)"
            )
        else:
            reference, *others = sorted(set(cells))
            for category in others:
                is_in = np.array([cell == category for cell in cells], np.float64)
                out.append(Covariate(f"{column} {category}", reference, is_in))
    return out


def _number(cell: str) -> float | None:
    """The finite number in a cell, or None."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if np.isfinite(value) else None
