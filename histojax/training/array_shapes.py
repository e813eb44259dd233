"""Comparison of the arrays that a checkpoint stores with those that a model has."""

from typing import Any

import jax
import numpy as np


def differences(stored: Any, wanted: Any) -> list[str]:
    """Describe every array that is missing, unexpected or of another shape; random keys are left out.

    Args:
      stored: tree of whatever has a shape, as it was saved.
      wanted: tree of the arrays that are needed.
    """
    saved, expected = _shapes(stored), _shapes(wanted)
    return [
        *(f"missing {path} {expected[path]}" for path in expected if path not in saved),
        *(f"unexpected {path} {saved[path]}" for path in saved if path not in expected),
        *(
            f"{path} is {saved[path]}, the model has {expected[path]}"
            for path in expected
            if path in saved and saved[path] != expected[path]
        ),
    ]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in flat
        if hasattr(leaf, "shape") and not _is_key(leaf)
    }


def _is_key(leaf: Any) -> bool:
    """Return whether a leaf may be a random key: those are stored as plain integers with one more axis."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is None or jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) or np.dtype(dtype) == np.uint32
