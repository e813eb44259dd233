"""Losses per image and the weights in them, as equations on arrays.

Shapes: b images, k classes or labels. A loss returns one value per image; the task masks padding, sums, and divides
the sum once by the sum of the images' weights.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from histojax.core.errors import RunError
from histojax.core.plugins import Registry, blaming, described, qualified_name

# --- One class per image ------------------------------------------------------------------------------------


def smooth_one_hot(labels: Int[Array, " b"], k: int, smoothing: float = 0.0) -> Float[Array, "b k"]:
    """Return soft targets: 1 - ε + ε/k for the label and ε/k for the other classes (Szegedy et al. 2016).

    Args:
      labels: the class of each image.
      k: number of classes.
      smoothing: ε.
    """
    return jax.nn.one_hot(labels, k, dtype=jnp.float32) * (1 - smoothing) + smoothing / k


def target_weight(targets: Float[Array, "b k"], class_weights: Float[Array, " k"]) -> Float[Array, " b"]:
    """Return each image's weight in the mean: Σ_k w_k t_k."""
    return jnp.sum(targets * class_weights[None], axis=-1)


def cross_entropy(
    logits: Float[Array, "b k"], targets: Float[Array, "b k"], class_weights: Float[Array, " k"]
) -> Float[Array, " b"]:
    """Return -Σ_k w_k t_k log p_k of each image.

    The sum divided by the sum of `target_weight` is PyTorch's weighted mean for hard labels.

    Args:
      logits: the model's outputs; narrower types are computed in float32.
      targets: probabilities, hard or soft.
      class_weights: w.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.sum(targets * class_weights[None] * log_p, axis=-1)


def focal(
    logits: Float[Array, "b k"],
    targets: Float[Array, "b k"],
    class_weights: Float[Array, " k"],
    gamma: float,
) -> Float[Array, " b"]:
    """Return -Σ_k w_k t_k (1 - p_k)^γ log p_k of each image (Lin et al. 2017); γ = 0 is `cross_entropy`.

    Args:
      logits: the model's outputs; narrower types are computed in float32.
      targets: probabilities, hard or soft.
      class_weights: w.
      gamma: γ.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    # expm1 keeps the digits of 1 - p. The bound avoids 0, where the power's derivative is infinite for γ < 1.
    one_minus_p = jnp.maximum(-jnp.expm1(log_p), 1e-12)
    return -jnp.sum(targets * class_weights[None] * one_minus_p**gamma * log_p, axis=-1)


def inverse_frequency_weights(counts: Sequence[int]) -> np.ndarray:
    """Return class weights proportional to 1/n, `f32 [k]`, with mean 1.

    Args:
      counts: n, the training images of each class; none is 0.
    """
    return _with_mean_one(1 / np.asarray(counts, np.float64))


def class_balanced_weights(counts: Sequence[int], beta: float) -> np.ndarray:
    """Return class weights proportional to (1 - β)/(1 - βⁿ), `f32 [k]`, with mean 1 (Cui et al. 2019, equation 4).

    Args:
      counts: n, the training images of each class; none is 0.
      beta: β, in (0, 1).
    """
    return _with_mean_one((1 - beta) / -np.expm1(np.asarray(counts, np.float64) * np.log(beta)))


def _with_mean_one(weights: np.ndarray) -> np.ndarray:
    return np.asarray(weights / weights.mean(), np.float32)


# --- Any number of labels per image -------------------------------------------------------------------------


def smooth_labels(labels: Float[Array, "b k"], smoothing: float = 0.0) -> Float[Array, "b k"]:
    """Return soft targets for labels that are 0 or 1: ε/2 and 1 - ε/2.

    Args:
      labels: 0 or 1.
      smoothing: ε.
    """
    return labels * (1 - smoothing) + smoothing / 2


def asymmetric(
    logits: Float[Array, "b k"],
    targets: Float[Array, "b k"],
    positive_weights: Float[Array, " k"],
    gamma_positive: float = 0.0,
    gamma_negative: float = 0.0,
    margin: float = 0.0,
) -> Float[Array, " b"]:
    """Return -Σ_k [w t (1 - p)^γ₊ log p + (1 - t) q^γ₋ log(1 - q)] of each image, p = sigmoid, q = max(p - m, 0).

    Ridnik et al. 2021 (arXiv 2009.14119), equations 4 to 6. With equal γ and m = 0 it is the focal loss of each
    label, and with γ = 0 and m = 0 the sigmoid cross-entropy with positive weights w.

    Args:
      logits: the model's outputs; narrower types are computed in float32.
      targets: probability of each label, hard or soft.
      positive_weights: w, the weight of each label's positive images.
      gamma_positive: γ₊.
      gamma_negative: γ₋.
      margin: m.
    """
    logits = logits.astype(jnp.float32)
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    p = jax.nn.sigmoid(logits)
    positive, negative = -log_p, -log_not_p
    if margin:
        shifted = jnp.maximum(p - margin, 0.0)
        negative = -jnp.log1p(-shifted)
    else:
        shifted = p
    # The bounds avoid 0, where the derivative of a power below 1 is infinite. sigmoid(-x) keeps the digits of 1 - p.
    if gamma_positive:
        positive = positive * jnp.maximum(jax.nn.sigmoid(-logits), 1e-12) ** gamma_positive
    if gamma_negative:
        negative = negative * jnp.maximum(shifted, 1e-12) ** gamma_negative
    terms = targets * positive_weights[None] * positive + (1 - targets) * negative
    return jnp.sum(terms, axis=-1)


def balanced_positive_weights(positives: Sequence[int], images: int) -> np.ndarray:
    """Return negatives / positives of each label, `f32 [k]`, so that both sides of a label weigh the same.

    Args:
      positives: training images that carry each label; none is 0.
      images: all training images.
    """
    n = np.asarray(positives, np.float64)
    return ((images - n) / n).astype(np.float32)


# --- Losses of one's own ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Loss:
    """A loss of one's own; `loss.name` selects it.

    Attributes:
      name: value of `loss.name`.
      function: `function(logits, targets, class_weights)` returns the loss of each image, `f32 [b]`.
        `logits: f32 [b, k]` are the model's outputs, `targets: f32 [b, k]` probabilities, hard or soft, and
        `class_weights: f32 [k]` those of `loss.class_weights` or `loss.positive_weights`. A step divides the sum as it
        divides that of the cross-entropy: by the sum of `target_weight`, or with several labels by k times the number
        of images.
      several_labels: whether targets may be any number of labels per image, instead of one class.
    """

    name: str
    function: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    several_labels: bool = False


REGISTRY = Registry(Loss, "loss", "histojax.losses", reserved=("cross_entropy", "focal", "asymmetric"))
register = REGISTRY.register


def own(name: str, logits: jax.Array, targets: jax.Array, class_weights: jax.Array) -> jax.Array:
    """Compute a registered loss of each image, `f32 [b]`.

    Raises:
      RunError: the function fails, or does not return one number per image; the message names it.
    """
    function = REGISTRY.find(name).function
    with blaming(f"loss.name={name}", function):
        values = function(logits.astype(jnp.float32), targets, class_weights)
    b = len(logits)
    if getattr(values, "shape", None) != (b,) or not jnp.issubdtype(values.dtype, jnp.floating):
        raise RunError(
            f"loss.name={name}: {qualified_name(function)} returned {described(values)} for logits "
            f"{list(logits.shape)}; it must return one loss per image, float32 [{b}]"
        )
    return values.astype(jnp.float32)
