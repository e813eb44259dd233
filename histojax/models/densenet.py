"""DenseNet (Huang et al. 2016, arXiv 1608.06993), equal to torchvision's `densenet121`.

Names are torchvision's below its `features`, except for the lists: `denseblock{i+1}.denselayer{j+1}` is
`blocks/{i}/{j}` here and `transition{i+1}` is `transitions/{i}`. Its `classifier` is `head`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from histojax.models.naming.densenet import DENSENET
from histojax.models.ops.intermediates import tap
from histojax.models.ops.layers import Conv, Linear, at_least_float32, global_avg_pool, max_pool_3x3_s2
from histojax.models.ops.norms import BatchNorm
from histojax.models.ops.pooling import avg_pool_2x2
from histojax.models.registry import ModelSpec, TimmModel

_he_normal = jax.nn.initializers.he_normal()


@dataclass(frozen=True)
class DenseNetConfig:
    """Sizes of a DenseNet-BC; the defaults are DenseNet-121's (table 1 of the paper).

    A transition halves the channels (θ = 0.5).

    Attributes:
      growth_rate: channels that each layer adds to its input (k in the paper).
      block_sizes: number of layers in each of the four blocks.
      width: channels after the stem.
      bn_size: channels of a layer's bottleneck, in multiples of `growth_rate`.
      drop_rate: dropout rate after each layer.

    Raises:
      ValueError: a value out of range.
    """

    growth_rate: int = 32
    block_sizes: tuple[int, ...] = (6, 12, 24, 16)
    width: int = 64
    bn_size: int = 4
    drop_rate: float = 0.0

    def __post_init__(self) -> None:
        if len(self.block_sizes) != 4 or min(self.block_sizes) < 1:
            raise ValueError(f"block_sizes={self.block_sizes} is not four positive numbers")
        for name in ("growth_rate", "width", "bn_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a positive number")
        if not 0 <= self.drop_rate < 1:
            raise ValueError(f"drop_rate={self.drop_rate} is not in [0, 1)")

    def in_features(self, block: int) -> int:
        """Channels of the input of a block."""
        return self.width if block == 0 else self.out_features(block - 1) // 2

    def out_features(self, block: int) -> int:
        """Channels of the output of a block."""
        return self.in_features(block) + self.growth_rate * self.block_sizes[block]

    @property
    def num_features(self) -> int:
        """Channels of the last block's output."""
        return self.out_features(3)


