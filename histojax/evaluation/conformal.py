"""Prediction sets that hold the true class of a new patient's image with a stated probability.

Split conformal prediction: the probability that the model gave to the truth, on images that it was not trained on,
says how improbable an answer may be and still belong to the set. That argument needs exchangeable units. Images of one
patient are alike, so the units are patients: one image drawn from each patient gives one score per patient, and the
set of that draw holds the truth of one image of a new patient with at least the stated probability. Which images are
drawn should not matter, so a class belongs to the set if it belongs to it in at least half of all possible draws. That
is the majority vote of Gasparin and Ramdas 2024 (arXiv 2401.09379) over the repeated subsampling of Dunn, Wasserman and
Ramdas 2022 (JASA, arXiv 1809.07441). Nothing is drawn at random: the vote is computed exactly.

Shapes: n images, g units (patients), k classes or labels.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from histojax.core.errors import RunError
from histojax.evaluation import multilabel, predictions, results, summary_blocks
from histojax.evaluation.metrics import Array

ALL, CLASS = "all", "class"
STATES = ("absent", "present")  # of a label, in the order of the last axis of its sets
ABSTAINED = "abstained"
_SLACK = 1e-9  # sums of fractions of a patient's images are inexact


@dataclasses.dataclass(frozen=True)
class SetRule:
    """The probability from which on an answer belongs to the set.

    Attributes:
      classes: names of the k classes or labels.
      multilabel: whether an image has any number of labels, so that each label has a set of its own.
      level: probability that a set holds the truth.
      by: "all": over all images of a new patient; "class": over those of each class.
      least: least probability of each class in the set, (k,); with labels that of `STATES`, (k, 2).
      unit: "patient", else "slide", "source image" or "image", as in `bootstrap.units`.
      n_units: the units that `least` rests on: those of the rarest class or state by "class".
    """

    classes: tuple[str, ...]
    multilabel: bool
    level: float
    by: str
    least: Array
    unit: str
    n_units: int

    def held(self, probabilities: Array) -> dict[str, Array]:
        """Return which answers are in the set of each image.

        Args:
          probabilities: (n, k).

        Returns:
          "" -> booleans (n, k), which classes; with labels, label -> booleans (n, 2), which of `STATES`. A set may be
          empty: each answer is then less probable than the truth usually is.
        """
        probabilities = np.asarray(probabilities, np.float64)
        if not self.multilabel:
            return {"": probabilities >= self.least}
        both = np.stack([1 - probabilities, probabilities], axis=-1) >= self.least
        return {name: both[:, i] for i, name in enumerate(self.classes)}

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers that a set may hold."""
        return STATES if self.multilabel else self.classes

    def described(self) -> dict[str, float]:
        """Return the least probability of each class, or of each `label present` and `label absent`."""
        if not self.multilabel:
            return dict(zip(self.classes, self.least.tolist(), strict=True))
        names = [f"{name} {state}" for name in self.classes for state in STATES]
        return dict(zip(names, self.least.ravel().tolist(), strict=True))


