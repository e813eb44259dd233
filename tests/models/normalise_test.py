"""Normalisation of pixels, in numpy and in jax."""

import jax
import jax.numpy as jnp
import numpy as np

from histojax.models.ops.normalise import normalise


def test_numpy_and_jax_give_the_hand_computed_values() -> None:
    images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    expected = [[[[-1.0, -0.2, 2.0]]]]
    np.testing.assert_allclose(normalise(images, (0.5, 0.25, 0.5), (0.5, 0.25, 0.25)), expected, atol=1e-6)
    on_device = jax.jit(lambda x: normalise(x, (0.5, 0.25, 0.5), (0.5, 0.25, 0.25)))(jnp.asarray(images))
    assert on_device.dtype == jnp.float32
    np.testing.assert_allclose(on_device, expected, atol=1e-6)
