"""Metrics over groups of images: patients or cases.

Shapes: n images, k classes, g groups; `*r` are leading axes, such as the resamples of a bootstrap.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num, Shaped

from histojax.evaluation.metrics import Array, float_weights, weighted_mean


class GroupScores(NamedTuple):
    """Predictions summarised per group (patient or case).

    Attributes:
      n_images: images per group, (g,).
      label: true class index, (g,); -1 where the images of the group carry several labels.
      fraction_correct: fraction of the group's images that are classified correctly, (g,).
      majority: class with the most votes of the group's images, (g,).
      mean_probability: mean over the group's images, (g, k).
    """

    n_images: Array
    label: Array
    fraction_correct: Array
    majority: Array
    mean_probability: Array


def group_scores(
    true: Shaped[np.ndarray, " n"], probabilities: Num[np.ndarray, "n k"], group: Int[np.ndarray, " n"], n_groups: int
) -> GroupScores:
    """Summarise predictions per group.

    An image votes for its most probable class. A tied vote goes to the tied class with the highest mean probability
    over the group's images, and then to the first.

    Args:
      true: class index of each image.
      probabilities: of each image and class.
      group: group index of each image; every group has at least one image.
      n_groups: number of groups, g.
    """
    true, probabilities = np.asarray(true), np.asarray(probabilities, np.float64)
    n_classes = probabilities.shape[1]
    predicted = probabilities.argmax(1)
    n_images = np.bincount(group, minlength=n_groups)
    labels, votes, summed = (np.zeros((n_groups, n_classes)) for _ in range(3))
    np.add.at(labels, (group, true), 1)
    np.add.at(votes, (group, predicted), 1)
    np.add.at(summed, group, probabilities)
    mean_probability = summed / n_images[:, None]
    tied = votes == votes.max(1, keepdims=True)
    return GroupScores(
        n_images=n_images,
        label=np.where((labels > 0).sum(1) == 1, labels.argmax(1), -1),
        fraction_correct=np.bincount(group, weights=predicted == true, minlength=n_groups) / n_images,
        majority=np.where(tied, mean_probability, -1.0).argmax(1),
        mean_probability=mean_probability,
    )


def recognition_rate(scores: GroupScores, weights: Num[np.ndarray, "*r g"] | None = None) -> Float[np.ndarray, "*r"]:
    """Mean over groups of the fraction of a group's images that are classified correctly.

    Spanhol et al. 2016 (BreakHis), "patient recognition rate".
    """
    return weighted_mean(scores.fraction_correct, weights)


def _single_label_accuracy(
    scores: GroupScores, predicted: Int[np.ndarray, " g"], weights: Num[np.ndarray, "*r g"] | None
) -> Float[np.ndarray, "*r"]:
    """Accuracy over the groups with a single label: no prediction is correct for a group with several."""
    weights = float_weights(weights, len(predicted))
    return weighted_mean(predicted == scores.label, weights * (scores.label >= 0))


def majority_accuracy(scores: GroupScores, weights: Num[np.ndarray, "*r g"] | None = None) -> Float[np.ndarray, "*r"]:
    """Fraction of groups whose majority vote is correct; groups with several labels are left out."""
    return _single_label_accuracy(scores, scores.majority, weights)


def mean_probability_accuracy(
    scores: GroupScores, weights: Num[np.ndarray, "*r g"] | None = None
) -> Float[np.ndarray, "*r"]:
    """Fraction of groups whose class of highest mean probability is correct; several labels are left out."""
    return _single_label_accuracy(scores, scores.mean_probability.argmax(1), weights)
