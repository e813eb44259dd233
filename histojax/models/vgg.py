"""VGG16 (Simonyan and Zisserman 2014, arXiv 1409.1556) and VGG16 with Inception blocks.

`vgg16` and `vgg16_bn` equal torchvision's models, whose names `features.{n}` number convolutions, norms, ReLUs and
poolings consecutively. Here convolution j of block i is `blocks/{i}/layers/{j}/conv` and its norm `.../norm`; `head` is
torchvision's `classifier.6`, and its `classifier.0` and `.3` are `classifier/fc1` and `classifier/fc2`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from histojax.models.naming.vgg import VGG16, VGG16_BN, VGG16_CONVOLUTIONS
from histojax.models.ops.image_size import SMALLEST, check_at_least
from histojax.models.ops.intermediates import tap
from histojax.models.ops.layers import Conv, Linear, at_least_float32, global_avg_pool
from histojax.models.ops.norms import BatchNorm
from histojax.models.ops.pooling import adaptive_avg_pool, max_pool_2x2, max_pool_3x3_s1
from histojax.models.registry import ModelSpec, TimmModel

GRID = 7  # side of the grid of averages that the classifier sees

_kernel_init = jax.nn.initializers.normal(0.01)


def _check_dropout(rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"dropout={rate} is not in [0, 1)")


@dataclass(frozen=True)
class VGGFeaturesConfig:
    """Sizes of VGG's five blocks of convolutions; the defaults are VGG16's (column D of table 1 of the paper).

    Attributes:
      widths: channels of each block.
      depths: number of convolutions in each block.
      batch_norm: whether a batch norm follows each convolution.

    Raises:
      ValueError: not five blocks of at least one convolution and one channel.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    batch_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("widths", "depths"):
            if len(getattr(self, name)) != 5 or min(getattr(self, name)) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not five positive numbers")


@dataclass(frozen=True)
class VGGConfig(VGGFeaturesConfig):
    """Sizes of a VGG: its convolutions and its two hidden dense layers.

    Attributes:
      hidden: width of the hidden dense layers.
      dropout: dropout rate after each of them.

    Raises:
      ValueError: a value out of range.
    """

    hidden: int = 4096
    dropout: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 1:
            raise ValueError(f"hidden={self.hidden} is not a positive number")
        _check_dropout(self.dropout)


@dataclass(frozen=True)
class VGGInceptionConfig(VGGFeaturesConfig):
    """Sizes of VGG16 with Inception blocks. Every field is a choice of ours, because no public reference exists.

    choice: all of VGG16's convolutions, without batch norm, up to its last pooling: (b, 7, 7, 512) at 224 pixels.

    Attributes:
      inceptions: choice: widths of each block, as in `Inception`. The defaults are those of GoogLeNet's blocks 5a and
        5b, which also work on 7×7 maps (Szegedy et al. 2014, arXiv 1409.4842, table 1): 832, then 1024 channels.
      dropout: choice: dropout rate before the dense layer, as in GoogLeNet.

    Raises:
      ValueError: a value out of range.
    """

    inceptions: tuple[tuple[int, ...], ...] = ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128))
    dropout: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.inceptions or any(len(widths) != 6 or min(widths) < 1 for widths in self.inceptions):
            raise ValueError(f"inceptions={self.inceptions} is not a tuple of blocks of six positive numbers each")
        _check_dropout(self.dropout)


class ConvUnit(nnx.Module):
    """Convolution that keeps the size, optional batch norm, ReLU: (b, h, w, i) -> (b, h, w, o)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel: int,
        *,
        use_bias: bool,
        batch_norm: bool,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        pad = (kernel // 2, kernel // 2)
        self.conv = Conv(
            in_features, out_features, (kernel, kernel), padding=(pad, pad), use_bias=use_bias, dtype=dtype, rngs=rngs
        )
        self.norm = BatchNorm(out_features, dtype=dtype, rngs=rngs) if batch_norm else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (b, h, w, i) to (b, h, w, o)."""
        x = self.conv(x)
        return jax.nn.relu(x if self.norm is None else self.norm(x))


