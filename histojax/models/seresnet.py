"""SE-ResNet (Hu et al. 2017, arXiv 1709.01507), equal to timm's `seresnet50`.

A ResNet with squeeze-and-excitation on the residual branch of each bottleneck (figure 3 of the paper). Names are those
of timm and torchvision, but for `se`, which is `attention` here, and its 1×1 convolutions are dense layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from histojax.models.ops.layers import ChannelAttention
from histojax.models.resnet import ResNet, ResNetConfig

DIVISOR = 8


@dataclass(frozen=True)
class SEResNetConfig:
    """Sizes of an SE-ResNet: those of its ResNet, and by how much the squeeze `reduction` narrows the channels.

    Raises ValueError for a `reduction` that is not a positive number.
    """

    backbone: ResNetConfig = field(default_factory=ResNetConfig.resnet50)
    reduction: int = 16

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise ValueError(f"reduction={self.reduction} is not a positive number")

    def hidden(self, channels: int) -> int:
        """Width of the squeeze: channels / reduction, rounded to a multiple of 8 and at least 8, as timm does."""
        return max(DIVISOR, int(channels / self.reduction + DIVISOR / 2) // DIVISOR * DIVISOR)


class SEResNet(ResNet):
    """ResNet with x · sigmoid(W2 · relu(W1 · gap(x))) on each residual branch: (b, h, w, 3) to float32 logits (b, k).

    Every parameter of the gates has `attention` in its path. They start open, at 0.953, where those of timm start
    around 0.5: a ResNet's weights then make nearly that ResNet. See `ResNet` for `remat` and `dtype`, `feature_maps`
    and `features`, and `ChannelAttention` for the gate.
    """

    def __init__(
        self, config: SEResNetConfig, *, dtype: Any = jnp.float32, remat: bool = False, rngs: nnx.Rngs
    ) -> None:
        def make_attention(channels: int) -> ChannelAttention:
            hidden = config.hidden(channels)
            return ChannelAttention(channels, hidden=hidden, activation=jax.nn.relu, dtype=dtype, rngs=rngs)

        super().__init__(config.backbone, attention=make_attention, dtype=dtype, remat=remat, rngs=rngs)


def seresnet50(
    *, num_classes: int, rngs: nnx.Rngs, dtype: Any = jnp.float32, remat: bool = False, reduction: int = 16
) -> SEResNet:
    """Build SE-ResNet50; raises ValueError for a `reduction` that is not a positive number."""
    config = SEResNetConfig(ResNetConfig.resnet50(num_classes), reduction)
    return SEResNet(config, dtype=dtype, remat=remat, rngs=rngs)
