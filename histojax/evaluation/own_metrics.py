"""Metrics of one's own, computed from the table of predictions with the same intervals as ours."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from histojax.core.errors import RunError
from histojax.core.plugins import Registry, blaming, described, qualified_name
from histojax.evaluation.metrics import Array
from histojax.evaluation.summary_blocks import Key, Statistic

# The names of our metrics over images, patients and cases.
RESERVED = (
    "accuracy", "average_precision", "balanced_accuracy", "brier", "ece", "f1", "f1_macro", "f1_micro", "gmean",
    "hamming_loss", "iba", "log_loss", "majority_accuracy", "mean_average_precision", "mean_probability_accuracy",
    "auroc", "auroc_macro", "average_precision_macro", "precision", "precision_macro", "precision_micro", "recall",
    "recall_macro", "recall_micro", "recognition_rate", "subset_accuracy",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Metric:
    """A metric of one's own; `evaluation.metrics` selects it.

    Attributes:
      name: an entry of `evaluation.metrics`, and the name of the figure in results.
      function: `function(truth, probabilities, groups)` returns one number; nan means that it is undefined.
        `truth: i64 [n]` are class indices, or with several labels `bool [n, k]`; `probabilities: f64 [n, k]` are in the
        order of the classes; `groups: i64 [n]` number the patient (else slide, source image or image) of each image.
        The function is called for the images of a split, and for each bootstrap resample of their patients; a patient
        drawn twice is two groups.
    """

    name: str
    function: Callable[[Array, Array, Array], float]


REGISTRY = Registry(Metric, "metric", "histojax.metrics", reserved=RESERVED)
register = REGISTRY.register


def find(names: Sequence[str]) -> list[Metric]:
    """Return registered metrics.

    Raises:
      RunError: an unknown name.
    """
    try:
        return [REGISTRY.find(name) for name in names]
    except ValueError as error:
        raise RunError(f"evaluation.metrics: {error}") from None


def check(names: Sequence[str], n_classes: int, several_labels: bool) -> None:
    """Try metrics on a few made-up images, with images of all classes or of one, before anything is trained.

    Raises:
      RunError: an unknown name, or a function that fails or does not return a number; the message names it.
    """
    metrics = find(names)
    rng, n = np.random.default_rng(0), 4 * n_classes
    probabilities = rng.dirichlet(np.ones(n_classes), n)
    for classes in (np.arange(n) % n_classes, np.zeros(n, np.int64)):
        truth = classes[:, None] == np.arange(n_classes) if several_labels else classes
        for metric in metrics:
            compute(metric, truth, probabilities, np.arange(n) // 2)


def compute(metric: Metric, truth: Array, probabilities: Array, groups: Array) -> float:
    """Call a metric's function.

    Raises:
      RunError: the function fails, or does not return a number; the message names it.
    """
    with blaming(f"evaluation.metrics: {metric.name}", metric.function):
        value = metric.function(truth, probabilities, groups)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise RunError(
            f"evaluation.metrics: {metric.name}: {qualified_name(metric.function)} returned {described(value)}; "
            "it must return one number, and nan where it is undefined"
        ) from None


def with_own(
    statistic: Statistic, metrics: Sequence[Metric], truth: Array, probabilities: Array, unit: Array, n_units: int
) -> Statistic:
    """Add metrics to a statistic over unit weights (r, n_units), under the keys ("image", name).

    Args:
      statistic: computes our metrics.
      metrics: the metrics to add.
      truth: as a metric's function takes it, (n,) or (n, k).
      probabilities: (n, k).
      unit: unit index of each image, (n,).
      n_units: number of units.
    """
    if not metrics:
        return statistic
    by_unit = np.argsort(unit, kind="stable")  # the images of each unit, one unit after the other
    sizes = np.bincount(unit, minlength=n_units)
    starts = np.cumsum(sizes) - sizes

    def extended(weights: Array) -> dict[Key, Array]:
        values = np.empty((len(metrics), len(weights)))
        for column, row in enumerate(weights):
            drawn = np.repeat(np.arange(n_units), row.astype(np.int64))
            groups = np.repeat(np.arange(len(drawn)), sizes[drawn])
            ends = np.cumsum(sizes[drawn])
            images = by_unit[np.arange(len(groups)) + np.repeat(starts[drawn] - ends + sizes[drawn], sizes[drawn])]
            for i, metric in enumerate(metrics):
                values[i, column] = compute(metric, truth[images], probabilities[images], groups)
        return statistic(weights) | {("image", metric.name): values[i] for i, metric in enumerate(metrics)}

    return extended
