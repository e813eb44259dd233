"""Feature maps overheard and changed while a model is traced, so that gradients with respect to them can be taken.

The models hand each map of `feature_maps` through `tap`, by its name there, on the way to the logits. That is the
identity, and no operation of a compiled program, except within `listening`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_Taps = tuple[Mapping[str, jax.Array], dict[str, jax.Array]]
_active: ContextVar[_Taps | None] = ContextVar("taps", default=None)


@contextmanager
def listening(added: Mapping[str, jax.Array] | None = None) -> Iterator[dict[str, jax.Array]]:
    """The maps of the models called within, (b, h, w, c), by name, in the order in which they are made.

    `added` has what is added to a map after it was overheard, by its name: of zeros, the logits' gradient with respect
    to them is that with respect to the map.
    """
    heard: dict[str, jax.Array] = {}
    token = _active.set((added or {}, heard))
    try:
        yield heard
    finally:
        _active.reset(token)


def tap(name: str, x: jax.Array, grid: tuple[int, int] | None = None) -> jax.Array:
    """Hand on a map (b, h, w, c); or, with `grid` (h, w), tokens (b, n, c) of which the last h·w are that map."""
    if (taps := _active.get()) is None:
        return x
    added, heard = taps
    if grid is None:
        heard[name] = x
        return x + added[name] if name in added else x
    b, n, c = x.shape
    first = n - grid[0] * grid[1]
    heard[name] = x[:, first:].reshape(b, *grid, c)
    return x.at[:, first:].add(added[name].reshape(b, n - first, c)) if name in added else x
