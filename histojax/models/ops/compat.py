"""The unstable interfaces of jax that the models use: Pallas and its Triton backend.

Import this module inside functions or from modules that are themselves imported lazily: not every jax has Triton. An
upgrade of jax that changes one of these names fails in tests/models/compat_test.py.
"""

from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

__all__ = ["pl", "triton"]
