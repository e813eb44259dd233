"""Attention against the plain formula and autodiff."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from histojax.models.ops.attention import attend


def plain(q, k, v, bias):
    logits = jnp.einsum("bwhqd,bwhkd->bwhqk", q, k) / q.shape[-1] ** 0.5
    return jnp.einsum(
        "bwhqk,bwhkd->bwhqd",
        jax.nn.softmax(logits if bias is None else logits + jnp.broadcast_to(bias, logits.shape)),
        v,
    )


@pytest.mark.parametrize("shape", [None, (4, 5, 5), (1, 4, 5, 5), (3, 4, 5, 5)])
def test_attention_and_gradients_equal_the_plain_formula_in_float64(shape):
    rng = np.random.default_rng(0)
    q, k, v, weights = rng.normal(size=(4, 2, 3, 4, 5, 6))
    bias = None if shape is None else rng.normal(size=shape)
    with jax.enable_x64(True):
        np.testing.assert_allclose(attend(q, k, v, bias), plain(q, k, v, bias), rtol=0, atol=1e-13)
        ours, exact = (
            jax.grad(lambda *args, f=f: jnp.sum(f(*args) * weights), (0, 1, 2, 3))(q, k, v, bias)
            for f in (attend, plain)
        )
        assert len(jax.tree.leaves(ours)) == 3 + (bias is not None)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_bfloat16_stores_bfloat16_weights_and_sums_the_bias_gradient_in_float32():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 3, 4, 5, 6)), jnp.bfloat16) for _ in range(3))
    bias = jnp.asarray(rng.normal(size=(4, 5, 5)), jnp.float32)
    y, back = jax.vjp(attend, q, k, v, bias)
    assert y.dtype == jnp.bfloat16
    kept = [leaf for leaf in jax.tree.leaves(back) if getattr(leaf, "shape", ()) == (2, 3, 4, 5, 5)]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16]
    gradients = back(jnp.ones_like(y))
    assert [one.dtype for one in gradients] == [jnp.bfloat16] * 3 + [jnp.float32]
    wide = [np.asarray(x, np.float32) for x in (q, k, v)]
    exact = jax.grad(lambda bias: plain(*wide, bias).sum())(bias)
    np.testing.assert_allclose(gradients[3], exact, rtol=0, atol=0.1)
