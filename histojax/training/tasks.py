"""What is learned: targets, loss, what validation sums up, what a prediction holds."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp

from histojax.training import losses, metrics


class Task(Protocol):
    """What a step asks of a task; b images, k classes or labels.

    Attributes:
      classes: names in the order of the logits.
      batch_key: of the truth in a batch.
      METRICS: what validation measures; the terminal shows the first three.
    """

    METRICS: ClassVar[tuple[str, ...]]

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def batch_key(self) -> str: ...  # noqa: D102

    @property
    def truth(self) -> jax.ShapeDtypeStruct:
        """Shape and type of an image's truth in a batch."""
        ...

    def targets(self, labels: jax.Array) -> jax.Array:
        """Training targets `f32 [b, k]` of a batch's truth."""
        ...

    def loss_weight(self, targets: jax.Array, mask: jax.Array) -> jax.Array:
        """What the loss sum is divided by."""
        ...

    def loss_sum(self, logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
        """The weighted sum of the images' losses."""
        ...

    def right(self, logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
        """How many images were answered right, `f32 []`; an image with several labels counts by their share."""
        ...

    def evaluation_sums(self, logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        """Sums over the images of a batch; `loss_sum` and `loss_weight` are among them."""
        ...

    def probabilities(self, logits: jax.Array) -> jax.Array:
        """`f32 [b, k]`."""
        ...


@dataclasses.dataclass(frozen=True)
class Multiclass:
    """One class an image; `label: i32 [b]`.

    Attributes:
      classes: names in the order of the logits.
      class_weights: one a class.
      loss_name: one of `LOSSES`.
      label_smoothing: ε of the training targets; validation has none.
      focal_gamma: γ of the focal loss.
    """

    LOSSES: ClassVar = ("cross_entropy", "focal")
    METRICS: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "gmean", "balanced_accuracy", "f1")
    batch_key: ClassVar = "label"

    classes: tuple[str, ...]
    class_weights: tuple[float, ...]
    loss_name: str = "cross_entropy"
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0

    def __post_init__(self) -> None:
        _check_loss(self.loss_name, self.LOSSES, self.label_smoothing)

    @property
    def truth(self) -> jax.ShapeDtypeStruct:
        """The number of its class."""
        return jax.ShapeDtypeStruct((), jnp.int32)

    def targets(self, labels: jax.Array) -> jax.Array:
        """Training targets `f32 [b, k]` of `labels: i32 [b]`."""
        return losses.smooth_one_hot(labels, len(self.classes), self.label_smoothing)

    def loss_weight(self, targets: jax.Array, mask: jax.Array) -> jax.Array:
        """What the loss sum is divided by."""
        return losses.target_weight(targets, mask, jnp.asarray(self.class_weights))

    def loss_sum(self, logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
        """The weighted sum of the images' losses."""
        weights = jnp.asarray(self.class_weights)
        if self.loss_name == "focal":
            return losses.focal(logits, targets, mask, weights, self.focal_gamma)
        return losses.cross_entropy(logits, targets, mask, weights)

    def right(self, logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
        """Images whose greatest logit is that of the greatest target."""
        return jnp.sum((logits.argmax(-1) == targets.argmax(-1)) * mask, dtype=jnp.float32)

    def evaluation_sums(self, logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        """Sums over the images of a batch: `loss_sum`, `loss_weight`, `confusion [k, k]`."""
        hard = losses.smooth_one_hot(labels, len(self.classes))
        return {
            "loss_sum": self.loss_sum(logits, hard, mask),
            "loss_weight": self.loss_weight(hard, mask),
            "confusion": metrics.confusion(logits, labels, mask),
        }

    def probabilities(self, logits: jax.Array) -> jax.Array:
        """`f32 [b, k]`, summing to 1."""
        return jax.nn.softmax(logits.astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class Multilabel:
    """Any number of labels an image; `labels: f32 [b, k]`, 0 or 1.

    Attributes:
      classes: names of the labels in the order of the logits.
      positive_weights: of the positives, one a label.
      loss_name: one of `LOSSES`, each of them of a sigmoid a label.
      label_smoothing: ε of the training targets; validation has none.
      focal_gamma: γ of the focal loss.
      asymmetric: γ₊, γ₋ and margin of the asymmetric loss (Ridnik et al. 2021).
    """

    LOSSES: ClassVar = ("cross_entropy", "focal", "asymmetric")
    METRICS: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "mean_average_precision", "f1", "subset_accuracy")
    batch_key: ClassVar = "labels"

    classes: tuple[str, ...]
    positive_weights: tuple[float, ...]
    loss_name: str = "cross_entropy"
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    asymmetric: tuple[float, float, float] = (0.0, 4.0, 0.05)

    def __post_init__(self) -> None:
        _check_loss(self.loss_name, self.LOSSES, self.label_smoothing)
        if min(self.asymmetric[:2]) < 0 or not 0 <= self.asymmetric[2] < 1:
            raise ValueError(f"loss.asymmetric_*={self.asymmetric}: the γ are at least 0 and the margin is in [0, 1)")

    @property
    def truth(self) -> jax.ShapeDtypeStruct:
        """0 or 1 for each label."""
        return jax.ShapeDtypeStruct((len(self.classes),), jnp.float32)

    def targets(self, labels: jax.Array) -> jax.Array:
        """Training targets `f32 [b, k]` of `labels: f32 [b, k]`."""
        return losses.smooth_labels(labels, self.label_smoothing)

    def loss_weight(self, targets: jax.Array, mask: jax.Array) -> jax.Array:
        """What the loss sum is divided by: images times labels."""
        return losses.label_weight(targets, mask)

    def loss_sum(self, logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
        """The sum over images and labels."""
        shape: Mapping[str, tuple[float, float, float]] = {
            "cross_entropy": (0.0, 0.0, 0.0),
            "focal": (self.focal_gamma, self.focal_gamma, 0.0),
            "asymmetric": self.asymmetric,
        }
        return losses.asymmetric(logits, targets, mask, jnp.asarray(self.positive_weights), *shape[self.loss_name])

    def right(self, logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
        """Images, each counted by the share of its labels that a threshold of 0.5 gets right."""
        return jnp.sum(jnp.mean((logits >= 0) == (targets >= 0.5), axis=-1, dtype=jnp.float32) * mask)

    def evaluation_sums(self, logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        """Sums over the images of a batch: `loss_sum`, `loss_weight`; metrics need the probabilities themselves."""
        return {"loss_sum": self.loss_sum(logits, labels, mask), "loss_weight": self.loss_weight(labels, mask)}

    def probabilities(self, logits: jax.Array) -> jax.Array:
        """`f32 [b, k]`, each in 0 … 1 by itself."""
        return jax.nn.sigmoid(logits.astype(jnp.float32))


def _check_loss(name: str, known: tuple[str, ...], smoothing: float) -> None:
    if name not in known:
        raise ValueError(f"loss.name='{name}' is not one of {', '.join(known)}")
    if not 0 <= smoothing < 1:
        raise ValueError(f"loss.label_smoothing={smoothing} is not in [0, 1)")
