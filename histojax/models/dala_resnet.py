"""DALAResNet50 (arXiv 2308.13150): ResNet50, lightweight attention and a head with two activations.

Points that the paper's abstract leaves open are marked "choice"; each is a field of `DALAResNetConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from histojax.models.naming.resnet import RESNET
from histojax.models.ops.layers import ChannelAttention, Linear, at_least_float32
from histojax.models.registry import ModelSpec
from histojax.models.resnet import ResNet, ResNetConfig

Attention = Literal["none", "layer4", "layer4_blocks"]
Head = Literal["linear", "dual"]


@dataclass(frozen=True)
class DALAResNetConfig(ResNetConfig):
    """Parts and sizes of DALAResNet: those of its ResNet, and the attention and the head that the paper adds.

    Attributes:
      attention: choice: channel attention after `layer4`; "layer4_blocks": on the residual branch of each block of
        `layer4`; "none".
      head: "dual": the paper's, with two activations; "linear": one dense layer.
      reduction: choice: factor by which the attention narrows the channels.
      head_widths: choice: hidden widths of the dual head.
      dropout: choice: dropout rate after each of its two activations.

    Raises:
      ValueError: a value out of range; the message names the legal ones.
    """

    attention: Attention = "layer4"
    head: Head = "dual"
    reduction: int = 16
    head_widths: tuple[int, ...] = (512, 256)
    dropout: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, legal in (
            ("attention", self.attention, get_args(Attention)),
            ("head", self.head, get_args(Head)),
        ):
            if value not in legal:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, legal))}")
        if not 1 <= self.reduction <= self.num_features:
            raise ValueError(f"reduction={self.reduction} is not in [1, {self.num_features}]")
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
        widths: tuple[int, ...] = (512, 256),
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

    Every parameter of the attention has `attention` in its path, every parameter of the head `head`; the rest is the
    backbone, at the same paths as in `ResNet`. With attention "none" and head "linear" it is that ResNet. `features` is
    the output of `layer4` before the attention that follows it. See `ResNet` for the arguments.
    """

    def __init__(
        self,
        config: DALAResNetConfig,
        *,
        num_classes: int,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        channels = config.num_features

        def make_attention() -> ChannelAttention:
            return ChannelAttention(channels, config.reduction, activation=jax.nn.leaky_relu, dtype=dtype, rngs=rngs)

        def block_attention(stage: int, channels: int) -> ChannelAttention | None:
            del channels
            return make_attention() if stage == 3 and config.attention == "layer4_blocks" else None

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
            config,
            num_classes=num_classes,
            head=head,
            attention=block_attention,
            dtype=dtype,
            remat=remat,
            rngs=rngs,
        )
        self.attention = make_attention() if config.attention == "layer4" else None

    def classify(self, features: jax.Array) -> jax.Array:
        """Map the output of `features` to float32 logits (b, num_classes)."""
        return super().classify(features if self.attention is None else self.attention(features))


SPEC = ModelSpec(
    name="dala_resnet50",
    builder=DALAResNet,
    config=DALAResNetConfig(),
    head_parts=("head", "attention"),
    drop_options=("dropout",),
    namings=RESNET,
    new_parts=("attention/", r"layer4/\d+/attention/", r"head/dense\d/"),
    compared_with="PyTorch twin",
    small={"stage_sizes": (1, 2, 1, 1), "width": 16},
)
