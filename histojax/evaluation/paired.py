"""Tests of two models on the same images: McNemar's, and DeLong's of areas under the ROC curve.

Both take images for independent; `delong` with clusters does not.
"""

import math
from typing import NamedTuple

import numpy as np

from histojax.evaluation.metrics import Array

_Z95 = 1.959963984540054  # of a two-sided interval of 95 %


class McNemar(NamedTuple):
    """McNemar's test of b images that only the first model has right against c that only the second has.

    p values are two-sided. Fagerland, Lydersen and Laake (2013) recommend `mid_p`; `exact` is conservative.
    """

    only_first: int
    only_second: int
    exact: float
    mid_p: float
    chi2: float | None  # (b − c)² / (b + c); None where no image is told apart
    chi2_p: float | None
    corrected_chi2: float | None  # (|b − c| − 1)² / (b + c)
    corrected_p: float | None


def mcnemar(only_first: int, only_second: int) -> McNemar:
    """The test from the two counts; without any such image there is nothing to tell: p is 1."""
    n, least = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return McNemar(0, 0, 1.0, 1.0, None, None, None, None)
    # Logarithms of the binomial's weights (n, ½) at 0 … least.
    steps = np.arange(1, least + 1)
    weights = np.append(0.0, np.cumsum(np.log(n - steps + 1) - np.log(steps))) - n * math.log(2)
    tail, last = float(np.exp(weights).sum()), float(np.exp(weights[-1]))
    chi2 = (only_first - only_second) ** 2 / n
    corrected = max(abs(only_first - only_second) - 1, 0) ** 2 / n
    return McNemar(
        only_first,
        only_second,
        exact=min(1.0, 2 * tail),
        mid_p=min(1.0, 2 * tail - last),
        chi2=chi2,
        chi2_p=_chi2_p(chi2),
        corrected_chi2=corrected,
        corrected_p=_chi2_p(corrected),
    )


class DeLong(NamedTuple):
    """Two areas under the ROC curve, and their difference (second − first) with its 95 % interval.

    Without a spread to judge by (fewer than two positives or negatives, or clusters of them) everything behind
    `difference` is None.
    """

    first: float
    second: float
    difference: float
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None
    z: float | None = None
    p: float | None = None


def placements(scores: Array, there: Array) -> tuple[Array, Array]:
    """For each positive the share of negatives below it, (m,); for each negative that of positives above it, (n,).

    A tie counts half. The mean of either is the area under the ROC curve. O(n log n).
    """
    positives, negatives = np.sort(scores[there]), np.sort(scores[~there])

    def below(sought: Array, among: Array) -> Array:
        return (np.searchsorted(among, sought, "left") + np.searchsorted(among, sought, "right")) / 2 / len(among)

    return below(scores[there], negatives), 1 - below(scores[~there], positives)


def delong(there: Array, first: Array, second: Array, cluster: Array | None = None) -> DeLong:
    """DeLong, DeLong and Clarke-Pearson (1988) for two scores (n,) of the same images.

    With `cluster`, the index of each image's patient (n,), the variance is that of Obuchowski (1997), which
    holds where images of one patient are alike; with one image a patient it is DeLong's.

    Raises ValueError without a positive or without a negative.
    """
    there = np.asarray(there, bool)
    if there.all() or not there.any():
        raise ValueError("an area under the ROC curve needs positives and negatives")
    pairs = [placements(np.asarray(scores, np.float64), there) for scores in (first, second)]
    areas = [float(of_positives.mean()) for of_positives, _ in pairs]
    difference = areas[1] - areas[0]
    cluster = np.arange(len(there)) if cluster is None else np.asarray(cluster)
    variance = _variance(pairs[1][0] - pairs[0][0], pairs[1][1] - pairs[0][1], cluster[there], cluster[~there])
    if variance is None:
        return DeLong(areas[0], areas[1], difference)
    error = math.sqrt(max(variance, 0.0))
    z = difference / error if error else 0.0 if difference == 0 else math.copysign(math.inf, difference)
    half = _Z95 * error
    return DeLong(
        areas[0],
        areas[1],
        difference,
        standard_error=error,
        low=difference - half,
        high=difference + half,
        z=z if math.isfinite(z) else None,
        p=math.erfc(abs(z) / math.sqrt(2)),
    )


def _variance(of_positives: Array, of_negatives: Array, positive_in: Array, negative_in: Array) -> float | None:
    """Obuchowski's variance of the mean of placements (m,), (n,) whose images are in clusters (m,), (n,)."""
    m, n = len(of_positives), len(of_negatives)
    names, index = np.unique(np.concatenate([positive_in, negative_in]), return_inverse=True)
    clusters = len(names)
    with_positives, with_negatives = len(np.unique(positive_in)), len(np.unique(negative_in))
    if min(with_positives, with_negatives) < 2:
        return None
    # Sums over clusters of what each placement is off its mean.
    x = np.bincount(index[:m], weights=of_positives - of_positives.mean(), minlength=clusters)
    y = np.bincount(index[m:], weights=of_negatives - of_negatives.mean(), minlength=clusters)
    s10 = with_positives / (with_positives - 1) / m * float(x @ x)
    s01 = with_negatives / (with_negatives - 1) / n * float(y @ y)
    s11 = clusters / (clusters - 1) * float(x @ y)
    return s10 / m + s01 / n + 2 * s11 / (m * n)


def holm(p_values: list[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979), in the same order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _chi2_p(chi2: float) -> float:
    """Upper tail of χ² with one degree of freedom."""
    return math.erfc(math.sqrt(chi2 / 2))
