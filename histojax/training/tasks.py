"""Tasks: training targets, the loss, and the sums per batch that validation adds up and divides."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from histojax.core.suggestions import did_you_mean
from histojax.training import losses


class Task(Protocol):
    """What a training or evaluation step needs; b images, k classes or labels. Padding has mask False.

    Attributes:
      classes: names in the order of the logits.
      batch_key: key of the labels in a batch.
      METRICS: names of the validation metrics; the terminal shows the first three.
    """

    METRICS: ClassVar[tuple[str, ...]]

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def batch_key(self) -> str: ...  # noqa: D102

    @property
    def label_spec(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one image's label in a batch."""
        ...

    @property
    def loss_weights(self) -> Any:
        """Weights in the loss, `f32 [k]`: of each class, or of each label's positive images."""
        ...

    def weighted(self, loss_weights: Float[Array, " k"]) -> "Task":
        """Return the task with other weights in the loss."""
        ...

    def targets(self, labels: Num[Array, "b ..."]) -> Float[Array, "b k"]:
        """Return the training targets for a batch's labels."""
        ...

    def loss_weight(self, targets: Float[Array, "b k"], mask: Bool[Array, " b"]) -> Float[Array, ""]:
        """Return the divisor of `loss_sum`."""
        ...

    def loss_sum(
        self, logits: Float[Array, "b k"], targets: Float[Array, "b k"], mask: Bool[Array, " b"]
    ) -> Float[Array, ""]:
        """Return the sum of the images' weighted losses."""
        ...

    def num_correct(
        self, logits: Float[Array, "b k"], targets: Float[Array, "b k"], mask: Bool[Array, " b"]
    ) -> Float[Array, ""]:
        """Return the number of correct images; with several labels, an image counts by its fraction of correct ones."""
        ...

    def evaluation_sums(
        self, logits: Float[Array, "b k"], labels: Num[Array, "b ..."], mask: Bool[Array, " b"]
    ) -> dict[str, Array]:
        """Return sums over the images of a batch, `loss_sum` and `loss_weight` among them."""
        ...

    def probabilities(self, logits: Float[Array, "b k"]) -> Float[Array, "b k"]:
        """Return the probabilities in float32."""
        ...


