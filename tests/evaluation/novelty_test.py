"""Distances equal those of scipy and scikit-learn; quantiles and references are those worked out by hand."""

import numpy as np
import pytest
from scipy.spatial import distance
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from histojax.evaluation import bootstrap
from histojax.evaluation.novelty import Gaussian, Neighbours, Quantiles

RNG = np.random.default_rng(0)


def features(n: int, d: int) -> np.ndarray:
    return (RNG.normal(size=(n, d)) @ RNG.normal(size=(d, d)) + 3).astype(np.float32)


@pytest.mark.parametrize(("n", "d"), [(200, 12), (20, 30)], ids=["more images", "more features"])
def test_mahalanobis_is_that_of_scipy_with_the_covariance_of_scikit_learn(n: int, d: int) -> None:
    x, others = features(n, d), features(5, d)
    fitted, peer = Gaussian.fit(x), LedoitWolf().fit(x.astype(np.float64))
    assert 0 < peer.shrinkage_ < 1
    expected = [distance.mahalanobis(other, peer.location_, peer.precision_) for other in others]
    np.testing.assert_allclose([fitted.distance(other) for other in others], expected, rtol=1e-4)


def test_beyond_the_leading_directions_all_have_the_mean_variance() -> None:
    x, others = features(50, 30), features(5, 30)
    fitted, peer = Gaussian.fit(x, max_directions=4), LedoitWolf().fit(x.astype(np.float64))
    assert fitted.directions.shape == (4, 30)
    values, vectors = np.linalg.eigh(peer.covariance_)
    values[:-4] = values[:-4].mean()
    inverse = vectors @ np.diag(1 / values) @ vectors.T
    expected = [distance.mahalanobis(other, peer.location_, inverse) for other in others]
    np.testing.assert_allclose([fitted.distance(other) for other in others], expected, rtol=1e-4)


def test_equal_features_have_no_covariance() -> None:
    with pytest.raises(ValueError, match="all features are equal"):
        Gaussian.fit(np.ones((20, 3)))


def test_the_fifth_neighbour_is_that_of_scikit_learn() -> None:
    x, others = features(40, 8), features(6, 8)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, others)]
    expected = NearestNeighbors(n_neighbors=5).fit(unit[0]).kneighbors(unit[1])[0][:, 4]
    neighbours = Neighbours.choose(x, ["a"] * 40)
    np.testing.assert_allclose([neighbours.distance(other) for other in others], expected, rtol=1e-5)


def test_references_are_chosen_evenly_from_the_classes() -> None:
    groups = ["common"] * 90 + ["rare"] * 10
    x = np.array([[1.0, 0.0]] * 90 + [[0.0, 1.0]] * 10)
    assert Neighbours.choose(x, groups, most=20).features.sum(0).tolist() == [10, 10]
    assert Neighbours.choose(x, groups, most=40).features.sum(0).tolist() == [30, 10]
    some = features(30, 4)
    chosen = [Neighbours.choose(some, ["a"] * 30, seed=seed, most=8).features for seed in (0, 0, 1)]
    np.testing.assert_array_equal(chosen[0], chosen[1])
    assert not np.array_equal(chosen[0], chosen[2])


def test_each_patient_counts_the_same_in_quantiles() -> None:
    weights = bootstrap.equal_weights(np.array([0, 0, 2]))  # a patient of two images, and one of one
    assert weights.tolist() == [0.25, 0.25, 0.5]
    quantiles = Quantiles.of(np.array([2.0, 1.0, 10.0]), weights)
    ranks = {value: quantiles.rank(value) for value in (0, 1, 1.5, 2, 5, 10, 11)}
    assert ranks == {0: 0, 1: 0.125, 1.5: 0.25, 2: 0.375, 5: 0.5, 10: 0.75, 11: 1}
    assert [quantiles.value(q) for q in (0.25, 0.3, 0.5, 0.51, 0.99)] == [1, 2, 2, 10, 10]
