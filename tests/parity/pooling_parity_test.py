"""Pooling and its gradients against torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch.nn import functional

from histojax.models.ops import pooling
from tests.helpers.parity import to_torch

pytestmark = pytest.mark.parity

# Ours on (b, h, w, c), torch's on (b, c, h, w).
POOLINGS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "max_pool_2x2": (pooling.max_pool_2x2, lambda x: functional.max_pool2d(x, 2)),
    "avg_pool_2x2": (pooling.avg_pool_2x2, lambda x: functional.avg_pool2d(x, 2)),
    "max_pool_3x3_s1": (pooling.max_pool_3x3_s1, lambda x: functional.max_pool2d(x, 3, 1, 1)),
    "adaptive": (lambda x: pooling.adaptive_avg_pool(x, 7), lambda x: functional.adaptive_avg_pool2d(x, 7)),
}


# For the average over 7×7: smaller, equal, twice, and sizes with cells that overlap.
@pytest.mark.parametrize("size", [(2, 3), (7, 7), (14, 8), (9, 13), (10, 1)], ids=str)
@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_and_its_gradient_equal_torchs(name: str, size: tuple[int, int]) -> None:
    if name.endswith("2x2") and min(size) < 2:
        size = (10, 2)  # at least one whole window
    ours, theirs = POOLINGS[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    y, back = jax.vjp(ours, jnp.asarray(x))
    x_torch = to_torch(x).requires_grad_()
    y_torch = theirs(x_torch)
    np.testing.assert_allclose(y, y_torch.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6)
    cotangent = rng.normal(size=y.shape).astype(np.float32)
    y_torch.backward(to_torch(cotangent))
    expected = x_torch.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(back(jnp.asarray(cotangent))[0], expected, rtol=1e-4, atol=1e-5)
