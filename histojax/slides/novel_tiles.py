"""How many tiles of a slide are unlike the training images of the model: columns, share and a warning."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import pandas as pd

from histojax.evaluation.novelty import COLUMNS, QUANTILE, UNLIKE

_LARGE = 0.1  # ten times the share among validation images


class Scorer(Protocol):
    """Says how unlike the training images tiles are, such as `histojax.inference.novelty.scorer.NoveltyScorer`."""

    @property
    def digest(self) -> str: ...  # noqa: D102
    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[list[list[Any]]]: ...  # noqa: D102


def add_columns(table: pd.DataFrame, rows: list[list[Any]]) -> None:
    """Add `COLUMNS` to a table of tiles.

    Args:
      table: one row per tile.
      rows: the values of each tile, in the same order.
    """
    for name, values in zip(COLUMNS, zip(*rows, strict=True) if rows else [()] * len(COLUMNS), strict=True):
        table[name] = list(values)


def share(table: pd.DataFrame) -> float | None:
    """Return the fraction of tiles that are unlike the training images; None without tiles."""
    return round(float((table[QUANTILE] >= UNLIKE).mean()), 4) if len(table) else None


def warnings(share: float | None) -> list[str]:
    """Return a sentence for a share that is much larger than among validation images."""
    if share is None or share <= _LARGE:
        return []
    return [
        f"{share:.0%} of the tiles are unlike the model's training images (further away than {UNLIKE:.0%} of its "
        "validation images; column novelty_quantile of tiles.csv): do not rely on their labels before you have looked "
        "at them"
    ]
