"""Classifiers on fixed features: logistic regression and a random forest, as scikit-learn has them."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from histojax.evaluation import comparison, predictions, results
from histojax.evaluation.metrics import Array

COLOUR_C = 0.1  # inverse strength of the penalty on colour and texture; fixed, so that it needs no validation images
_MAX_ITERATIONS = 10_000
_TREES = 500
_IMAGE_METRICS = ("accuracy", "balanced_accuracy", "gmean", "iba", "auroc")
_COMPARED = ("accuracy", "balanced_accuracy", "gmean", "auroc", "patient recognition_rate")


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


def beside(
    rows: pd.DataFrame,
    train: Array,
    labels: Array,
    test: Array,
    *,
    positive: str | None,
    n_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Evaluate colour and texture alone on the test images of a model, and the model's difference from it.

    Args:
      rows: the model's predictions of one split.
      train: features of the training images, f32 [n, d].
      labels: their class indices, in the order of the table's classes, (n,).
      test: features of the images in `rows`, f32 [m, d].
      positive: the positive class of two; None: the second.
      n_resamples: of the bootstrap.
      seed: of the bootstrap.

    Returns:
      `name`, `n_train`, `image` and `patient` (name -> estimate) and `differences` (the model's minus the baseline's).
    """
    classes = predictions.class_names(rows)
    probabilities = logistic(train, labels, test, len(classes), C=COLOUR_C)
    table = rows.assign(**{predictions.PREFIX + name: probabilities[:, i] for i, name in enumerate(classes)})
    (block,) = results.summarise(table, positive=positive, n_resamples=n_resamples, seed=seed).values()
    compared = comparison.compare(table, rows, positive=positive, n_resamples=n_resamples, seed=seed)["differences"]
    return {
        "name": "colour and texture alone",
        "n_train": len(train),
        "image": {name: block["image"][name] for name in _IMAGE_METRICS},
        "patient": {"recognition_rate": block["patient"]["recognition_rate"]} if "patient" in block else {},
        "differences": {name: estimate for name, estimate in compared.items() if name in _COMPARED},
    }


def _placed(probabilities: Array, classes: Array, n_classes: int) -> Array:
    """Put the columns of a fitted model in their places among all classes."""
    out = np.zeros((len(probabilities), n_classes))
    out[:, classes] = probabilities
    return out
