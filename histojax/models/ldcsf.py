"""LDCSF (arXiv 2308.10446): a Swin module, local depth convolution, feature reconstruction and a ResNet module.

The paper gives the four modules and their order; its code is not published. Points that its abstract leaves open are
marked "choice"; each is a field of `LDCSFConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from histojax.models.naming.swin import SWIN
from histojax.models.ops.intermediates import tap
from histojax.models.ops.layers import (
    ChannelAttention,
    Conv,
    Linear,
    at_least_float32,
    gelu,
    global_avg_pool,
    lecun_normal,
)
from histojax.models.ops.norms import BatchNorm, LayerNorm
from histojax.models.registry import ModelSpec
from histojax.models.resnet import EXPANSION, Bottleneck
from histojax.models.swin import SwinConfig, SwinStages, check_image_size

Places = Literal["stages", "blocks", "none"]
Norm = Literal["layer", "batch"]


@dataclass(frozen=True)
class LDCSFConfig(SwinConfig):
    """Parts and sizes of LDCSF: those of its Swin module, and the modules that the paper adds.

    choice: the Swin module has the first three stages of Swin-T, with `stochastic_depth` 0.2 at its last block.
    choice: the ResNet module's width is 4/3 of the Swin module's (384 -> 512), and its first block has stride 2.
    Without the ResNet module a layer norm, the average over the map and a linear layer follow, as in Swin.

    Attributes:
      ldc: choice: "stages": one LDC after the blocks of each stage, before the merging; "blocks": after each block;
        "none": leave the module out.
      ldc_norm: choice: norm within the LDC, "layer" or "batch".
      fr: whether to use feature reconstruction (FR).
      fr_reduction: choice: factor by which FR narrows the channels.
      resnet: whether to use the ResNet module.
      resnet_blocks: choice: number of its blocks.

    Raises:
      ValueError: a value out of range; the message names the legal ones.
    """

    depths: tuple[int, ...] = (2, 2, 6)
    heads: tuple[int, ...] = (3, 6, 12)
    ldc: Places = "stages"
    ldc_norm: Norm = "layer"
    fr: bool = True
    fr_reduction: int = 16
    resnet: bool = True
    resnet_blocks: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, legal in (("ldc", self.ldc, get_args(Places)), ("ldc_norm", self.ldc_norm, get_args(Norm))):
            if value not in legal:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, legal))}")
        for name, switch in (("fr", self.fr), ("resnet", self.resnet)):
            if not isinstance(switch, bool):
                raise ValueError(f"{name}={switch!r} is not one of True, False")
        if len(self.depths) > 3:
            raise ValueError(
                f"depths={self.depths}: at most three stages, since the ResNet module halves the map again"
            )
        if not 1 <= self.fr_reduction <= self.num_features:
            raise ValueError(
                f"fr_reduction={self.fr_reduction} is not in [1, {self.num_features}], "
                "the channels of the map that FR weighs"
            )
        if self.resnet_blocks < 1:
            raise ValueError(f"resnet_blocks={self.resnet_blocks} is not a positive number")

    @property
    def pooled_features(self) -> int:
        """Channels of the map that is averaged."""
        return self.resnet_width * EXPANSION if self.resnet else self.num_features

    @property
    def resnet_width(self) -> int:
        """Inner channels of the bottlenecks."""
        return max(self.num_features * 4 // 3, 1)


class LocalDepthConv(nnx.Module):
    """y = x + pointwise(gelu(norm(depthwise(x)))), depthwise 3×3, pointwise 1×1: (b, h, w, c) -> (b, h, w, c).

    It convolves the whole map, which attention processed window by window, one channel at a time. The pointwise layer
    starts at zero, so the model starts as the Swin Transformer whose weights it was given. That layer receives a
    gradient at the first step, the layers before it from the second step on.
    """

    def __init__(self, channels: int, *, norm: Norm = "layer", dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        make_norm = LayerNorm if norm == "layer" else BatchNorm
        self.depthwise = Conv(
            channels,
            channels,
            (3, 3),
            padding=((1, 1), (1, 1)),
            groups=channels,
            dtype=dtype,
            kernel_init=lecun_normal,
            rngs=rngs,
        )
        self.norm = make_norm(channels, dtype=dtype, rngs=rngs)
        self.pointwise = Linear(channels, channels, kernel_init=jax.nn.initializers.zeros, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (b, h, w, c) to (b, h, w, c)."""
        return x + self.pointwise(gelu(self.norm(self.depthwise(x))))


