"""Losses: each takes soft targets and a mask and returns a weighted sum and its weight; the caller divides once.

Shapes: b images, k classes. Padding has mask False and contributes to neither.
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
