"""A model that compiles in a second, with what can depend on devices: batch statistics and dropout."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from histojax.models import ModelSpec, register
from histojax.models.ops.intermediates import tap
from histojax.models.ops.layers import Conv, Linear, global_avg_pool
from histojax.models.ops.norms import BatchNorm


@dataclass(frozen=True)
class MiniConfig:
    """Width of both layers, and the dropout rate before the classifier."""

    width: int = 32
    dropout: float = 0.1


class Mini(nnx.Module):
    """Patches of 8×8 pixels, BatchNorm, a dense layer."""

    def __init__(self, config: MiniConfig, *, num_classes: int, rngs: nnx.Rngs, dtype: Any = jnp.float32, remat: bool):
        del remat
        self.conv = Conv(3, config.width, (8, 8), strides=(8, 8), dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(config.width, dtype=dtype, rngs=rngs)
        self.hidden = Linear(config.width, config.width, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)
        self.head = Linear(config.width, num_classes, rngs=rngs)

    def feature_maps(self, x: jax.Array) -> dict[str, jax.Array]:
        return {"map": tap("map", jax.nn.relu(self.hidden(self.bn(self.conv(x)))))}

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.dropout(global_avg_pool(self.feature_maps(x)["map"]))).astype(jnp.float32)


SPEC = register(ModelSpec("mini", Mini, MiniConfig(), drop_options=("dropout",)))
