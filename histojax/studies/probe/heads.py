"""Heads on frozen features: L2 logistic regression, nearest neighbours, and SimpleShot."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from sklearn.metrics import f1_score

from histojax.evaluation import metrics
from histojax.evaluation.colour.baseline import logistic
from histojax.evaluation.metrics import Array

C_GRID = tuple(10.0**power for power in range(-5, 3))
FALLBACK_C = 1e-3  # where no images can choose
K_GRID = (1, 3, 5, 10, 20, 30, 40, 50)
SHOTS, SUPPORT_SETS = 16, 1000
_Setting = TypeVar("_Setting", int, float)
_CHUNK = 50  # support sets per matrix product


@dataclasses.dataclass(frozen=True)
class Problem:
    """The images of one fold.

    Attributes:
      features: f32 [n, d], of every image of the table.
      labels: class index of every image, i64 [n].
      n_classes: number of classes.
      train: positions to fit on.
      test: positions to predict.
      choosing: pairs of positions to fit on and to choose a setting on.
    """

    features: Array
    labels: Array
    n_classes: int
    train: Array
    test: Array
    choosing: Sequence[tuple[Array, Array]]


def linear(problem: Problem, C: float | None = None) -> tuple[Array, dict[str, float]]:
    """Fit a logistic regression; C is the one of `C_GRID` with the least balanced log loss on the choosing images.

    Args:
      problem: the images.
      C: inverse strength of the penalty; None: chosen.

    Returns:
      Probabilities of the test images, f64 [m, k], and the C.
    """

    def fit(train: Array, test: Array, strength: float) -> Array:
        x, labels = problem.features, problem.labels[train]
        return logistic(x[train], labels, x[test], problem.n_classes, C=strength)

    if C is None:
        C = _choose(problem, C_GRID, fit, _negative_balanced_log_loss) if problem.choosing else FALLBACK_C
    return fit(problem.train, problem.test, C), {"C": C}


def knn(problem: Problem) -> tuple[Array, dict[str, float]]:
    """Classify by the majority of the nearest training images (cosine); the smallest class index wins a tie.

    k is the first of `K_GRID` with the best macro F1 on the choosing images, as in THUNDER.

    Returns:
      Fractions of the votes for each test image, f64 [m, k], and the k.
    """

    def votes(train: Array, test: Array, k: int) -> Array:
        x = problem.features
        return neighbour_votes(x[train], problem.labels[train], x[test], problem.n_classes, k)

    grid = [k for k in K_GRID if k <= min(map(len, (problem.train, *(fit for fit, _ in problem.choosing))))]
    k = _choose(problem, grid, votes, _macro_f1) if problem.choosing else 1
    return votes(problem.train, problem.test, k), {"k": k}


def neighbour_votes(train: Array, labels: Array, test: Array, n_classes: int, k: int) -> Array:
    """Return the fraction of the k nearest training images, by cosine, in each class, f64 [m, n_classes]."""
    similarity = _unit(test) @ _unit(train).T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    counts: Array = (labels[nearest][..., None] == np.arange(n_classes)).sum(1) / k
    return counts


def simpleshot(problem: Problem, seed: int = 0) -> tuple[Array, dict[str, float]]:
    """Classify by the majority over 1,000 support sets of 16 training images per class (Wang et al. 2019).

    Returns:
      Fractions of the votes for each test image, f64 [m, k], and the number of images per class of a support set.
    """
    labels = problem.labels[problem.train]
    present = np.unique(labels)
    shots = int(min(SHOTS, *(np.sum(labels == label) for label in present)))
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == label) for label in present]
    sets = np.stack(
        [np.stack([rng.choice(of_class, shots, replace=False) for of_class in members]) for _ in range(SUPPORT_SETS)]
    )
    x = problem.features.astype(np.float64)
    nearest = present[support_set_classes(x[problem.train], sets, x[problem.test])]
    votes = (nearest[..., None] == np.arange(problem.n_classes)).mean(0)
    return votes, {"shots": shots}


def support_set_classes(train: Array, sets: Array, test: Array) -> Array:
    """Return the class that each support set gives each image.

    The mean of a support set is subtracted from it and from the images; the class with the nearest mean by cosine wins.

    Args:
      train: features f64 [n, d].
      sets: positions of the support images, i64 [s, c, shots].
      test: features f64 [m, d].

    Returns:
      i64 [s, m], in 0 … c-1.
    """
    found = []
    for start in range(0, len(sets), _CHUNK):
        means = train[sets[start : start + _CHUNK]].mean(2)  # [s, c, d]
        centre = means.mean(1)  # of equally many images per class
        offsets = means - centre[:, None]
        # The length of an image's own vector is the same for all classes, so it need not divide.
        dots = np.einsum("md,scd->smc", test, offsets, optimize=True) - (centre[:, None] * offsets).sum(2)[:, None]
        found.append((dots / np.maximum(np.linalg.norm(offsets, axis=2)[:, None], 1e-12)).argmax(2))
    return np.concatenate(found)


def _unit(x: Array) -> Array:
    x = np.asarray(x, np.float64)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))


def _choose(
    problem: Problem,
    grid: Sequence[_Setting],
    predict: Callable[[Array, Array, _Setting], Array],
    score: Callable[[Array, Array], float],
) -> _Setting:
    """Return the first setting with the best score over all choosing images."""
    labels = np.concatenate([problem.labels[chosen_on] for _, chosen_on in problem.choosing])
    scores = [
        score(labels, np.concatenate([predict(fit, chosen_on, setting) for fit, chosen_on in problem.choosing]))
        for setting in grid
    ]
    return grid[int(np.argmax(scores))]


def _negative_balanced_log_loss(labels: Array, probabilities: Array) -> float:
    """Mean over the classes of each class's mean log loss, negated: higher is better."""
    terms = metrics.log_loss_terms(labels, probabilities)
    return -float(np.mean([terms[labels == label].mean() for label in np.unique(labels)]))


def _macro_f1(labels: Array, probabilities: Array) -> float:
    return float(f1_score(labels, probabilities.argmax(1), average="macro"))
