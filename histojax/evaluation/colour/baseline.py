"""Classifiers on fixed features: logistic regression and a random forest, as scikit-learn has them."""

import warnings

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from histojax.evaluation.metrics import Array

COLOUR_C = 0.1  # inverse strength of the penalty on colour and texture; fixed, so that it needs no validation images
_MAX_ITERATIONS = 10_000
_TREES = 500


def logistic(train: Array, labels: Array, test: Array, n_classes: int, *, C: float) -> Array:
    """Fit an L2-penalised logistic regression on standardised features, with balanced class weights.

    Args:
      train: features of the training images, [n, d].
      labels: their class indices, (n,).
      test: features of the images to classify, [m, d].
      n_classes: number of classes, k; a class without training images gets the probability 0.
      C: inverse strength of the penalty.

    Returns:
      Probabilities, f64 [m, k].
    """
    scaler = StandardScaler().fit(np.asarray(train, np.float64))
    model = LogisticRegression(C=C, class_weight="balanced", max_iter=_MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a weak penalty on separable images has no optimum
        model.fit(scaler.transform(np.asarray(train, np.float64)), labels)
    return _placed(model.predict_proba(scaler.transform(np.asarray(test, np.float64))), model.classes_, n_classes)


def forest(train: Array, labels: Array, test: Array, n_classes: int, *, seed: int = 0) -> Array:
    """Fit a random forest of 500 trees with balanced class weights; arguments and result as for `logistic`."""
    model = RandomForestClassifier(_TREES, class_weight="balanced", random_state=seed, n_jobs=1)
    model.fit(train, labels)
    return _placed(model.predict_proba(test), model.classes_, n_classes)


def _placed(probabilities: Array, classes: Array, n_classes: int) -> Array:
    """Put the columns of a fitted model in their places among all classes."""
    out = np.zeros((len(probabilities), n_classes))
    out[:, classes] = probabilities
    return out
