"""The robustness index of features: whether an image's neighbours share its class, or what should not matter.

Among the k nearest neighbours of all images by cosine, SO counts those of the same class and another confounder (such
as hospital, scanner or magnification), OS those of another class and the same confounder. The index is
ΣSO / Σ(SO + OS): 1 where features follow the class, 0 where they follow the confounder (PathoROB, Kömen et al. 2025,
arXiv 2507.17845). Images of the same patient or slide are never neighbours.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from histojax.evaluation import bootstrap, metrics
from histojax.evaluation.bootstrap import Estimate
from histojax.evaluation.metrics import Array

K = (1, 3, 5, 10, 20, 30, 40, 50)
_BLOCK = 1024  # images whose similarities to all others are in memory


@dataclasses.dataclass(frozen=True)
class Index:
    """A robustness index.

    Attributes:
      k: neighbours per image.
      index: with its interval over groups, whose neighbours stay those among all images; the value is None where no
        image has a neighbour that counts.
      support: fraction of images with a neighbour that counts. An index of little support speaks of few images.
      same_same: fraction of all neighbours with the same class and confounder, which do not count.
      other_other: fraction with another class and another confounder, which do not count.
      knn_balanced_accuracy: of the class by the majority of the k neighbours.
      by_k: the index at every k that was tried.
    """

    k: int
    index: Estimate
    support: float
    same_same: float
    other_other: float
    knn_balanced_accuracy: float
    by_k: dict[int, float | None]

    def to_json(self) -> dict[str, Any]:
        """The index as JSON values."""
        return dataclasses.asdict(self) | {"by_k": {str(k): value for k, value in self.by_k.items()}}


def robustness_index(
    features: Array,
    labels: Sequence[str],
    confounder: Sequence[str],
    groups: Sequence[str],
    *,
    k_values: Sequence[int] = K,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Index:
    """Compute the robustness index at the k whose neighbours predict the class best.

    Args:
      features: (n, d).
      labels: class of each image, (n,).
      confounder: of each image, (n,).
      groups: patient, slide or other group of each image, (n,); its images are not compared with one another.
      k_values: numbers of neighbours; the first one with the highest balanced accuracy is taken.
      n_resamples: of the bootstrap over groups.
      seed: of the bootstrap.

    Raises:
      ValueError: lengths differ, one class or one confounder only, or no k below the number of images.
    """
    (_, label), (_, source), (_, group) = (_codes(values) for values in (labels, confounder, groups))
    n = len(features)
    if not n == len(label) == len(source) == len(group):
        raise ValueError(f"{n} rows of features, {len(label)} labels, {len(source)} confounders, {len(group)} groups")
    for what, codes in (("label", label), ("confounder", source), ("group", group)):
        if codes.max() == 0:
            raise ValueError(f"all {n} images have the same {what}; the index needs two or more")
    tried = [k for k in dict.fromkeys(k_values) if 0 < k < n]
    if not tried:
        raise ValueError(f"no k of {', '.join(map(str, k_values))} is above 0 and below the {n} images")
    neighbours = _neighbours(np.asarray(features, np.float64), group, max(tried))
    found = neighbours >= 0
    same_label = found & (label[neighbours] == label[:, None])
    same_source = found & (source[neighbours] == source[:, None])
    so, os = same_label & ~same_source, found & ~same_label & same_source
    accuracies = {k: _knn_accuracy(label, neighbours[:, :k]) for k in tried}
    k = max(tried, key=lambda one: accuracies[one])  # the first of equal ones
    sums = bootstrap.unit_sums(np.stack([so[:, :k].sum(1), os[:, :k].sum(1)], 1), group, group.max() + 1)

    def statistic(weights: Array) -> dict[str, Array]:
        drawn = weights @ sums
        return {"index": metrics.divide(drawn[:, 0], drawn.sum(1))}

    estimates = bootstrap.intervals(statistic, len(sums), n_resamples=n_resamples, seed=seed)
    counted = max(int(found[:, :k].sum()), 1)
    return Index(
        k=k,
        index=estimates["index"],
        support=float((so | os)[:, :k].any(1).mean()),
        same_same=float((same_label & same_source)[:, :k].sum() / counted),
        other_other=float((found & ~same_label & ~same_source)[:, :k].sum() / counted),
        knn_balanced_accuracy=accuracies[k],
        by_k={one: _ratio(so[:, :one].sum(), os[:, :one].sum()) for one in tried},
    )


def _codes(values: Sequence[str]) -> tuple[list[str], Array]:
    """Number the values in the order in which they appear first, as the majority's ties are decided."""
    names = list(dict.fromkeys(values))
    place = {name: i for i, name in enumerate(names)}
    return names, np.array([place[value] for value in values], np.int64)


def _neighbours(features: Array, group: Array, k: int) -> Array:
    """Find the k nearest images of other groups by cosine, nearest first, (n, k); -1: there are fewer."""
    unit = features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-12)
    rows = []
    for start in range(0, len(unit), _BLOCK):
        similarity = unit[start : start + _BLOCK] @ unit.T
        similarity[group[start : start + _BLOCK, None] == group[None]] = -np.inf
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        rows.append(np.where(np.isfinite(np.take_along_axis(similarity, nearest, 1)), nearest, -1))
    return np.concatenate(rows)


def _knn_accuracy(label: Array, neighbours: Array) -> float:
    """Balanced accuracy of the majority of the neighbours; of equal classes, the one that appears first in the data."""
    found = neighbours >= 0
    votes = np.stack([(found & (label[neighbours] == one)).sum(1) for one in range(label.max() + 1)], 1)
    used = found.any(1)
    confusion = metrics.confusion_matrix(label[used], votes[used].argmax(1), votes.shape[1])
    recalls = metrics.recall(confusion)
    return float(np.nanmean(recalls))


def _ratio(so: int, os: int) -> float | None:
    return float(so / (so + os)) if so + os else None