class LDCSF(SwinStages):
    """LDCSF: images (b, h, w, 3), already normalised, to float32 logits (b, num_classes).

    Every parameter of a part that the paper adds has `ldc`, `fr`, `resnet` or `head` in its path; the rest is at the
    same paths as in `Swin`. With `ldc="none"`, `fr=False` and `resnet=False` it is the Swin of these stages.
    `features` is the Swin module's output, LDC included, before FR. See `SwinStages` for `remat`, which also
    applies to LDCs and bottlenecks, and `Swin` for the image sizes and `dtype`.
    """

    def __init__(
        self,
        config: LDCSFConfig,
        *,
        num_classes: int,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(config, dtype=dtype, remat=remat, rngs=rngs)
        # (stage, block) of each LDC, in the order of the forward pass.
        ends = [(i, depth - 1) for i, depth in enumerate(config.depths)]
        every = [(i, j) for i, depth in enumerate(config.depths) for j in range(depth)]
        self.ldc_places = tuple({"stages": ends, "blocks": every, "none": []}[config.ldc])
        self.ldc = nnx.List(
            LocalDepthConv(config.width(i), norm=config.ldc_norm, dtype=dtype, rngs=rngs) for i, _ in self.ldc_places
        )
        channels, width, head_dtype = config.num_features, config.resnet_width, at_least_float32(dtype)
        make_fr = partial(ChannelAttention, channels, config.fr_reduction, activation=gelu, dtype=dtype, rngs=rngs)
        self.fr = make_fr() if config.fr else None
        self.resnet = nnx.List(
            Bottleneck(width * EXPANSION if i else channels, width, stride=1 if i else 2, dtype=dtype, rngs=rngs)
            for i in range(config.resnet_blocks if config.resnet else 0)
        )
        self.norm = None if config.resnet else LayerNorm(channels, dtype=head_dtype, rngs=rngs)
        self.head = Linear(config.pooled_features, num_classes, dtype=head_dtype, rngs=rngs)

    def after_block(self, x: jax.Array, stage: int, block: int) -> jax.Array:
        """Apply the LDC at this place, if there is one."""
        if (stage, block) not in self.ldc_places:
            return x
        return self.run(self.ldc[self.ldc_places.index((stage, block))], x)

    def feature_maps(self, x: jax.Array) -> dict[str, jax.Array]:
        """Map images (b, h, w, 3) to the outputs of the stages, LDC included, of FR (`fr`) and of the ResNet module.

        A module that the model leaves out has no map.

        Raises:
          ValueError: h or w is not a multiple of 32.
        """
        maps = super().feature_maps(x)
        return maps | self._rebuilt(maps[f"stage{len(self.stages)}"])

    def _rebuilt(self, features: jax.Array) -> dict[str, jax.Array]:
        """Map the output of `features` to those of FR, (b, h, w, c), and the ResNet module, (b, h / 2, w / 2, c')."""
        maps, x = {}, features
        if self.fr is not None:
            maps["fr"] = x = tap("fr", self.fr(x))
        for block in self.resnet:
            x = self.run(block, x)
        if self.resnet:
            maps["resnet"] = x = tap("resnet", x)
        return maps

    def reconstruct(self, features: jax.Array) -> jax.Array:
        """Map the output of `features` through FR and the ResNet module: (b, h, w, c) -> (b, h / 2, w / 2, c')."""
        return next(reversed(self._rebuilt(features).values()), features)

    def classify(self, features: jax.Array) -> jax.Array:
        """Map the output of `features` to float32 logits (b, num_classes)."""
        x = self.reconstruct(features)
        return self.head(global_avg_pool(x if self.norm is None else self.norm(x)))

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
        """Map images (b, h, w, 3) to float32 logits (b, num_classes)."""
        return self.classify(self.features(x))


SPEC = ModelSpec(
    name="ldcsf",
    builder=LDCSF,
    config=LDCSFConfig(),
    check_image_size=check_image_size,
    head_parts=("head", "ldc", "fr", "resnet"),
    without_weight_decay=("relative_position_bias_table",),
    drop_options=("stochastic_depth",),
    namings=SWIN,
    # The norm, if there is one, has another width than Swin's, which follows four stages.
    new_parts=("ldc/", "fr/", "resnet/", "head/", "norm/"),
    ignores_later_stages=True,
    compared_with="PyTorch twin",
    small={"embed_dim": 16, "depths": (2, 2, 1), "heads": (2, 2, 4), "window": 2, "resnet_blocks": 1},
)
