"""Unstable jax APIs that the kernels use: they exist and behave as expected, interpreted on a CPU."""

import ast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from histojax.models.ops import kernels
from histojax.models.ops.compat import pl, triton
from tests.conftest import ROOT

OPS = ROOT / "histojax" / "models" / "ops"


@pytest.mark.parametrize("path", sorted(OPS.parent.rglob("*.py")), ids=lambda path: path.stem)
def test_unstable_modules_are_imported_in_one_place_and_their_names_exist(path):
    tree = ast.parse(path.read_text())
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    if path.name != "compat.py":
        assert not [name for name in imported if name.startswith(("jax.experimental", "jax._src", "flax.nnx."))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("pl", "triton"):
            assert hasattr({"pl": pl, "triton": triton}[node.value.id], node.attr), node.attr


def test_a_kernel_loads_stores_and_multiplies_with_a_mask():
    def kernel(x_ref, out_ref):
        column = jnp.arange(16)[None, :]
        row = (pl.program_id(0) * 16 + jnp.arange(16))[:, None]
        x = triton.load(x_ref.at[row, column], mask=row < 20, other=0.0)
        triton.store(out_ref.at[row, column], triton.dot(x, x), mask=row < 20)

    x = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)
    assert pl.next_power_of_2(20) == 32
    shape = jax.ShapeDtypeStruct((32, 16), jnp.float32)
    found = kernels.call(kernel, warps=4, stages=1, grid=(2,), out_shape=shape)(x)
    rest = np.where(np.arange(16)[:, None] < 4, x[16:], 0)
    np.testing.assert_allclose(found[:16], x[:16] @ x[:16], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[16:20], (rest @ rest)[:4], rtol=1e-4, atol=1e-5)
