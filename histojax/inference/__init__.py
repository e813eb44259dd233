"""Predictions, explanations and exports of a trained model.

`from histojax.inference import Predictor` imports jax. Looking for images must not, so `Predictor` is loaded on first
use.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "Predictor":
        from histojax.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'histojax.inference' has no attribute '{name}'")
