"""Stratified division of whole groups."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

_TRIES = 100  # random orders of the groups, of which the best stratified is used
_EMPTY_CELL = 10.0  # cost of a part without a class, in squared fractions: more than any unevenness costs


def assign(
    cells: Mapping[str, Counter[tuple[str, str]]],
    fractions: Sequence[float],
    rng: np.random.Generator,
    coverage: bool = True,
) -> dict[str, int]:
    """Assign each group to a part so that every cell is divided by `fractions` as closely as the groups allow.

    Groups are taken in random order; each goes to the part where it reduces the squared deviation most. The best of
    several random orders is used. Single images (groups of one) need only one order: each cell is simply cut.

    Args:
      cells: for each group, its images per cell, such as (class, magnification).
      fractions: wanted fraction of each part; they sum to 1.
      rng: draws the random orders.
      coverage: prefer divisions in which every part has a group of every cell that has enough groups.

    Returns:
      The part of each group, 0 to len(fractions) - 1.
    """
    names = sorted(cells)
    keys = sorted({key for cell in cells.values() for key in cell})
    counts = np.array([[cells[name][key] for key in keys] for name in names], dtype=np.float64)
    counts = counts.reshape(len(names), len(keys))
    target = np.asarray(fractions)
    if counts.sum(axis=1).max(initial=0) <= 1:
        return _cut(names, counts, target, rng)
    weight = counts / np.maximum(counts.sum(axis=0), 1)
    divisible = (counts > 0).sum(axis=0) >= len(fractions) if coverage else np.zeros(len(keys), bool)
    best, best_cost = np.zeros(len(names), int), np.inf
    tries = min(_TRIES, max(1, 10_000 // len(names)))  # many small groups balance in any order
    for attempt in range(2 * tries):
        if attempt == tries and best_cost < _EMPTY_CELL:
            break
        # The first tries left a part without a class: from now on, fill empty cells first.
        parts, cost = _fill(weight, target, divisible, rng, empty_first=attempt >= tries)
        if cost < best_cost - 1e-9:
            best, best_cost = parts, cost
    return dict(zip(names, best.tolist(), strict=True))


def _fill(
    weight: np.ndarray, target: np.ndarray, divisible: np.ndarray, rng: np.random.Generator, empty_first: bool
) -> tuple[np.ndarray, float]:
    """Assign the groups in one random order.

    Args:
      weight: `[groups, cells]`, the fraction of each cell that a group holds.
      target: `[parts]`, wanted fractions.
      divisible: `bool [cells]`, whether every part should have a group of the cell.
      rng: draws the order.
      empty_first: fill empty cells before balancing.

    Returns:
      The part of each group, `int [groups]`, and the cost of the division.
    """
    parts = np.zeros(len(weight), int)
    filled = np.zeros((len(target), weight.shape[1]))
    for group in rng.permutation(len(weight)):
        missing = target[:, None] - filled
        # Change of sum((filled - target)^2) if the group is added to each part.
        change = ((missing - weight[group]) ** 2 - missing**2).sum(axis=1)
        if empty_first:
            change -= _EMPTY_CELL * ((filled == 0) & divisible & (weight[group] > 0)).sum(axis=1)
        # Rounded, because sums differ in the last bit between machines, and ties must be broken equally everywhere.
        parts[group] = int(change.round(9).argmin())
        filled[parts[group]] += weight[group]
    cost = ((filled - target[:, None]) ** 2).sum() + _EMPTY_CELL * ((filled == 0) & divisible).sum()
    return parts, cost


def _cut(names: Sequence[str], counts: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> dict[str, int]:
    """Divide groups of one image: cut each cell, in random order, at the wanted fractions."""
    parts: dict[str, int] = {}
    for cell in range(counts.shape[1]):
        members = [name for name, row in zip(names, counts, strict=True) if row[cell]]
        order = rng.permutation(len(members))
        borders = np.round(np.cumsum(target) * len(members))[:-1]
        for position, index in enumerate(order):
            parts[members[index]] = int(np.searchsorted(borders, position, side="right"))
    return parts
