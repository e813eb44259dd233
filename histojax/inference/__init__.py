"""A trained model asked about images: a checkpoint in, probabilities out.

`from histojax.inference import Predictor` imports jax; the rest of this package, which looks for images, must not, so
the name is fetched when it is asked for.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "Predictor":
        from histojax.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'histojax.inference' has no attribute '{name}'")
