"""SE-ResNet (Hu et al. 2017, arXiv 1709.01507), equal to timm's `seresnet50`.

A ResNet with squeeze-and-excitation on the residual branch of each bottleneck (figure 3 of the paper). Names are those
of timm and torchvision, except that `se` is `attention` here and its 1×1 convolutions are dense layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from histojax.models.naming.resnet import SERESNET
from histojax.models.ops.layers import ChannelAttention
from histojax.models.registry import ModelSpec, TimmModel
from histojax.models.resnet import ResNet, ResNetConfig

DIVISOR = 8


@dataclass(frozen=True)
class SEResNetConfig(ResNetConfig):
    """Sizes of an SE-ResNet: those of its ResNet and the squeeze.

    Attributes:
      reduction: factor by which the squeeze narrows the channels.

    Raises:
      ValueError: a value out of range.
    """

    reduction: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction < 1:
            raise ValueError(f"reduction={self.reduction} is not a positive number")

    def hidden(self, channels: int) -> int:
        """Return the width of the squeeze: channels / reduction, rounded to a multiple of 8, at least 8, as in timm."""
        return max(DIVISOR, int(channels / self.reduction + DIVISOR / 2) // DIVISOR * DIVISOR)


class SEResNet(ResNet):
    """ResNet with x · sigmoid(W2 · relu(W1 · gap(x))) on each residual branch: (b, h, w, 3) to float32 logits (b, k).

    Every parameter of the gates has `attention` in its path. The gates start open, at 0.953, where timm's start around
    0.5, so a pretrained ResNet's weights make nearly that ResNet. See `ResNet` for the arguments, `feature_maps` and
    `features`, and `ChannelAttention` for the gate.
    """

    def __init__(
        self,
        config: SEResNetConfig,
        *,
        num_classes: int,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        def make_attention(stage: int, channels: int) -> ChannelAttention:
            del stage
            hidden = config.hidden(channels)
            return ChannelAttention(channels, hidden=hidden, activation=jax.nn.relu, dtype=dtype, rngs=rngs)

        super().__init__(config, num_classes=num_classes, attention=make_attention, dtype=dtype, remat=remat, rngs=rngs)


SPEC = ModelSpec(
    name="seresnet50",
    builder=SEResNet,
    config=SEResNetConfig(),
    head_parts=("head", "attention"),
    namings=SERESNET,
    timm=TimmModel("seresnet50", first_conv="conv1", classifier="fc"),
    compared_with="timm seresnet50",
    small={"stage_sizes": (1, 2, 1, 1), "width": 16},
)
