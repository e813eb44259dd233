"""Custom kernels for NVIDIA GPUs: conditions for using them, and the common call.

The kernels are written in Pallas and compiled by its Triton backend. jax does not split them across devices, so every
call goes through `sharded_call.sharded_call`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

from histojax.core.errors import RunError

SWITCH = "HISTOJAX_KERNELS"  # environment variable: "off" leaves everything to XLA
_MAX_POSITIONS = 64  # per window
_HEAD_SIZES = (16, 32, 64)
_MAX_CHANNELS = 8192
_MIN_CAPABILITY = 8.0  # compute capability: the first with products of bfloat16
_portable: ContextVar[bool] = ContextVar("portable", default=False)


@contextmanager
def disable_custom_kernels() -> Iterator[None]:
    """Trace without custom kernels, for a program that will run on other devices than this process's default ones."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def usable() -> bool:
    """Return whether models call custom kernels; evaluated each time a call is traced.

    Raises:
      RunError: the environment variable `SWITCH` is neither "on" nor "off".
    """
    return not _portable.get() and usable_here()


def usable_here() -> bool:
    """Return whether this process's default devices can run the kernels and the environment allows them."""
    if jax.default_backend() != "gpu":
        return False
    if (switch := os.environ.get(SWITCH, "on")) not in ("on", "off"):
        raise RunError(f"environment: {SWITCH}={switch!r} is not one of on, off")
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))  # not a number on AMD GPUs
    return switch == "on" and capability.replace(".", "", 1).isdigit() and float(capability) >= _MIN_CAPABILITY


def window_kernel_supports(dtype: Any, window: int, size: int) -> bool:
    """Return whether `window_attention` supports windows of this side and heads of this size.

    It supports 16-bit types only, because the matrix units would round float32 to TF32. The logits of one head stay in
    registers, and sizes are powers of two, like Triton's blocks.
    """
    fits = window**2 <= _MAX_POSITIONS and size in _HEAD_SIZES
    return fits and jnp.dtype(dtype).itemsize == 2 and usable()


def row_kernel_supports(dtype: Any, channels: int) -> bool:
    """Return whether `row_norm` supports rows of this type and length."""
    return channels <= _MAX_CHANNELS and jnp.dtype(dtype).itemsize <= 4 and usable()


def call(kernel: Callable[..., None], *, warps: int, stages: int, **given: Any) -> Callable[..., Any]:
    """Wrap a kernel in `pallas_call`. Without a GPU it is interpreted, which is slow and meant for tests."""
    # Imported here, because not every jax has Triton.
    from histojax.models.ops.compat import pl, triton

    parameters = triton.CompilerParams(num_warps=warps, num_stages=stages)
    interpret = jax.local_devices()[0].platform == "cpu"
    return pl.pallas_call(kernel, interpret=interpret, compiler_params=parameters, **given)
