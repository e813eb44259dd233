"""The workarounds for libraries: each test fails when an upgrade changes what they rely on."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from histojax.inference import compat


def test_a_retraced_program_computes_the_same_without_pad_and_calls() -> None:
    @jax.jit
    def function(x: jax.Array) -> jax.Array:
        x = jax.lax.pad(x, jnp.float32(2), ((0, 0, 0), (1, 2, 0), (-1, -1, 0)))
        return jax.nn.leaky_relu(jax.nn.relu(x) - 1, 0.3)  # relu has a gradient of its own

    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    traced = jax.make_jaxpr(function)(x)
    assert "pad" in str(traced)
    assert "custom_jvp_call" in str(traced)

    def retraced(x: jax.Array) -> jax.Array:
        return compat.retrace(traced.jaxpr, traced.consts, [x])[0]

    np.testing.assert_array_equal(retraced(x), function(x))
    program = str(jax.make_jaxpr(retraced)(x))
    for primitive in ("pad[", "jit[", "pjit[", "custom_jvp_call"):
        assert primitive not in program


def test_padding_between_values_is_rejected() -> None:
    traced = jax.make_jaxpr(lambda x: jax.lax.pad(x, 0.0, ((0, 0, 1),)))(jnp.ones(3))
    with pytest.raises(NotImplementedError, match="padding between values"):
        compat.retrace(traced.jaxpr, traced.consts, [jnp.ones(3)])


def test_the_converter_logs_under_these_names() -> None:
    pytest.importorskip("jax2onnx")
    for name in compat.CONVERTER_LOGGERS:
        assert any(known == name or known.startswith(f"{name}.") for known in logging.root.manager.loggerDict), name