def needed_units(level: float) -> int:
    """Return the least number of units for which sets of this level exist: ⌈(g + 1)·level⌉ ≤ g.

    Raises:
      ValueError: the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"the level {level} is not between 0 and 1")
    return max(1, math.ceil(level / (1 - level) - _SLACK))


def least_probability(of_truth: Array, unit: Array, level: float) -> float:
    """Return the probability from which on an answer belongs to the set.

    A draw of one image per unit has g probabilities of the truth; its limit is the ⌈(g + 1)·level⌉-th highest. The
    result is the lower median of the limits of all draws. The number of units whose image reaches a limit is a sum of
    independent terms, so its distribution is computed unit by unit.

    Args:
      of_truth: probability that the model gave to the truth, (n,).
      unit: index of each image's unit, (n,).
      level: probability that a set holds the truth.

    Raises:
      ValueError: fewer units than the level needs.
    """
    _, unit = np.unique(unit, return_inverse=True)
    n_images = np.bincount(unit)
    g = len(n_images)
    if g < needed_units(level):
        raise ValueError(f"{g} units, and a level of {level} needs {needed_units(level)}")
    rank = math.ceil((g + 1) * level - _SLACK)
    order = np.argsort(-np.asarray(of_truth, np.float64), kind="stable")
    ordered, unit = np.asarray(of_truth, np.float64)[order], unit[order]
    # The median of such a sum is its mean, rounded down or up (Jogdeo and Samuels 1968). So the result lies where the
    # expected number of units that reach it is rank - 1 to rank.
    mean = np.cumsum(1 / n_images[unit])
    first, last = np.searchsorted(mean, [rank - 1 - _SLACK, rank - _SLACK])
    limits = np.unique(ordered[first : last + 1])[::-1]
    ends = np.searchsorted(-ordered, -limits, side="right")  # images at or above each limit
    at_or_above = np.stack([np.bincount(unit[:end], minlength=g) for end in ends]) / n_images
    # chance[:, i]: that i units lie below a limit; more than g - rank of them are not of interest.
    chance = np.zeros((len(limits), g - rank + 1))
    chance[:, 0] = 1
    for above in at_or_above.T[:, :, None]:
        below = chance[:, :-1] * (1 - above)
        chance *= above
        chance[:, 1:] += below
    reached = chance.sum(1) > 0.5 + _SLACK
    reached[-1] = True
    return float(limits[np.argmax(reached)])


def fit(rows: pd.DataFrame, level: float, by: str = ALL) -> SetRule:
    """Fit sets on images that the model was not trained on.

    Args:
      rows: rows of a table of predictions; their patients are the units, else slides, source images or images.
      level: probability that a set holds the truth, between 0 and 1.
      by: `ALL` or `CLASS`.

    Raises:
      RunError: fewer units than the level needs, in all or, by class, with images of a class.
    """
    classes = predictions.class_names(rows)
    unit_name, unit, _ = summary_blocks.resampled_units(rows)
    is_multilabel = predictions.is_multilabel(rows)
    if is_multilabel:
        labels, scores = multilabel.arrays(rows, classes)
        true, answers = np.asarray(labels).astype(int), np.stack([1 - scores, scores], axis=-1)
        columns = {name: (true[:, i], answers[:, i], list(STATES)) for i, name in enumerate(classes)}
    else:
        columns = {"": (*results.arrays(rows, classes), classes)}
    least: list[list[float]] = []
    n_units: list[int] = []
    for label, (truth, probabilities, names) in columns.items():
        of_truth = probabilities[np.arange(len(truth)), truth]
        groups = {f"{label} {name}".strip(): truth == i for i, name in enumerate(names)}
        if by == ALL:
            groups = {"": np.ones(len(truth), bool)}
        counts = {name: len(np.unique(unit[members])) for name, members in groups.items()}
        _check_units(counts, level, unit_name)
        limits = [least_probability(of_truth[members], unit[members], level) for members in groups.values()]
        least.append(limits * (len(names) // len(limits)))
        n_units += counts.values()
    rule = np.array(least) if is_multilabel else np.array(least[0])
    return SetRule(tuple(classes), is_multilabel, level, by, rule, unit_name, min(n_units))


def _check_units(counts: Mapping[str, int], level: float, unit: str) -> None:
    """Check that a level has the units that it needs.

    Args:
      counts: name of the class, or "" for all classes together -> units with its images.
      level: of the sets.
      unit: name of the units.
    """
    needed = needed_units(level)
    short = {name: count for name, count in counts.items() if count < needed}
    if not short:
        return
    name, count = min(short.items(), key=lambda item: item[1])
    of = f" with images of '{name}'" if name else ""
    lower = math.floor(100 * count / (count + 1) + _SLACK) / 100
    remedies = [f"take a level of at most {lower:g}"] if count else []
    remedies += ["take sets over all classes (--sets_by=all)"] if name else []
    remedies += ["validate on more (histojax crossval validates on all that are not tested)"]
    are = "is" if count == 1 else "are"
    raise RunError(
        f"sets that hold the truth with probability {level:g} need validation images of at least {needed} "
        f"{unit}s{of}, and there {are} {count}: {', or '.join(remedies)}"
    )


def texts(held: Array, names: Sequence[str]) -> list[str]:
    """Write sets (n, k) as text: their answers joined by "|", in order; empty for an empty set."""
    return ["|".join(name for name, one in zip(names, row, strict=True) if one) for row in held.tolist()]


def answers(held: Array, names: Sequence[str]) -> list[str]:
    """Return the only answer of each set (n, k), or `ABSTAINED` where a set holds none or several."""
    held = np.asarray(held)
    single, first = held.sum(1) == 1, held.argmax(1)
    return [names[i] if one else ABSTAINED for one, i in zip(single.tolist(), first.tolist(), strict=True)]
