"""Paired tests of two models on the same images: McNemar's test, and DeLong's test of areas under the ROC curve.

Both assume that images are independent, except `delong` with clusters.
"""

import math
from typing import NamedTuple

import numpy as np

from histojax.evaluation.metrics import Array

_Z95 = 1.959963984540054  # normal quantile of a two-sided 95 % interval


class McNemar(NamedTuple):
    """McNemar's test of b images that only the first model gets right against c that only the second gets right.

    p values are two-sided. Fagerland, Lydersen and Laake (2013) recommend `mid_p`; `exact` is conservative.

    Attributes:
      only_first: b.
      only_second: c.
      exact: p value of the exact binomial test.
      mid_p: mid-p value.
      chi2: (b − c)² / (b + c); None where b + c is 0.
      chi2_p: its p value.
      corrected_chi2: (|b − c| − 1)² / (b + c); None where b + c is 0.
      corrected_p: its p value.
    """

    only_first: int
    only_second: int
    exact: float
    mid_p: float
    chi2: float | None
    chi2_p: float | None
    corrected_chi2: float | None
    corrected_p: float | None


def mcnemar(only_first: int, only_second: int) -> McNemar:
    """Run McNemar's test on the two counts. Without any discordant image p is 1."""
    n, least = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return McNemar(0, 0, 1.0, 1.0, None, None, None, None)
    # Log probabilities of the binomial distribution (n, ½) at 0 … least.
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

    With fewer than two positives or negatives, or clusters of them, the spread cannot be estimated: every field after
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


def placements(scores: Array, labels: Array) -> tuple[Array, Array]:
    """Rank positives among negatives and the reverse. A tie counts half. O(n log n).

    Args:
      scores: (n,).
      labels: whether each image is positive, (n,).

    Returns:
      For each positive, the fraction of negatives below it; for each negative, the fraction of positives above it.
      The mean of either is the area under the ROC curve.
    """
    positives, negatives = np.sort(scores[labels]), np.sort(scores[~labels])

    def fraction_below(values: Array, others: Array) -> Array:
        return (np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")) / 2 / len(others)

    return fraction_below(scores[labels], negatives), 1 - fraction_below(scores[~labels], positives)


def delong(labels: Array, first: Array, second: Array, cluster: Array | None = None) -> DeLong:
    """Compare two areas under the ROC curve (DeLong, DeLong and Clarke-Pearson 1988).

    With clusters the variance is that of Obuchowski (1997), which remains valid where images of one patient are
    alike. With one image per patient it equals DeLong's.

    Args:
      labels: whether each image is positive, (n,).
      first: scores of the first model, (n,).
      second: scores of the second model for the same images, (n,).
      cluster: patient index of each image, (n,); None: images are independent.

    Raises:
      ValueError: all images are positive, or all are negative.
    """
    labels = np.asarray(labels, bool)
    if labels.all() or not labels.any():
        raise ValueError("an area under the ROC curve needs positives and negatives")
    pairs = [placements(np.asarray(scores, np.float64), labels) for scores in (first, second)]
    areas = [float(positive_placements.mean()) for positive_placements, _ in pairs]
    difference = areas[1] - areas[0]
    cluster = np.arange(len(labels)) if cluster is None else np.asarray(cluster)
    variance = _variance(pairs[1][0] - pairs[0][0], pairs[1][1] - pairs[0][1], cluster[labels], cluster[~labels])
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


def _variance(
    positive_placements: Array, negative_placements: Array, positive_cluster: Array, negative_cluster: Array
) -> float | None:
    """Compute Obuchowski's variance of the mean placement.

    Args:
      positive_placements: of the positives, (m,).
      negative_placements: of the negatives, (n,).
      positive_cluster: cluster of each positive, (m,).
      negative_cluster: cluster of each negative, (n,).

    Returns:
      The variance; None where fewer than two clusters hold positives, or negatives.
    """
    m, n = len(positive_placements), len(negative_placements)
    names, index = np.unique(np.concatenate([positive_cluster, negative_cluster]), return_inverse=True)
    clusters = len(names)
    with_positives, with_negatives = len(np.unique(positive_cluster)), len(np.unique(negative_cluster))
    if min(with_positives, with_negatives) < 2:
        return None
    # Deviations of the placements from their mean, summed per cluster.
    x = np.bincount(index[:m], weights=positive_placements - positive_placements.mean(), minlength=clusters)
    y = np.bincount(index[m:], weights=negative_placements - negative_placements.mean(), minlength=clusters)
    s10 = with_positives / (with_positives - 1) / m * float(x @ x)
    s01 = with_negatives / (with_negatives - 1) / n * float(y @ y)
    s11 = clusters / (clusters - 1) * float(x @ y)
    return s10 / m + s01 / n + 2 * s11 / (m * n)


def holm(p_values: list[float]) -> list[float]:
    """Adjust p values for their number (Holm 1979). The order is kept."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _chi2_p(chi2: float) -> float:
    """Upper tail probability of χ² with one degree of freedom."""
    return math.erfc(math.sqrt(chi2 / 2))
