"""95 % percentile intervals by bootstrap over patients (else slides, source images or images), vectorised by weights.

A resample is a vector of weights: how often each unit was drawn. A statistic is a function of such weights, so that
the point estimate (all weights 1) and every resample run the same code.
"""

from collections.abc import Callable, Hashable, Iterator
from typing import TypeVar

import numpy as np

from histojax.evaluation.metrics import Array

Key = TypeVar("Key", bound=Hashable)
# A metric with its interval: "value", "low", "high" (None: undefined), and "undefined" where resamples were left out.
Estimate = dict[str, float | None]

# Floats in one array of a chunk: 8 MB. A statistic holds about ten such arrays at a time.
_CHUNK_ELEMENTS = 1 << 20


def units(patient_id: Array, slide_id: Array | None = None, source_id: Array | None = None) -> tuple[str, Array, int]:
    """Choose the unit that is resampled.

    Args:
      patient_id: of each image, (n,); empty where unknown.
      slide_id: of each image, (n,), or None.
      source_id: source image of each image, (n,), or None.

    Returns:
      Name of the unit, unit index of each image (n,), and number of units. The unit is "patient" where every image
      has a patient_id, else "slide" or "source image" where that is known for every image, else "image".
    """
    for name, ids in (("patient", patient_id), ("slide", slide_id), ("source image", source_id)):
        known = np.asarray([] if ids is None else ids, dtype=str)
        if len(known) and np.all(known != ""):
            names, unit = np.unique(known, return_inverse=True)
            return name, unit, len(names)
    return "image", np.arange(len(patient_id)), len(patient_id)


def equal_weights(unit: Array) -> Array:
    """Return weights (n,) of images that add up to 1, the same for each unit, given the unit index of each image."""
    _, index, counts = np.unique(unit, return_inverse=True, return_counts=True)
    weights: Array = 1 / (len(counts) * counts[index])
    return weights


def unit_sums(terms: Array, unit: Array, n_units: int) -> Array:
    """Sum terms (n, c) over the images of each unit, (g, c). A resample is then one matrix product."""
    terms = np.asarray(terms, np.float64)
    return np.stack([np.bincount(unit, weights=column, minlength=n_units) for column in terms.T], axis=1)


def weight_chunks(n_units: int, n_resamples: int, seed: int, n_rows: int | None = None) -> Iterator[Array]:
    """Draw resamples with replacement, one chunk at a time.

    The weights depend on the seed only, not on the size of the chunks.

    Args:
      n_units: number of units, g.
      n_resamples: number of resamples in all.
      seed: of the random numbers.
      n_rows: images that a statistic spreads the weights over; bounds the memory of a chunk.

    Yields:
      Weights (r, g) of r resamples.
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
) -> dict[Key, Estimate]:
    """Estimate each metric of a statistic with its percentile interval.

    A resample on which a metric is undefined (nan: a class was not drawn) is left out of that metric's interval; the
    fraction of such resamples is reported as "undefined". With fewer than two units, low and high are None.

    Args:
      statistic: weights (r, n_units) -> {key: values (r,)}.
      n_units: number of resampled units.
      n_resamples: number of resamples; 0: no intervals.
      seed: of the random numbers.
      n_rows: as in `weight_chunks`.
      level: coverage of the interval.

    Raises:
      ValueError: no units, or a negative number of resamples.
    """
    if n_units < 1 or n_resamples < 0:
        raise ValueError(f"a bootstrap needs units and resamples; got {n_units} units, {n_resamples} resamples")
    point = {key: float(values[0]) for key, values in statistic(np.ones((1, n_units))).items()}
    if n_units < 2 or n_resamples == 0:
        return {key: _estimate(value, None) for key, value in point.items()}
    chunks = [statistic(weights) for weights in weight_chunks(n_units, n_resamples, seed, n_rows)]
    return {
        key: _estimate(value, np.concatenate([chunk[key] for chunk in chunks]), level) for key, value in point.items()
    }


def _estimate(value: float, resampled: Array | None, level: float = 0.95) -> Estimate:
    estimate: Estimate = {"value": value if np.isfinite(value) else None, "low": None, "high": None}
    if resampled is None or estimate["value"] is None:
        return estimate
    defined = resampled[np.isfinite(resampled)]
    if len(defined):
        low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
        estimate.update(low=float(low), high=float(high))
    if len(defined) < len(resampled):
        estimate["undefined"] = 1 - len(defined) / len(resampled)
    return estimate
