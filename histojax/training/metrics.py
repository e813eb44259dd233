"""Sums that the device keeps while it trains and validates; hosts turn them into metrics (histojax.evaluation)."""

import jax
import jax.numpy as jnp


def confusion(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Counts `f32 [k, k]`, rows the true class, columns the class of the greatest logit; padding counts nowhere."""
    k = logits.shape[-1]
    true = jax.nn.one_hot(labels, k, dtype=jnp.float32) * mask[:, None]
    predicted = jax.nn.one_hot(logits.argmax(-1), k, dtype=jnp.float32)
    return true.T @ predicted
