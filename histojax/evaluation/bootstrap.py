"""95 % percentile intervals by bootstrap over patients (slides, source images, images), vectorised through weights.

A resample is a vector of weights: how often each unit was drawn. A statistic is a function of such weights,
so that the point estimate (all weights 1) and every resample are the same code.
"""

from collections.abc import Callable, Hashable, Iterator
from typing import TypeVar

import numpy as np

from histojax.evaluation.metrics import Array

Key = TypeVar("Key", bound=Hashable)
Figure = dict[str, float | None]

# Floats in one array of a chunk: 8 MB, of which a statistic holds about ten at a time.
_CHUNK_ELEMENTS = 1 << 20


def units(patient_id: Array, slide_id: Array | None = None, source_id: Array | None = None) -> tuple[str, Array, int]:
    """What is resampled: (its name, unit index of each image (n,), number of units).

    "patient" where every image has a non-empty patient_id (n,), else "slide" or "source image" where those are
    given and known of every image, else "image".
    """
    for name, ids in (("patient", patient_id), ("slide", slide_id), ("source image", source_id)):
        known = np.asarray([] if ids is None else ids, dtype=str)
        if len(known) and np.all(known != ""):
            names, unit = np.unique(known, return_inverse=True)
            return name, unit, len(names)
    return "image", np.arange(len(patient_id)), len(patient_id)


def weight_chunks(n_units: int, n_resamples: int, seed: int, n_rows: int | None = None) -> Iterator[Array]:
    """Weights (r, n_units) of resamples with replacement, r at a time, n_resamples in all.

    `n_rows`: images that a statistic spreads the weights over; it bounds the memory of a chunk. The weights
    depend on the seed alone, not on the chunks.
    """
    rng = np.random.default_rng(seed)
    size = max(1, _CHUNK_ELEMENTS // max(n_units, n_rows or 0, 1))
    for start in range(0, n_resamples, size):
        r = min(size, n_resamples - start)
        drawn = rng.integers(0, n_units, size=(r, n_units))
        flat = (drawn + np.arange(r)[:, None] * n_units).ravel()
        yield np.bincount(flat, minlength=r * n_units).reshape(r, n_units).astype(np.float64)


def intervals(
    statistic: Callable[[Array], dict[Key, Array]],
    n_units: int,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    n_rows: int | None = None,
    level: float = 0.95,
) -> dict[Key, Figure]:
    """Point estimate and percentile interval of each metric of `statistic`.

    `statistic`: weights (r, n_units) -> {key: (r,)}. A resample on which a metric is undefined (nan: a class
    was not drawn) is left out of its interval; their share is then in its figure as "undefined". With fewer
    than two units low and high are None. Raises ValueError without units.
    """
    if n_units < 1 or n_resamples < 0:
        raise ValueError(f"a bootstrap needs units and resamples; got {n_units} units, {n_resamples} resamples")
    point = {key: float(values[0]) for key, values in statistic(np.ones((1, n_units))).items()}
    if n_units < 2 or n_resamples == 0:
        return {key: _figure(value, None) for key, value in point.items()}
    chunks = [statistic(weights) for weights in weight_chunks(n_units, n_resamples, seed, n_rows)]
    return {
        key: _figure(value, np.concatenate([chunk[key] for chunk in chunks]), level) for key, value in point.items()
    }


def _figure(value: float, resampled: Array | None, level: float = 0.95) -> Figure:
    figure: Figure = {"value": value if np.isfinite(value) else None, "low": None, "high": None}
    if resampled is None or figure["value"] is None:
        return figure
    defined = resampled[np.isfinite(resampled)]
    if len(defined):
        low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
        figure.update(low=float(low), high=float(high))
    if len(defined) < len(resampled):
        figure["undefined"] = 1 - len(defined) / len(resampled)
    return figure
