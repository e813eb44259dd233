"""What is learned: targets, loss, what validation sums up, what a prediction holds."""

import dataclasses

import jax
import jax.numpy as jnp

from histojax import losses, metrics

LOSSES = ("cross_entropy", "focal")


@dataclasses.dataclass(frozen=True)
class Multiclass:
    """One class an image.

    Attributes:
      classes: names in the order of the logits.
      class_weights: one a class.
      loss_name: one of `LOSSES`.
      label_smoothing: ε of the training targets; validation has none.
      focal_gamma: γ of the focal loss.
    """

    classes: tuple[str, ...]
    class_weights: tuple[float, ...]
    loss_name: str = "cross_entropy"
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0

    def __post_init__(self) -> None:
        if self.loss_name not in LOSSES:
            raise ValueError(f"loss.name='{self.loss_name}' is not one of {', '.join(LOSSES)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"loss.label_smoothing={self.label_smoothing} is not in [0, 1)")

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
