"""ResNet (He et al. 2015, arXiv 1512.03385) in the torchvision layout: stride in the 3×3 convolution.

Attribute names are torchvision's, so that its weights map onto these paths name by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from histojax.models.ops.intermediates import tap
from histojax.models.ops.layers import Conv, Linear, at_least_float32, global_avg_pool, max_pool_3x3_s2
from histojax.models.ops.norms import BatchNorm, conv_norm

EXPANSION = 4


@dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a bottleneck ResNet.

    `stage_sizes` are the blocks of the four stages, `width` is the number of channels after the stem;
    `zero_init_residual` starts the last scale of each block at zero, so that each block starts as the
    identity (Goyal et al. 2017, arXiv 1706.02677, section 5.1), which trains better from scratch.
    Raises ValueError for anything but four stages of at least one block.
    """

    stage_sizes: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    num_classes: int = 1000
    zero_init_residual: bool = True

    def __post_init__(self) -> None:
        if len(self.stage_sizes) != 4 or min(self.stage_sizes) < 1:
            raise ValueError(f"stage_sizes must be four positive numbers, got {self.stage_sizes}")

    @classmethod
    def resnet50(cls, num_classes: int = 1000) -> ResNetConfig:
        """Return the 50-layer configuration (table 1 of the paper)."""
        return cls(stage_sizes=(3, 4, 6, 3), width=64, num_classes=num_classes)

    @property
    def num_features(self) -> int:
        """Channels of the output of `layer4`."""
        return self.width * 8 * EXPANSION


class Bottleneck(nnx.Module):
    """y = relu(shortcut(x) + a(F(x))), F = 1×1, 3×3 (strided), 1×1 with batch norm (figure 5, right).

    `attention`, where given, is the module `a` on the residual branch; else `a` is the identity.
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


class ResNet(nnx.Module):
    """Bottleneck ResNet: images (b, h, w, 3), already normalised, to float32 logits (b, num_classes).

    `head` maps the pooled features (b, c) to logits; it defaults to one linear layer. `layer4_attention`
    makes the attention module of each block of the last stage, `attention` that of each block of the
    other stages, or of all, from its channels. `remat` recomputes each block in the backward pass instead
    of storing its activations. The head computes in float32 whatever `dtype` is, because it costs nothing
    and bfloat16 logits carry three digits; with `dtype=float64` it computes and returns float64.
    """

    def __init__(
        self,
        config: ResNetConfig,
        *,
        head: nnx.Module | None = None,
        layer4_attention: Callable[[], nnx.Module] | None = None,
        attention: Callable[[int], nnx.Module] | None = None,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.dtype = dtype
        self.remat = remat
        self.conv1 = Conv(3, config.width, (7, 7), strides=(2, 2), padding=((3, 3), (3, 3)), dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(config.width, dtype=dtype, rngs=rngs)
        in_features = config.width

        def stage(index: int, make_attention: Callable[[], nnx.Module] | None = None) -> nnx.List:
            nonlocal in_features
            features = config.width * 2**index
            if make_attention is None and attention is not None:
                make_attention = partial(attention, features * EXPANSION)
            blocks = []
            for i in range(config.stage_sizes[index]):
                blocks.append(
                    Bottleneck(
                        in_features,
                        features,
                        stride=2 if i == 0 and index > 0 else 1,
                        attention=make_attention() if make_attention is not None else None,
                        zero_init_residual=config.zero_init_residual,
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
                in_features = features * EXPANSION
            return nnx.List(blocks)

        self.layer1 = stage(0)
        self.layer2 = stage(1)
        self.layer3 = stage(2)
        self.layer4 = stage(3, layer4_attention)
        if head is None:
            head_dtype = at_least_float32(dtype)
            head = Linear(config.num_features, config.num_classes, dtype=head_dtype, rngs=rngs)
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

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images (b, h, w, 3) to float32 logits (b, num_classes)."""
        return self.classify(self.features(x))


def resnet50(
    *,
    num_classes: int,
    rngs: nnx.Rngs,
    dtype: Any = jnp.float32,
    remat: bool = False,
    head: Literal["linear"] = "linear",
) -> ResNet:
    """Build ResNet50; raises ValueError for a head other than "linear"."""
    if head != "linear":
        raise ValueError(f"head={head!r}: resnet50 has only head='linear'; dala_resnet50 has 'dual', too")
    return ResNet(ResNetConfig.resnet50(num_classes), dtype=dtype, remat=remat, rngs=rngs)
