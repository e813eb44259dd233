"""Intervals of proportions and of statistics over few independent units."""

import math
import statistics

from scipy import special

from histojax.evaluation import bootstrap, metrics
from histojax.evaluation.metrics import Array


def expanded_level(n: int) -> float:
    """The level at which percentiles of n ≥ 2 resampled units are as wide as a 95 % interval of Student's t.

    The bootstrap's spread is √((n − 1)/n) of the unbiased one, and its tails are normal. With few units both make it
    too narrow. Hesterberg 2015, What teachers should know about the bootstrap, "expanded percentile".
    """
    t = float(special.stdtrit(n - 1, 0.975))
    return 2 * statistics.NormalDist().cdf(math.sqrt(n / (n - 1)) * t) - 1


def wilson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion of n > 0 trials (Wilson 1927)."""
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    p = successes / n
    centre = p + z**2 / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def clustered_proportion(successes: Array, trials: Array) -> tuple[float, float]:
    """The 95 % interval of a proportion whose trials are alike within a cluster, such as the tiles of a patient.

    Whole clusters are resampled. Where all resamples agree, or with one cluster, a cluster counts as one trial of
    Wilson's interval, so that the interval never collapses.

    Args:
      successes: in each cluster, (u,).
      trials: in each cluster, (u,); at least one is not 0.
    """
    informative = trials > 0
    successes, trials = successes[informative], trials[informative]
    n = len(trials)
    if n > 1:
        figures = bootstrap.intervals(
            lambda weights: {"rate": metrics.divide(weights @ successes, weights @ trials)}, n, level=expanded_level(n)
        )
        low, high = figures["rate"]["low"], figures["rate"]["high"]
        if low is not None and high is not None and low < high:
            return low, high
    return wilson(n * float(successes.sum() / trials.sum()), n)
