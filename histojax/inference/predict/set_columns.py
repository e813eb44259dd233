"""Prediction sets as columns of the table of predictions, and as lines of the summary."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from histojax.core.text_table import text_table
from histojax.evaluation import conformal


def set_columns(held: Mapping[str, np.ndarray], rule: conformal.SetRule, *, abstain: bool) -> pd.DataFrame:
    """Build the column `predicted_set`, and `predicted_or_abstained`; with labels, one of each per label.

    Args:
      held: as `rule.held` returns it.
      rule: the sets.
      abstain: whether to add the columns of the answers.
    """
    ends = {name: f"_{name}" if name else "" for name in held}
    columns = {f"predicted_set{ends[name]}": conformal.texts(sets, rule.answers) for name, sets in held.items()}
    if abstain:
        columns |= {
            f"predicted_or_abstained{ends[name]}": conformal.answers(sets, rule.answers) for name, sets in held.items()
        }
    return pd.DataFrame(columns, dtype=str)


def set_lines(sizes: Mapping[str, Mapping[int, int]], rule: conformal.SetRule, *, abstain: bool) -> Iterator[str]:
    """Lay out how many images have a set of one answer, of several and of none.

    Args:
      sizes: "" or, multi-label, label -> number of answers in a set -> images.
      rule: the sets.
      abstain: whether to count the images without an answer.
    """
    per_class = " in each class" if rule.by == conformal.CLASS else ""
    yield (
        f"sets that hold the truth with probability {rule.level:g}{per_class}, from {rule.n_units} validation "
        f"{rule.unit}s:"
    )
    rows = [("  ", "one answer", "several", "none", *(["abstained"] if abstain else []))]
    for name, counts in sizes.items():
        total = sum(counts.values())
        one, none = counts.get(1, 0), counts.get(0, 0)
        cells = [one, total - one - none, none, *([total - one] if abstain else [])]
        rows.append((f"  {name or 'images'}", *(f"{count} ({count / total:.1%})" for count in cells)))
    yield from text_table(rows, right=range(1, 5))