@dataclasses.dataclass(frozen=True)
class Multiclass:
    """One class per image; a batch holds `label: i32 [b]`.

    Attributes:
      classes: names in the order of the logits.
      class_weights: the weight of each class in the loss.
      loss_name: one of `LOSSES`, or a registered one.
      label_smoothing: ε of the training targets; validation does not smooth.
      focal_gamma: γ of the focal loss.
    """

    LOSSES: ClassVar[tuple[str, ...]] = ("cross_entropy", "focal")
    METRICS: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "gmean", "balanced_accuracy", "f1")
    batch_key: ClassVar[str] = "label"

    classes: tuple[str, ...]
    class_weights: Any  # a tuple, or an array within the compiled step
    loss_name: str = "cross_entropy"
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0

    def __post_init__(self) -> None:
        _check(self)

    @property
    def label_spec(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one image's label: the number of its class."""
        return jax.ShapeDtypeStruct((), jnp.int32)

    @property
    def loss_weights(self) -> Any:
        """The class weights, `f32 [k]`."""
        return self.class_weights

    def weighted(self, loss_weights: Float[Array, " k"]) -> "Multiclass":
        """Return the task with other class weights."""
        return dataclasses.replace(self, class_weights=loss_weights)

    def targets(self, labels: Int[Array, " b"]) -> Float[Array, "b k"]:
        """Return the smoothed one-hot targets of class numbers."""
        return losses.smooth_one_hot(labels, len(self.classes), self.label_smoothing)

    def loss_weight(self, targets: Float[Array, "b k"], mask: Bool[Array, " b"]) -> Float[Array, ""]:
        """Return the divisor of `loss_sum`: the sum of the targets' class weights."""
        return jnp.sum(losses.target_weight(targets, jnp.asarray(self.class_weights)) * mask)

    def loss_sum(
        self, logits: Float[Array, "b k"], targets: Float[Array, "b k"], mask: Bool[Array, " b"]
    ) -> Float[Array, ""]:
        """Return the sum of the images' weighted losses."""
        weights = jnp.asarray(self.class_weights)
        if self.loss_name == "focal":
            values = losses.focal(logits, targets, weights, self.focal_gamma)
        elif self.loss_name == "cross_entropy":
            values = losses.cross_entropy(logits, targets, weights)
        else:
            values = losses.own(self.loss_name, logits, targets, weights)
        return jnp.sum(values * mask)

    def num_correct(
        self, logits: Float[Array, "b k"], targets: Float[Array, "b k"], mask: Bool[Array, " b"]
    ) -> Float[Array, ""]:
        """Return the number of images whose largest logit is at the largest target."""
        return jnp.sum((logits.argmax(-1) == targets.argmax(-1)) * mask, dtype=jnp.float32)

    def evaluation_sums(
        self, logits: Float[Array, "b k"], labels: Int[Array, " b"], mask: Bool[Array, " b"]
    ) -> dict[str, Array]:
        """Return sums over the images of a batch: `loss_sum`, `loss_weight`, `confusion [k, k]`."""
        targets = losses.smooth_one_hot(labels, len(self.classes))
        return {
            "loss_sum": self.loss_sum(logits, targets, mask),
            "loss_weight": self.loss_weight(targets, mask),
            "confusion": _confusion(logits, labels, mask),
        }

    def probabilities(self, logits: Float[Array, "b k"]) -> Float[Array, "b k"]:
        """Return the softmax in float32; each row sums to 1."""
        return jax.nn.softmax(logits.astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class Multilabel:
    """Any number of labels per image; a batch holds `labels: f32 [b, k]`, each 0 or 1.

    Attributes:
      classes: names of the labels in the order of the logits.
      positive_weights: the weight of each label's positive images in the loss.
      loss_name: one of `LOSSES`, each of which applies to the sigmoid of every label, or a registered one.
      label_smoothing: ε of the training targets; validation does not smooth.
      focal_gamma: γ of the focal loss.
      asymmetric: γ₊, γ₋ and margin of the asymmetric loss (Ridnik et al. 2021).
    """

    LOSSES: ClassVar[tuple[str, ...]] = ("cross_entropy", "focal", "asymmetric")
    METRICS: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "mean_average_precision", "f1", "subset_accuracy")
    batch_key: ClassVar[str] = "labels"

    classes: tuple[str, ...]
    positive_weights: Any  # a tuple, or an array within the compiled step
    loss_name: str = "cross_entropy"
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    asymmetric: tuple[float, float, float] = (0.0, 4.0, 0.05)

    def __post_init__(self) -> None:
        _check(self)
        if min(self.asymmetric[:2]) < 0 or not 0 <= self.asymmetric[2] < 1:
            raise ValueError(
                f"loss.asymmetric_*={self.asymmetric}: both gammas must be at least 0 and the margin in [0, 1)"
            )

    @property
    def label_spec(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one image's labels: 0 or 1 for each."""
        return jax.ShapeDtypeStruct((len(self.classes),), jnp.float32)

    @property
    def loss_weights(self) -> Any:
        """The positive weights, `f32 [k]`."""
        return self.positive_weights

    def weighted(self, loss_weights: Float[Array, " k"]) -> "Multilabel":
        """Return the task with other positive weights."""
        return dataclasses.replace(self, positive_weights=loss_weights)

    def targets(self, labels: Float[Array, "b k"]) -> Float[Array, "b k"]:
        """Return the smoothed targets."""
        return losses.smooth_labels(labels, self.label_smoothing)

    def loss_weight(self, targets: Float[Array, "b k"], mask: Bool[Array, " b"]) -> Float[Array, ""]:
        """Return the divisor of `loss_sum`: k times the number of images.

        The positive weights do not enter it, as in PyTorch's `BCEWithLogitsLoss`.
        """
        return targets.shape[-1] * jnp.sum(mask, dtype=jnp.float32)

    def loss_sum(
        self, logits: Float[Array, "b k"], targets: Float[Array, "b k"], mask: Bool[Array, " b"]
    ) -> Float[Array, ""]:
        """Return the sum of the losses over images and labels."""
        shape: Mapping[str, tuple[float, float, float]] = {
            "cross_entropy": (0.0, 0.0, 0.0),
            "focal": (self.focal_gamma, self.focal_gamma, 0.0),
            "asymmetric": self.asymmetric,
        }
        weights = jnp.asarray(self.positive_weights)
        if self.loss_name in shape:
            values = losses.asymmetric(logits, targets, weights, *shape[self.loss_name])
        else:
            values = losses.own(self.loss_name, logits, targets, weights)
        return jnp.sum(values * mask)

    def num_correct(
        self, logits: Float[Array, "b k"], targets: Float[Array, "b k"], mask: Bool[Array, " b"]
    ) -> Float[Array, ""]:
        """Return the sum of each image's fraction of labels that are correct at a threshold of 0.5."""
        return jnp.sum(jnp.mean((logits >= 0) == (targets >= 0.5), axis=-1, dtype=jnp.float32) * mask)

    def evaluation_sums(
        self, logits: Float[Array, "b k"], labels: Float[Array, "b k"], mask: Bool[Array, " b"]
    ) -> dict[str, Array]:
        """Return sums over the images of a batch: `loss_sum`, `loss_weight`; metrics need the probabilities."""
        return {"loss_sum": self.loss_sum(logits, labels, mask), "loss_weight": self.loss_weight(labels, mask)}

    def probabilities(self, logits: Float[Array, "b k"]) -> Float[Array, "b k"]:
        """Return the sigmoid of each logit in float32."""
        return jax.nn.sigmoid(logits.astype(jnp.float32))


def _confusion(logits: Float[Array, "b k"], labels: Int[Array, " b"], mask: Bool[Array, " b"]) -> Float[Array, "k k"]:
    """Count images by true class (rows) and class of the largest logit (columns); padding is not counted."""
    k = logits.shape[-1]
    true = jax.nn.one_hot(labels, k, dtype=jnp.float32) * mask[:, None]
    predicted = jax.nn.one_hot(logits.argmax(-1), k, dtype=jnp.float32)
    return true.T @ predicted


def check_loss(name: str, task: type[Multiclass] | type[Multilabel]) -> None:
    """Check that a task has a loss of this name, or that one is registered for it.

    Raises:
      ValueError: neither; the message lists the names.
    """
    if name in task.LOSSES:
        return
    several = task is Multilabel
    registered = [other for other in losses.REGISTRY.names() if losses.REGISTRY.find(other).several_labels >= several]
    if name not in registered:
        known = [*task.LOSSES, *registered]
        hint = "" if name not in losses.REGISTRY.items else f"; {name} is for one class per image"
        raise ValueError(
            f"loss.name='{name}' is not one of {', '.join(known)}{did_you_mean(name, known)}{hint}; "
            "the field `plugins` names modules that register others"
        )


def _check(task: Multiclass | Multilabel) -> None:
    """Check the smoothing of a task, and its loss, without computing it."""
    check_loss(task.loss_name, type(task))
    if task.loss_name not in task.LOSSES:
        k = len(task.classes)
        row = jax.ShapeDtypeStruct((k + 1, k), jnp.float32)  # not square, so that no axis passes for the other
        jax.eval_shape(task.loss_sum, row, row, jax.ShapeDtypeStruct((k + 1,), bool))
    if not 0 <= task.label_smoothing < 1:
        raise ValueError(f"loss.label_smoothing={task.label_smoothing} is not in [0, 1)")