class DenseLayer(nnx.Module):
    """k new channels from all earlier ones: BN, ReLU, 1×1, BN, ReLU, 3×3, dropout (section 3, "bottleneck layers").

    (b, h, w, c₁), (b, h, w, c₂), … -> (b, h, w, k), where the maps have `in_features` channels in total.
    """

    def __init__(self, config: DenseNetConfig, in_features: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        hidden, new = config.bn_size * config.growth_rate, config.growth_rate
        self.norm1 = BatchNorm(in_features, dtype=dtype, rngs=rngs)
        self.conv1 = Conv(in_features, hidden, (1, 1), kernel_init=_he_normal, dtype=dtype, rngs=rngs)
        self.norm2 = BatchNorm(hidden, dtype=dtype, rngs=rngs)
        self.conv2 = Conv(hidden, new, (3, 3), padding=((1, 1), (1, 1)), kernel_init=_he_normal, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(config.drop_rate, rngs=rngs)

    # The maps are separate arguments, so that rematerialisation stores each of them once. Concatenated, a block's
    # memory would grow with the square of its layers (Pleiss et al. 2017, arXiv 1707.06990).
    def __call__(self, *maps: jax.Array) -> jax.Array:
        """Map the block's input and the layers' outputs so far to `growth_rate` new channels."""
        x = self.conv1(jax.nn.relu(self.norm1(jnp.concatenate(maps, axis=-1))))
        x = self.conv2(jax.nn.relu(self.norm2(x)))
        return self.dropout(x)


class Transition(nnx.Module):
    """BN, ReLU, 1×1, average over 2×2: (b, h, w, c) -> (b, ⌊h/2⌋, ⌊w/2⌋, c / 2)."""

    def __init__(self, in_features: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        self.norm = BatchNorm(in_features, dtype=dtype, rngs=rngs)
        self.conv = Conv(in_features, in_features // 2, (1, 1), kernel_init=_he_normal, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (b, h, w, c) to (b, ⌊h/2⌋, ⌊w/2⌋, c / 2)."""
        return avg_pool_2x2(self.conv(jax.nn.relu(self.norm(x))))


_rematerialised = nnx.remat(DenseLayer.__call__)


class DenseNet(nnx.Module):
    """DenseNet: images (b, h, w, 3), already normalised, at least 32×32, to float32 logits (b, num_classes).

    `remat` recomputes each dense layer in the backward pass instead of storing its activations. The head computes in
    float32 whatever `dtype` is; with `dtype=float64` everything is float64.
    """

    def __init__(
        self,
        config: DenseNetConfig,
        *,
        num_classes: int,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.dtype = dtype
        self.remat = remat
        self.conv0 = Conv(
            3,
            config.width,
            (7, 7),
            strides=(2, 2),
            padding=((3, 3), (3, 3)),
            kernel_init=_he_normal,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm0 = BatchNorm(config.width, dtype=dtype, rngs=rngs)
        blocks, transitions = [], []
        for index, size in enumerate(config.block_sizes):
            if index:
                transitions.append(Transition(config.out_features(index - 1), dtype=dtype, rngs=rngs))
            first = config.in_features(index)
            layers = [DenseLayer(config, first + i * config.growth_rate, dtype=dtype, rngs=rngs) for i in range(size)]
            blocks.append(nnx.List(layers))
        self.blocks = nnx.List(blocks)
        self.transitions = nnx.List(transitions)
        self.norm5 = BatchNorm(config.num_features, dtype=dtype, rngs=rngs)
        head_dtype = at_least_float32(dtype)
        self.head = Linear(config.num_features, num_classes, dtype=head_dtype, rngs=rngs)

    def feature_maps(self, x: jax.Array) -> dict[str, jax.Array]:
        """Map images (b, h, w, 3) to the maps `block1` … `block4` and `norm5`, by these names and in this order.

        `block{i}` is the output of a dense block, before its transition: (b, h / 2ⁱ⁺¹, w / 2ⁱ⁺¹, c), where the stem
        rounds sizes up and transitions round them down; `norm5` is `block4` after the last batch norm.
        """
        x = max_pool_3x3_s2(jax.nn.relu(self.norm0(self.conv0(x))))
        outputs = {}
        for index, block in enumerate(self.blocks):
            if index:
                x = self.transitions[index - 1](x)
            maps = [x]
            for layer in block:
                maps.append(_rematerialised(layer, *maps) if self.remat else layer(*maps))
            outputs[f"block{index + 1}"] = x = tap(f"block{index + 1}", jnp.concatenate(maps, axis=-1))
        outputs["norm5"] = tap("norm5", self.norm5(x))
        return outputs

    def features(self, x: jax.Array) -> jax.Array:
        """Map images (b, h, w, 3) to `norm5` of `feature_maps`, before the ReLU: (b, h / 32, w / 32, c)."""
        return self.feature_maps(x)["norm5"]

    def classify(self, features: jax.Array) -> jax.Array:
        """Map the output of `features` to float32 logits (b, num_classes)."""
        return self.head(global_avg_pool(jax.nn.relu(features)))

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
        """Map images (b, h, w, 3) to float32 logits (b, num_classes)."""
        return self.classify(self.features(x))


SPEC = ModelSpec(
    name="densenet121",
    builder=DenseNet,
    config=DenseNetConfig(),
    drop_options=("drop_rate",),
    namings=DENSENET,
    timm=TimmModel("densenet121", first_conv="features.conv0", classifier="classifier"),
    compared_with="torchvision densenet121",
    small={"growth_rate": 8, "block_sizes": (1, 2, 2, 1), "width": 16},
)
