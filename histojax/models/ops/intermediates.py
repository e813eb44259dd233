"""Recording and changing feature maps while a model is traced, for gradients with respect to them.

Models pass each map of `feature_maps` through `tap`, under the same name, on the way to the logits. `tap` is the
identity, and adds no operation to a compiled program, except within `listening`.
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
    """Record the feature maps of models called within.

    Args:
      added: by name, arrays to add to a map after it was recorded. The gradient of the logits with respect to an array
        of zeros is the gradient with respect to the map.

    Yields:
      The maps (b, h, w, c) by name, in the order of the forward pass.
    """
    heard: dict[str, jax.Array] = {}
    token = _active.set((added or {}, heard))
    try:
        yield heard
    finally:
        _active.reset(token)


def tap(name: str, x: jax.Array, grid: tuple[int, int] | None = None) -> jax.Array:
    """Pass on a map (b, h, w, c); or, with `grid` (h, w), tokens (b, n, c) of which the last h·w are the map."""
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
