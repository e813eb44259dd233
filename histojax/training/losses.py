"""Losses: each takes soft targets and a mask and returns a weighted sum and its weight; the caller divides once.

Shapes: b images, k classes or labels. Padding has mask False and contributes to neither.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def smooth_one_hot(labels: jax.Array, k: int, smoothing: float = 0.0) -> jax.Array:
    """Labels `i32 [b]` -> targets `f32 [b, k]`: 1 - ε on the label and ε/k everywhere (Szegedy et al. 2016)."""
    return jax.nn.one_hot(labels, k, dtype=jnp.float32) * (1 - smoothing) + smoothing / k


def target_weight(targets: jax.Array, mask: jax.Array, class_weights: jax.Array) -> jax.Array:
    """The denominator of the mean: sum over images of their targets' class weight."""
    return jnp.sum(jnp.sum(targets * class_weights[None], axis=-1) * mask)


def cross_entropy(logits: jax.Array, targets: jax.Array, mask: jax.Array, class_weights: jax.Array) -> jax.Array:
    """Sum over images of -Σ_k w_k t_k log p_k.

    Divided by `target_weight` it is PyTorch's weighted mean for hard labels.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.sum(jnp.sum(targets * class_weights[None] * log_p, axis=-1) * mask)


def focal(logits: jax.Array, targets: jax.Array, mask: jax.Array, class_weights: jax.Array, gamma: float) -> jax.Array:
    """Sum over images of -Σ_k w_k t_k (1 - p_k)^γ log p_k (Lin et al. 2017); γ = 0 is `cross_entropy`."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    # 1 - p by expm1, and away from 0 where the power's derivative is infinite for γ < 1
    rest = jnp.maximum(-jnp.expm1(log_p), 1e-12)
    return -jnp.sum(jnp.sum(targets * class_weights[None] * rest**gamma * log_p, axis=-1) * mask)


def smooth_labels(labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Labels 0 or 1 `f32 [b, k]` -> targets: ε/2 and 1 - ε/2."""
    return labels * (1 - smoothing) + smoothing / 2


def label_weight(targets: jax.Array, mask: jax.Array) -> jax.Array:
    """The denominator of a mean over images and labels: k times the images that count.

    Weights of the positives are not in it, as in PyTorch's `BCEWithLogitsLoss`.
    """
    return targets.shape[-1] * jnp.sum(mask, dtype=jnp.float32)


def asymmetric(
    logits: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    positive_weights: jax.Array,
    gamma_positive: float = 0.0,
    gamma_negative: float = 0.0,
    margin: float = 0.0,
) -> jax.Array:
    """Sum over images and labels of -[w t (1 - p)^γ₊ log p + (1 - t) q^γ₋ log(1 - q)], p = sigmoid, q = max(p - m, 0).

    Ridnik et al. 2021 (arXiv 2009.14119), equations 4 to 6. Equal γ and m = 0 make it the focal loss of every
    label, γ = 0 the sigmoid cross-entropy with positive weights w.
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
    # Away from 0, where the derivative of a power below 1 is infinite; and sigmoid(-x), for 1 - p loses its digits.
    if gamma_positive:
        positive = positive * jnp.maximum(jax.nn.sigmoid(-logits), 1e-12) ** gamma_positive
    if gamma_negative:
        negative = negative * jnp.maximum(shifted, 1e-12) ** gamma_negative
    terms = targets * positive_weights[None] * positive + (1 - targets) * negative
    return jnp.sum(jnp.sum(terms, axis=-1) * mask)


def positive_weights(kind: str, positives: Sequence[int], images: int) -> np.ndarray:
    """Weights of the positives of each label, `f32 [k]`.

    Args:
      kind: `none`: 1; `balanced`: negatives / positives, so that both sides of a label weigh the same.
      positives: training images that carry each label.
      images: all training images.

    Raises:
      ValueError: unknown kind; `balanced` with a label that no or every image carries.
    """
    n = np.asarray(positives, dtype=np.float64)
    if kind == "none":
        return np.ones(len(n), np.float32)
    if kind != "balanced":
        raise ValueError(f"loss.positive_weights='{kind}' is neither 'none' nor 'balanced'")
    if (n == 0).any() or (n == images).any():
        raise ValueError(
            f"loss.positive_weights=balanced: {images} training images carry the labels {n.astype(int).tolist()} "
            "times; each needs images with it and without: use 'none', or more data"
        )
    return ((images - n) / n).astype(np.float32)


def class_weights(kind: str, counts: Sequence[int], beta: float) -> np.ndarray:
    """Weights of the classes from their training counts, `f32 [k]`, on average 1.

    Args:
      kind: `none`; `inverse`: ∝ 1/n; `class_balanced`: ∝ (1 - β)/(1 - βⁿ), Cui et al. 2019, equation 4.
      counts: training images of each class, none of them 0.
      beta: β.

    Raises:
      ValueError: unknown kind, β out of (0, 1).
    """
    n = np.asarray(counts, dtype=np.float64)
    if kind == "none":
        weights = np.ones_like(n)
    elif kind == "inverse":
        weights = 1 / n
    elif kind == "class_balanced":
        if not 0 < beta < 1:
            raise ValueError(f"loss.class_balanced_beta={beta} is not in (0, 1)")
        weights = (1 - beta) / -np.expm1(n * np.log(beta))
    else:
        raise ValueError(f"loss.class_weights='{kind}' is not one of none, inverse, class_balanced")
    return (weights / weights.mean()).astype(np.float32)
