"""ResNet (He et al. 2015, arXiv 1512.03385) in the torchvision layout: stride in the 3×3 convolution.

Attribute names are torchvision's, so its weights map to these paths name by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from histojax.models.naming.resnet import RESNET
from histojax.models.ops.intermediates import tap
from histojax.models.ops.layers import Conv, Linear, at_least_float32, global_avg_pool, max_pool_3x3_s2
from histojax.models.ops.norms import BatchNorm, conv_norm
from histojax.models.registry import ModelSpec, TimmModel

EXPANSION = 4


@dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a bottleneck ResNet; the defaults are ResNet50's (table 1 of the paper).

    Attributes:
      stage_sizes: number of blocks in each of the four stages.
      width: channels after the stem.
      zero_init_residual: start the last scale of each block at zero, so that each block starts as the identity (Goyal
        et al. 2017, arXiv 1706.02677, section 5.1), which trains better from scratch.

    Raises:
      ValueError: not four stages of at least one block.
    """

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    zero_init_residual: bool = True

    def __post_init__(self) -> None:
        if len(self.stage_sizes) != 4 or min(self.stage_sizes) < 1:
            raise ValueError(f"stage_sizes={self.stage_sizes} is not four positive numbers")
        if self.width < 1:
            raise ValueError(f"width={self.width} is not a positive number")

    @property
    def num_features(self) -> int:
        """Channels of the output of `layer4`."""
        return self.width * 8 * EXPANSION


class Bottleneck(nnx.Module):
    """y = relu(shortcut(x) + a(F(x))), F = 1×1, 3×3 (strided), 1×1 with batch norm (figure 5, right).

    `attention` is the module `a` on the residual branch; without it, `a` is the identity.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        stride: int = 1,
        attention: nnx.Module | None = None,
        zero_init_residual: bool = True,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        out_features = features * EXPANSION
        strides = (stride, stride)
        last_scale = jax.nn.initializers.zeros if zero_init_residual else jax.nn.initializers.ones
        self.conv1 = Conv(in_features, features, (1, 1), dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(features, dtype=dtype, rngs=rngs)
        self.conv2 = Conv(features, features, (3, 3), strides=strides, padding=((1, 1), (1, 1)), dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(features, dtype=dtype, rngs=rngs)
        self.conv3 = Conv(features, out_features, (1, 1), dtype=dtype, rngs=rngs)
        self.bn3 = BatchNorm(out_features, dtype=dtype, scale_init=last_scale, rngs=rngs)
        if stride == 1 and in_features == out_features:
            self.downsample = None
        else:
            # A list, because torchvision calls these downsample.0 and downsample.1.
            self.downsample = nnx.List(
                [
                    Conv(in_features, out_features, (1, 1), strides=strides, dtype=dtype, rngs=rngs),
                    BatchNorm(out_features, dtype=dtype, rngs=rngs),
                ]
            )
        self.attention = attention

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (b, h, w, in_features) to (b, h / stride, w / stride, 4 · features)."""
        y = jax.nn.relu(conv_norm(self.conv1, self.bn1, x))
        y = jax.nn.relu(conv_norm(self.conv2, self.bn2, y))
        y = conv_norm(self.conv3, self.bn3, y)
        if self.attention is not None:
            y = self.attention(y)
        if self.downsample is not None:
            conv, bn = self.downsample
            x = conv_norm(conv, bn, x)
        return jax.nn.relu(x + y)


_rematerialised = nnx.remat(Bottleneck.__call__)


def _stage(
    config: ResNetConfig,
    index: int,
    attention: Callable[[int, int], nnx.Module | None] | None,
    dtype: Any,
    rngs: nnx.Rngs,
) -> nnx.List:
    """Build the blocks of a stage, of which the first halves the map in all stages but stage 0."""
    features = config.width * 2**index
    in_features = features * EXPANSION // 2 if index else config.width
    blocks = []
    for i in range(config.stage_sizes[index]):
        block = Bottleneck(
            in_features,
            features,
            stride=2 if i == 0 and index > 0 else 1,
            attention=attention(index, features * EXPANSION) if attention is not None else None,
            zero_init_residual=config.zero_init_residual,
            dtype=dtype,
            rngs=rngs,
        )
        blocks.append(block)
        in_features = features * EXPANSION
    return nnx.List(blocks)


class ResNet(nnx.Module):
    """Bottleneck ResNet: images (b, h, w, 3), already normalised, to float32 logits (b, num_classes).

    The head computes in float32 whatever `dtype` is, because it costs nothing and bfloat16 logits carry three digits;
    with `dtype=float64` it computes and returns float64.

    Args:
      config: sizes.
      num_classes: width of the logits.
      head: maps the pooled features (b, c) to logits; one linear layer by default.
      attention: (stage, channels) -> the attention module of one block of that stage, counted from 0, or None.
      dtype: type of the computation.
      remat: recompute each block in the backward pass instead of storing its activations.
      rngs: random keys of the initial parameters.
    """

    def __init__(
        self,
        config: ResNetConfig,
        *,
        num_classes: int,
        head: nnx.Module | None = None,
        attention: Callable[[int, int], nnx.Module | None] | None = None,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.dtype = dtype
        self.remat = remat
        self.conv1 = Conv(3, config.width, (7, 7), strides=(2, 2), padding=((3, 3), (3, 3)), dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(config.width, dtype=dtype, rngs=rngs)
        self.layer1 = _stage(config, 0, attention, dtype, rngs)
        self.layer2 = _stage(config, 1, attention, dtype, rngs)
        self.layer3 = _stage(config, 2, attention, dtype, rngs)
        self.layer4 = _stage(config, 3, attention, dtype, rngs)
        if head is None:
            head = Linear(config.num_features, num_classes, dtype=at_least_float32(dtype), rngs=rngs)
        self.head = head

    def feature_maps(self, x: jax.Array) -> dict[str, jax.Array]:
        """Map images (b, h, w, 3) to the outputs of `layer1` … `layer4`, by these names and in this order.

        That of layer i is (b, h / 2ⁱ⁺¹, w / 2ⁱ⁺¹, 4 · width · 2ⁱ⁻¹), sizes rounded up.
        """
        x = max_pool_3x3_s2(jax.nn.relu(conv_norm(self.conv1, self.bn1, x)))
        maps = {}
        for index, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            for block in stage:
                x = _rematerialised(block, x) if self.remat else block(x)
            maps[f"layer{index + 1}"] = x = tap(f"layer{index + 1}", x)
        return maps

    def features(self, x: jax.Array) -> jax.Array:
        """Map images (b, h, w, 3) to the output of `layer4`, (b, h / 32, w / 32, 32 · width)."""
        return self.feature_maps(x)["layer4"]

    def classify(self, features: jax.Array) -> jax.Array:
        """Map the output of `features` to float32 logits (b, num_classes)."""
        return self.head(global_avg_pool(features))

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
        """Map images (b, h, w, 3) to float32 logits (b, num_classes)."""
        return self.classify(self.features(x))


SPEC = ModelSpec(
    name="resnet50",
    builder=ResNet,
    config=ResNetConfig(),
    namings=RESNET,
    timm=TimmModel("resnet50", first_conv="conv1", classifier="fc"),
    compared_with="torchvision resnet50",
    small={"stage_sizes": (1, 2, 1, 1), "width": 16},
)
