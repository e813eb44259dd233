"""DALAResNet50 (arXiv 2308.13150): ResNet50, lightweight attention and a head with two activations.

What the paper's abstract leaves open is marked "choice"; each is a field of `DALAResNetConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from histojax.models.ops.layers import ChannelAttention, Linear, at_least_float32
from histojax.models.resnet import ResNet, ResNetConfig

Attention = Literal["none", "layer4", "layer4_blocks"]
Head = Literal["linear", "dual"]


@dataclass(frozen=True)
class DALAResNetConfig:
    """Parts and sizes of DALAResNet.

    choice: channel attention after `layer4`; "layer4_blocks": on the residual branch of each of its blocks.
    choice: `reduction` 16 in the attention.
    choice: head widths (512, 256), dropout 0.2 after each of the two activations.
    Raises ValueError for a value out of range, naming the legal ones.
    """

    backbone: ResNetConfig = field(default_factory=ResNetConfig.resnet50)
    attention: Attention = "layer4"
    head: Head = "dual"
    reduction: int = 16
    head_widths: tuple[int, int] = (512, 256)
    dropout: float = 0.2

    def __post_init__(self) -> None:
        for name, value, legal in (
            ("attention", self.attention, get_args(Attention)),
            ("head", self.head, get_args(Head)),
        ):
            if value not in legal:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, legal))}")
        if not 1 <= self.reduction <= self.backbone.num_features:
            raise ValueError(f"reduction={self.reduction} is not in [1, {self.backbone.num_features}]")
        if len(self.head_widths) != 2 or min(self.head_widths) < 1:
            raise ValueError(f"head_widths={self.head_widths} is not two positive numbers")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is not in [0, 1)")


class DualActivationHead(nnx.Module):
    """Dense, LeakyReLU(0.01), Dropout, Dense, ReLU, Dropout, Dense: (b, c) -> (b, num_classes)."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        widths: tuple[int, int] = (512, 256),
        dropout: float = 0.2,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        he_normal = jax.nn.initializers.he_normal()
        dtype = at_least_float32(dtype)
        self.dense1 = Linear(in_features, widths[0], kernel_init=he_normal, dtype=dtype, rngs=rngs)
        self.dropout1 = nnx.Dropout(dropout, rngs=rngs)
        self.dense2 = Linear(widths[0], widths[1], kernel_init=he_normal, dtype=dtype, rngs=rngs)
        self.dropout2 = nnx.Dropout(dropout, rngs=rngs)
        self.dense3 = Linear(widths[1], num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map pooled features (b, c) to logits (b, num_classes)."""
        x = self.dropout1(jax.nn.leaky_relu(self.dense1(x), 0.01))
        x = self.dropout2(jax.nn.relu(self.dense2(x)))
        return self.dense3(x)


class DALAResNet(ResNet):
    """ResNet with attention on `layer4` and the dual-activation head: (b, h, w, 3) -> float32 logits (b, k).

    Every parameter of the attention has `attention` in its path, every one of the head `head`; the rest is
    the backbone, at the same paths as in `ResNet`. With attention "none" and head "linear" it is that
    ResNet. `features` is the output of `layer4` before the attention that follows it; see `ResNet` for
    `remat` and `dtype`.
    """

    def __init__(
        self, config: DALAResNetConfig, *, dtype: Any = jnp.float32, remat: bool = False, rngs: nnx.Rngs
    ) -> None:
        channels, num_classes = config.backbone.num_features, config.backbone.num_classes

        def make_attention() -> ChannelAttention:
            return ChannelAttention(channels, config.reduction, activation=jax.nn.leaky_relu, dtype=dtype, rngs=rngs)

        head = None
        if config.head == "dual":
            head = DualActivationHead(
                channels,
                num_classes,
                widths=config.head_widths,
                dropout=config.dropout,
                dtype=dtype,
                rngs=rngs,
            )
        super().__init__(
            config.backbone,
            head=head,
            layer4_attention=make_attention if config.attention == "layer4_blocks" else None,
            dtype=dtype,
            remat=remat,
            rngs=rngs,
        )
        self.attention = make_attention() if config.attention == "layer4" else None

    def classify(self, features: jax.Array) -> jax.Array:
        """Map the output of `features` to float32 logits (b, num_classes)."""
        return super().classify(features if self.attention is None else self.attention(features))


def dala_resnet50(
    *,
    num_classes: int,
    rngs: nnx.Rngs,
    dtype: Any = jnp.float32,
    remat: bool = False,
    attention: Attention = "layer4",
    head: Head = "dual",
    reduction: int = 16,
    head_widths: tuple[int, int] = (512, 256),
    dropout: float = 0.2,
) -> DALAResNet:
    """Build DALAResNet50; see `DALAResNetConfig` for the options and what it raises."""
    config = DALAResNetConfig(ResNetConfig.resnet50(num_classes), attention, head, reduction, head_widths, dropout)
    return DALAResNet(config, dtype=dtype, remat=remat, rngs=rngs)
