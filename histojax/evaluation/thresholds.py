"""Decision thresholds: what counts as positive, how thresholds are chosen, and how they are read from the command line.

Shapes: n images, k labels. Each label is decided separately, yes or no.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from histojax.core.errors import RunError
from histojax.evaluation import metrics
from histojax.evaluation.metrics import Array
from histojax.evaluation.predictions import PredictionsError

RULES = ("f1", "youden", "fixed")
DEFAULT = 0.5


def is_positive(scores: Array, thresholds: Array | float) -> Array:
    """Decide each score: positive from the threshold on, the threshold included.

    Args:
      scores: probabilities, (n,) or (n, k).
      thresholds: one number, or one per label (k,).

    Returns:
      Booleans of the shape of `scores`.
    """
    positive: Array = np.asarray(scores) >= thresholds
    return positive


# --- Choosing -----------------------------------------------------------------------------------------------


def check_rule(rule: str) -> None:
    """Check that `choose_thresholds` knows a rule.

    Raises:
      ValueError: it does not.
    """
    if rule not in RULES and _required_sensitivity(rule) is None:
        raise ValueError(f"train.thresholds='{rule}' is not one of {', '.join(RULES)}, sensitivity=0.95")


def choose_thresholds(labels: Array, probabilities: Array, rule: str) -> Array:
    """Choose the best threshold for each label.

    Candidates lie halfway between neighbouring probabilities, so that none coincides with an image's probability.
    Among equally good candidates the nearest to 0.5 is taken, then the lower. A label that every image or no image
    carries gives no basis for a choice and gets 0.5.

    Args:
      labels: 0 or 1, (n, k).
      probabilities: (n, k).
      rule: "f1": greatest F1. "youden": greatest recall + specificity. "sensitivity=0.95": greatest specificity
        among the thresholds with at least that recall. "fixed": 0.5.

    Returns:
      Thresholds (k,).

    Raises:
      ValueError: an unknown rule.
    """
    check_rule(rule)
    labels = np.asarray(labels) > 0.5
    if rule == "fixed":
        return np.full(labels.shape[1], DEFAULT)
    columns = zip(labels.T, np.asarray(probabilities).T, strict=True)
    return np.array([_choose_threshold(label, scores, rule) for label, scores in columns])


def _required_sensitivity(rule: str) -> float | None:
    """Read the least recall from a rule such as "sensitivity=0.95"; None for another rule."""
    name, equals, number = rule.partition("=")
    try:
        value = float(number)
    except ValueError:
        return None
    return value if name == "sensitivity" and equals and 0 < value <= 1 else None


def _choose_threshold(label: Array, probabilities: Array, rule: str) -> float:
    if not label.any() or label.all():
        return DEFAULT
    scores = np.asarray(probabilities, np.float64)
    distinct = np.unique(scores)[::-1]
    true_positives, false_positives = metrics.threshold_counts(scores, label)
    # The last candidate accepts every image. The one that accepts none is not a candidate: no rule can prefer it.
    below = np.append(distinct[1:], 0.0)
    middle = below + (distinct - below) / 2
    candidates = np.where(middle > below, middle, distinct)
    positives, negatives = label.sum(), (~label).sum()
    if rule == "f1":
        value = 2 * true_positives / (true_positives + false_positives + positives)
    elif (least := _required_sensitivity(rule)) is not None:
        sensitive_enough = true_positives / positives >= least - 1e-12
        value = np.where(sensitive_enough, 1 - false_positives / negatives, -1.0)
    else:
        value = true_positives / positives - false_positives / negatives
    best = value >= value.max() - 1e-12
    distance = np.where(best, np.abs(candidates - DEFAULT), np.inf)
    return float(candidates[distance <= distance.min() + 1e-12].min())


# --- Reading ------------------------------------------------------------------------------------------------


def parse(text: str, names: Sequence[str] | None = None) -> dict[str, float]:
    """Read thresholds from the value of `--threshold`.

    A number without a name is stored under the empty name: it applies to all labels. A later entry overrides an
    earlier one, and a number without a name overrides every entry before it.

    Args:
      text: `0.5`, or `LABEL=0.4` entries separated by commas; empty: no thresholds.
      names: the names that are allowed; None: any name, but there must be one.

    Raises:
      RunError: an entry that is not a number in [0, 1], or an unknown name.
    """
    found: dict[str, float] = {}
    for entry in text.split(",") if text else ():
        name, _, number = entry.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        if not 0 <= value <= 1:
            raise RunError(f"--threshold={text}: '{entry}' is not a threshold; give NAME=0.4, or a number in 0 … 1")
        if names is None and not name:
            raise RunError(f"--threshold={text}: '{entry}' names no class; give CLASS=0.4, separated by commas")
        if names is not None and name and name not in names:
            raise RunError(f"--threshold={text}: unknown name '{name}'; the names are {', '.join(names)}")
        found = {"": value} if not name else found | {name: value}
    return found


def to_array(labels: Sequence[str], thresholds: Mapping[str, float] | None) -> Array:
    """Order thresholds like the labels, (k,); 0.5 each where none are given.

    Raises:
      PredictionsError: names are missing or unknown, or a value lies outside [0, 1].
    """
    if thresholds is None:
        return np.full(len(labels), DEFAULT)
    if set(thresholds) != set(labels):
        raise PredictionsError(
            f"thresholds are given for {', '.join(thresholds)}, but the table has the labels {', '.join(labels)}: "
            "give one for each label"
        )
    values = np.array([float(thresholds[name]) for name in labels])
    if not ((values >= 0) & (values <= 1)).all():
        raise PredictionsError(f"thresholds {values.tolist()}: each must lie in [0, 1]")
    return values
