"""How far an image's features are from those of training images: Mahalanobis and nearest-neighbour distance.

* Mahalanobis distance (Lee et al., NeurIPS 2018), with one mean and covariance for all classes. The covariance is
  shrunk towards a multiple of the identity (Ledoit and Wolf 2004), because features outnumber images. Beyond the
  leading directions all have one variance, their mean (probabilistic PCA, Tipping and Bishop 1999): it stays small.
* Distance of features of unit length to the k-th nearest of a few hundred training images (Sun et al., ICML 2022).

A distance means little alone, so it also gets its quantile among validation images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from histojax.evaluation.metrics import Array

# What tables say of each image; the first is the Mahalanobis distance.
DISTANCE, QUANTILE, FLAGS = "novelty", "novelty_quantile", "novelty_flags"
COLUMNS = (DISTANCE, QUANTILE, "novelty_knn", "novelty_knn_quantile", FLAGS)
UNLIKE = 0.99  # an image from this quantile on is called unlike the training images
UNLIKE_TRAINING = "unlike training"

_MAX_DIRECTIONS = 128
_MAX_REFERENCES = 300
_NEIGHBOUR = 5  # which neighbour's distance counts
_TINY = 1e-12


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of features.

    Attributes:
      mean: f32 [d].
      directions: f32 [k, d], orthonormal: the leading eigenvectors of the covariance.
      variances: f32 [k], along them.
      rest: f32 [1], the variance in each direction at right angles to them.
    """

    mean: Array
    directions: Array
    variances: Array
    rest: Array

    @classmethod
    def fit(cls, features: Array, max_directions: int = _MAX_DIRECTIONS) -> "Gaussian":
        """Estimate them.

        Args:
          features: [n, d].
          max_directions: the largest k.

        Raises:
          ValueError: all features are equal.
        """
        x = np.asarray(features, np.float64)
        mean = x.mean(axis=0)
        n, d = x.shape
        centred = x - mean
        _, singular, directions = np.linalg.svd(centred, full_matrices=False)
        variances = np.zeros(d)
        variances[: len(singular)] = singular**2 / n
        average = variances.mean()
        if average < _TINY:
            raise ValueError("all features are equal")
        amount = _shrinkage(variances, (centred**2).sum(axis=1))
        variances = (1 - amount) * variances + amount * average
        k = min(max_directions, len(directions))
        rest = np.array([variances[k:].mean() if k < d else average])
        return cls(*(array.astype(np.float32) for array in (mean, directions[:k], variances[:k], rest)))

    def distance(self, feature: Array) -> float:
        """Return the Mahalanobis distance of one image's features [d]."""
        # One image at a time: a product with a batch may round in another way for another batch.
        offset = np.asarray(feature, np.float64) - self.mean
        along = self.directions.astype(np.float64) @ offset
        beyond = max(float(offset @ offset - along @ along), 0.0)
        return float(np.sqrt((along**2 / self.variances).sum() + beyond / float(self.rest[0])))


def _shrinkage(variances: Array, squared_norms: Array) -> float:
    """Return how much a covariance is shrunk, from 0 to 1, by the estimate of Ledoit and Wolf (2004).

    Args:
      variances: [d], its eigenvalues.
      squared_norms: [n], squared lengths of the centred features.
    """
    n, d = len(squared_norms), len(variances)
    average, energy = variances.mean(), (variances**2).sum()
    error = ((squared_norms**2).sum() / n - energy) / (n * d)
    spread = (energy - d * average**2) / d
    return 1.0 if spread <= 0 else float(np.clip(error / spread, 0, 1))


@dataclass(frozen=True)
class Neighbours:
    """Reference images.

    Attributes:
      features: f32 [m, d], each of unit length.
    """

    features: Array

    @classmethod
    def choose(
        cls, features: Array, groups: Sequence[str], *, seed: int = 0, most: int = _MAX_REFERENCES
    ) -> "Neighbours":
        """Choose at most `most` images at random, as evenly from the groups as their sizes allow.

        Args:
          features: [n, d].
          groups: of each image, such as its class.
          seed: of the choice.
          most: the largest number of references.
        """
        order = np.random.default_rng(seed).permutation(len(features))
        seen: dict[str, int] = {}
        rank = np.zeros(len(features), int)  # of an image within its group
        for i in order:
            rank[i] = seen.setdefault(groups[i], 0)
            seen[groups[i]] += 1
        chosen = sorted(order[np.argsort(rank[order], kind="stable")][:most])
        return cls(_unit(np.asarray(features)[chosen]).astype(np.float32))

    def distance(self, feature: Array) -> float:
        """Return the Euclidean distance of one image's features [d], at unit length, to the k-th nearest reference."""
        differences = self.features.astype(np.float64) - _unit(np.asarray(feature, np.float64))
        squares = (differences**2).sum(axis=1)
        return float(np.sqrt(np.partition(squares, _NEIGHBOUR - 1)[_NEIGHBOUR - 1]))


def _unit(features: Array) -> Array:
    unit: Array = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), _TINY)
    return unit


@dataclass(frozen=True)
class Quantiles:
    """The distribution of a figure among validation images.

    Attributes:
      values: f64 [n], ascending.
      weights: f64 [n], which add up to 1.
    """

    values: Array
    weights: Array

    @classmethod
    def of(cls, values: Array, weights: Array) -> "Quantiles":
        """Sort the figures of validation images."""
        order = np.argsort(values, kind="stable")
        return cls(np.asarray(values, np.float64)[order], np.asarray(weights, np.float64)[order])

    def rank(self, value: float) -> float:
        """Return the weight of the smaller figures, and half that of equal ones: 0.5 for the median."""
        total = np.concatenate([[0.0], np.cumsum(self.weights)])
        below, upto = (np.searchsorted(self.values, value, side) for side in ("left", "right"))
        return float(np.clip((total[below] + total[upto]) / 2, 0, 1))

    def value(self, quantile: float) -> float:
        """Return the least figure whose rank, counted with all equal ones, reaches a quantile."""
        reached = np.searchsorted(np.cumsum(self.weights), quantile - _TINY)
        return float(self.values[min(int(reached), len(self.values) - 1)])