class VGGBlock(nnx.Module):
    """Pooling (except in the first block) and 3×3 convolutions: (b, h, w, i) -> (b, ⌊h/2⌋, ⌊w/2⌋, o).

    Convolutions have biases even before a batch norm, which cancels them, because torchvision's weights have them.
    """

    def __init__(self, config: VGGFeaturesConfig, index: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        width = config.widths[index]
        self.pool = index > 0
        layers = []
        for i in range(config.depths[index]):
            before = width if i else config.widths[index - 1] if index else 3
            unit = ConvUnit(before, width, 3, use_bias=True, batch_norm=config.batch_norm, dtype=dtype, rngs=rngs)
            layers.append(unit)
        self.layers = nnx.List(layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (b, h, w, i) to (b, ⌊h/2⌋, ⌊w/2⌋, o), or in the first block to (b, h, w, o)."""
        if self.pool:
            x = max_pool_2x2(x)
        for layer in self.layers:
            x = layer(x)
        return x


_rematerialised = nnx.remat(VGGBlock.__call__)


class VGGFeatures(nnx.Module):
    """VGG's convolutions: images (b, h, w, 3) of at least 32×32 to (b, ⌊h/32⌋, ⌊w/32⌋, c).

    `remat` recomputes each block in the backward pass instead of storing its activations.
    """

    def __init__(
        self, config: VGGFeaturesConfig, *, dtype: Any = jnp.float32, remat: bool = False, rngs: nnx.Rngs
    ) -> None:
        self.dtype = dtype
        self.remat = remat
        self.blocks = nnx.List([VGGBlock(config, index, dtype=dtype, rngs=rngs) for index in range(5)])

    def feature_maps(self, x: jax.Array) -> dict[str, jax.Array]:
        """Map images (b, h, w, 3) to the maps named `conv1` … `conv5` and `pool5`, in this order.

        `conv{i}` is block i's output after its last ReLU and before the pooling: (b, ⌊h/2ⁱ⁻¹⌋, ⌊w/2ⁱ⁻¹⌋, c).

        Raises:
          ValueError: h or w is less than 32.
        """
        check_at_least(SMALLEST, *x.shape[1:3])
        maps = {}
        for index, block in enumerate(self.blocks):
            x = _rematerialised(block, x) if self.remat else block(x)
            maps[f"conv{index + 1}"] = x = tap(f"conv{index + 1}", x)
        maps["pool5"] = tap("pool5", max_pool_2x2(x))
        return maps

    def features(self, x: jax.Array) -> jax.Array:
        """Map images (b, h, w, 3) to `pool5` of `feature_maps`, (b, ⌊h/32⌋, ⌊w/32⌋, c)."""
        return self.feature_maps(x)["pool5"]


class Classifier(nnx.Module):
    """Dense, ReLU and dropout, twice: (b, i) -> (b, hidden)."""

    def __init__(
        self, in_features: int, hidden: int, dropout: float, *, dtype: Any = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.fc1 = Linear(in_features, hidden, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)
        self.dropout1 = nnx.Dropout(dropout, rngs=rngs)
        self.fc2 = Linear(hidden, hidden, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)
        self.dropout2 = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (b, i) to (b, hidden)."""
        x = self.dropout1(jax.nn.relu(self.fc1(x)))
        return self.dropout2(jax.nn.relu(self.fc2(x)))


class VGG(VGGFeatures):
    """VGG: images (b, h, w, 3), already normalised, at least 32×32, to float32 logits (b, num_classes).

    The hidden dense layers are `classifier`, the last one is `head`. Their input is the features averaged over a 7×7
    grid, which at 224×224 are the features themselves. The head computes in at least float32 for every `dtype`. See
    `VGGFeatures` for `remat`.
    """

    def __init__(
        self,
        config: VGGConfig,
        *,
        num_classes: int,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(config, dtype=dtype, remat=remat, rngs=rngs)
        width, hidden = config.widths[-1] * GRID**2, config.hidden
        self.classifier = Classifier(width, hidden, config.dropout, dtype=dtype, rngs=rngs)
        head_dtype = at_least_float32(dtype)
        self.head = Linear(hidden, num_classes, kernel_init=_kernel_init, dtype=head_dtype, rngs=rngs)

    def classify(self, features: jax.Array) -> jax.Array:
        """Map the output of `features` to float32 logits (b, num_classes)."""
        x = adaptive_avg_pool(features, GRID)
        # Channels first, in torch's order, so that its weights become ours by transposition alone.
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        return self.head(self.classifier(x))

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
        """Map images (b, h, w, 3) to float32 logits (b, num_classes)."""
        return self.classify(self.features(x))


class Inception(nnx.Module):
    """Four branches side by side (figure 2b of arXiv 1409.4842): (b, h, w, i) -> (b, h, w, w₁ + w₃ + w₅ + pool).

    `widths` has the order of that paper's table 1: (w₁, reduce₃, w₃, reduce₅, w₅, pool). The branches are 1×1;
    1×1, 3×3; 1×1, 5×5; and 3×3 max pooling, 1×1.
    choice: batch norm after each convolution, which then has no bias (Ioffe and Szegedy 2015, arXiv 1502.03167).
    """

    def __init__(self, in_features: int, widths: tuple[int, ...], *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        def unit(before: int, width: int, kernel: int) -> ConvUnit:
            return ConvUnit(before, width, kernel, use_bias=False, batch_norm=True, dtype=dtype, rngs=rngs)

        w1, reduce3, w3, reduce5, w5, pool = widths
        # Names and order are those of torchvision's GoogLeNet.
        self.branch1 = unit(in_features, w1, 1)
        self.branch2 = nnx.List([unit(in_features, reduce3, 1), unit(reduce3, w3, 3)])
        self.branch3 = nnx.List([unit(in_features, reduce5, 1), unit(reduce5, w5, 5)])
        self.branch4 = unit(in_features, pool, 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (b, h, w, i) to (b, h, w, o), branches in the order of their names."""
        branches = [self.branch1(x)]
        for reduce, conv in (self.branch2, self.branch3):
            branches.append(conv(reduce(x)))
        branches.append(self.branch4(max_pool_3x3_s1(x)))
        return jnp.concatenate(branches, axis=-1)


class VGGInception(VGGFeatures):
    """VGG16 with Inception blocks: images (b, h, w, 3), at least 32×32, to float32 logits (b, num_classes).

    VGG's features, Inception blocks, global average pooling, dropout, dense; see `VGGInceptionConfig` for the choices,
    `VGG` for `dtype`. VGG16's convolutions are at the same paths as in `VGG`, so that their weights load. `remat`
    recomputes each block of VGG; the Inception blocks, on small maps, keep their activations.
    """

    def __init__(
        self,
        config: VGGInceptionConfig,
        *,
        num_classes: int,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(config, dtype=dtype, remat=remat, rngs=rngs)
        channels = config.widths[-1]
        inceptions = []
        for widths in config.inceptions:
            inceptions.append(Inception(channels, widths, dtype=dtype, rngs=rngs))
            w1, _, w3, _, w5, pool = widths
            channels = w1 + w3 + w5 + pool
        self.inceptions = nnx.List(inceptions)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)
        self.head = Linear(channels, num_classes, dtype=at_least_float32(dtype), rngs=rngs)

    def feature_maps(self, x: jax.Array) -> dict[str, jax.Array]:
        """Return the maps of `VGGFeatures`, then `inception1`, `inception2`, …, each (b, ⌊h/32⌋, ⌊w/32⌋, c)."""
        maps = super().feature_maps(x)
        x = maps["pool5"]
        for index, inception in enumerate(self.inceptions):
            maps[f"inception{index + 1}"] = x = tap(f"inception{index + 1}", inception(x))
        return maps

    def features(self, x: jax.Array) -> jax.Array:
        """Map images (b, h, w, 3) to the output of the last Inception block, (b, ⌊h/32⌋, ⌊w/32⌋, c)."""
        return self.feature_maps(x)[f"inception{len(self.inceptions)}"]

    def classify(self, features: jax.Array) -> jax.Array:
        """Map the output of `features` to float32 logits (b, num_classes)."""
        return self.head(self.dropout(global_avg_pool(features)))

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
        """Map images (b, h, w, 3) to float32 logits (b, num_classes)."""
        return self.classify(self.features(x))


def _timm(name: str) -> TimmModel:
    sizes = "for images below 256 pixels, because it pools larger ones differently"
    return TimmModel(name, first_conv="features.0", classifier="head.fc", fits=lambda size, _: size < 256, sizes=sizes)


_SMALL = {"widths": (16, 16, 32, 32, 32), "depths": (1, 1, 2, 1, 1)}

SPECS = (
    ModelSpec(
        name="vgg16",
        builder=VGG,
        config=VGGConfig(),
        drop_options=("dropout",),
        grad_cam_layer="conv5",  # the paper's layer, and twice as fine as `pool5`
        namings=VGG16,
        timm=_timm("vgg16"),
        compared_with="torchvision vgg16",
        small={**_SMALL, "hidden": 32},
    ),
    ModelSpec(
        name="vgg16_bn",
        builder=VGG,
        config=VGGConfig(batch_norm=True),
        drop_options=("dropout",),
        grad_cam_layer="conv5",
        namings=VGG16_BN,
        timm=_timm("vgg16_bn"),
        compared_with="torchvision vgg16_bn",
        small={**_SMALL, "hidden": 32},
    ),
    ModelSpec(
        name="vgg16_inception",
        builder=VGGInception,
        config=VGGInceptionConfig(),
        drop_options=("dropout",),
        namings=VGG16_CONVOLUTIONS,
        new_parts=("inceptions/", "head/"),
        compared_with="PyTorch twin",
        small={**_SMALL, "inceptions": ((16, 8, 16, 8, 8, 8),)},
    ),
)
