"""Dividing whole groups so that every part looks like the whole."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

_TRIES = 100  # random orders of groups, of which the best stratified is taken
_EMPTY_CELL = 10.0  # what a part without a class costs, in squared shares: more than any unevenness


def assign(
    cells: Mapping[str, Counter[tuple[str, str]]],
    fractions: Sequence[float],
    rng: np.random.Generator,
    coverage: bool = True,
) -> dict[str, int]:
    """Gives each group a part so that every cell is divided as `fractions` say, as nearly as groups allow.

    Groups arrive in random order and go where they reduce the squared deviation most; of several random
    orders the best is taken. Single images (groups of one) need one order only: each cell is simply cut.

    Args:
      cells: images of each group by cell, such as (class, magnification).
      fractions: wanted share of each part, summing to 1.
      rng: of the orders.
      coverage: prefer divisions in which every part has a group of every cell that has enough groups.

    Returns:
      The part of each group, 0 … len(fractions) - 1.
    """
    names = sorted(cells)
    keys = sorted({key for cell in cells.values() for key in cell})
    counts = np.array([[cells[name][key] for key in keys] for name in names], dtype=np.float64)
    counts = counts.reshape(len(names), len(keys))
    target = np.asarray(fractions)
    if counts.sum(axis=1).max(initial=0) <= 1:
        return _cut(names, counts, target, rng)
    share = counts / np.maximum(counts.sum(axis=0), 1)
    enough = (counts > 0).sum(axis=0) >= len(fractions) if coverage else np.zeros(len(keys), bool)
    best, best_cost = np.zeros(len(names), int), np.inf
    tries = min(_TRIES, max(1, 10_000 // len(names)))  # many small groups balance in any order
    for attempt in range(2 * tries):
        if attempt == tries and best_cost < _EMPTY_CELL:
            break
        urge = attempt >= tries  # shares alone left a part without a class: now, fill what is empty first
        parts = np.zeros(len(names), int)
        filled = np.zeros((len(fractions), len(keys)))
        for group in rng.permutation(len(names)):
            missing = target[:, None] - filled
            # change of sum((filled - target)^2) by adding the group to each part
            gain = ((missing - share[group]) ** 2 - missing**2).sum(axis=1)
            if urge:
                gain -= _EMPTY_CELL * ((filled == 0) & enough & (share[group] > 0)).sum(axis=1)
            # Rounded: sums differ in the last bit between machines, and who wins a tie must not.
            parts[group] = int(gain.round(9).argmin())
            filled[parts[group]] += share[group]
        cost = ((filled - target[:, None]) ** 2).sum() + _EMPTY_CELL * ((filled == 0) & enough).sum()
        if cost < best_cost - 1e-9:
            best, best_cost = parts, cost
    return dict(zip(names, best.tolist(), strict=True))


def _cut(names: Sequence[str], counts: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> dict[str, int]:
    parts: dict[str, int] = {}
    for cell in range(counts.shape[1]):
        members = [name for name, row in zip(names, counts, strict=True) if row[cell]]
        order = rng.permutation(len(members))
        borders = np.round(np.cumsum(target) * len(members))[:-1]
        for position, index in enumerate(order):
            parts[members[index]] = int(np.searchsorted(borders, position, side="right"))
    return parts
