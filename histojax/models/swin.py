"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030), equal to torchvision's `swin_t` (version 1).

Maps are (b, h, w, c); windows are (b, windows, n, ...) with n = window² positions. Names are torchvision's, except for
containers: `features.0.0` and `.2` are `patch_embed/proj` and `/norm`; block j of stage i, `features.{2i+1}.{j}`, is
`stages/{i}/{j}`; the merging after it, `features.{2i+2}`, is `merges/{i}`; `mlp.0` and `.3` are `mlp/fc1` and `/fc2`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from histojax.models.naming.swin import SWIN
from histojax.models.ops import kernels
from histojax.models.ops.attention import MASKED, attend
from histojax.models.ops.image_size import check_multiple_of
from histojax.models.ops.intermediates import tap
from histojax.models.ops.layers import Conv, Linear, at_least_float32, gelu, global_avg_pool, lecun_normal
from histojax.models.ops.norms import LayerNorm
from histojax.models.registry import ModelSpec, TimmModel

PATCH = 4
MAX_STAGES = 4
MULTIPLE = 32  # of height and width: patches of 4, then halved three times

_kernel_init = jax.nn.initializers.truncated_normal(0.02)


@dataclass(frozen=True)
class SwinConfig:
    """Sizes of a Swin Transformer; the defaults are Swin-T's (section 3.3 and appendix A2 of the paper).

    Attributes:
      embed_dim: channels after the patch embedding; each merging doubles them.
      depths: number of blocks in each stage.
      heads: number of attention heads in the blocks of each stage.
      window: side of a window in positions.
      mlp_ratio: hidden channels of the MLPs, in multiples of their input's.
      stochastic_depth: drop rate of the last block; the others' grow linearly from zero.

    Raises:
      ValueError: a value out of range.
    """

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: float = 4.0
    stochastic_depth: float = 0.2

    def __post_init__(self) -> None:
        for name in ("depths", "heads"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a tuple of positive numbers")
        if len(self.depths) != len(self.heads):
            raise ValueError(f"depths={self.depths} and heads={self.heads} are not of the same length")
        if len(self.depths) > MAX_STAGES:
            raise ValueError(f"depths={self.depths}: at most four stages, with a map of at least 1×1 at 32×32 pixels")
        if self.embed_dim < 1:
            raise ValueError(f"embed_dim={self.embed_dim} is not a positive number")
        for index, heads in enumerate(self.heads):
            if self.width(index) % heads:
                raise ValueError(f"heads={self.heads}: {heads} does not divide {self.width(index)} channels")
        if self.window < 1:
            raise ValueError(f"window={self.window} is not a positive number")
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio={self.mlp_ratio} is not positive")
        if not 0 <= self.stochastic_depth < 1:
            raise ValueError(f"stochastic_depth={self.stochastic_depth} is not in [0, 1)")

    def width(self, stage: int) -> int:
        """Channels of a stage."""
        return self.embed_dim * 2**stage

    @property
    def num_features(self) -> int:
        """Channels of the last stage."""
        return self.width(len(self.depths) - 1)

    def drop_rate(self, block: int) -> float:
        """Stochastic depth of a block, counted over all stages."""
        return self.stochastic_depth * block / max(sum(self.depths) - 1, 1)


def window_partition(x: jax.Array, window: int) -> jax.Array:
    """Cut (b, h, w, ...) into windows (b, h / window · w / window, window², ...), row by row."""
    b, h, w, *rest = x.shape
    x = x.reshape(b, h // window, window, w // window, window, *rest)
    return x.swapaxes(2, 3).reshape(b, (h // window) * (w // window), window**2, *rest)


def window_reverse(x: jax.Array, window: int, h: int, w: int) -> jax.Array:
    """Put windows (b, h / window · w / window, window², ...) back into (b, h, w, ...)."""
    b, _, _, *rest = x.shape
    x = x.reshape(b, h // window, w // window, window, window, *rest)
    return x.swapaxes(2, 3).reshape(b, h, w, *rest)


def relative_position_index(window: int) -> np.ndarray:
    """Return the row of the bias table for each pair of positions (n, n), by query minus key in y and in x."""
    y, x = np.divmod(np.arange(window**2), window)
    dy, dx = (v[:, None] - v[None, :] + window - 1 for v in (y, x))
    return dy * (2 * window - 1) + dx


def shift_regions(h: int, w: int, window: int, shift: tuple[int, int]) -> np.ndarray:
    """Return the region of each position in each window of the cyclically shifted map (h, w): (windows, n).

    Along an axis shifted by s, the last window holds positions from both ends of the map: its last s come from the
    other end. Positions attend to each other within one region only (figure 4 of the paper).
    """

    def along(size: int, s: int) -> np.ndarray:
        return np.where(np.arange(size) < size - s, 0, 1) if s else np.zeros(size, int)

    regions = 2 * along(h, shift[0])[:, None] + along(w, shift[1])[None, :]
    return regions.reshape(h // window, window, w // window, window).swapaxes(1, 2).reshape(-1, window**2)


class ShiftedWindowAttention(nnx.Module):
    """Multi-head self-attention within windows of a map shifted cyclically by `shift`: (b, h, w, c) -> (b, h, w, c).

    Equation 4 of the paper: softmax(q kᵀ / √d + bias) v, with a bias from a table of relative positions. The map is
    padded with zeros to whole windows at the bottom and on the right; the padding takes part like any other position.
    An axis that one window covers is not shifted. Logits and softmax are at least float32.
    """

    def __init__(
        self, channels: int, heads: int, window: int, shift: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.qkv = Linear(channels, 3 * channels, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)
        self.proj = Linear(channels, channels, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)
        table = _kernel_init(rngs.params(), ((2 * window - 1) ** 2, heads), jnp.float32)
        self.relative_position_bias_table = nnx.Param(table)
        self.heads = heads
        self.window = window
        self.shift = shift

    def bias(self) -> jax.Array:
        """Return the values added to the logits of each pair of positions: (heads, n, n)."""
        return self.relative_position_bias_table[...][relative_position_index(self.window)].transpose(2, 0, 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Attend within each window of (b, h, w, c)."""
        _, h, w, c = x.shape
        height, width = (-(-size // self.window) * self.window for size in (h, w))
        down, right = (self.shift if size > self.window else 0 for size in (height, width))
        if (height, width) != (h, w):
            x = jnp.pad(x, ((0, 0), (0, height - h), (0, width - w), (0, 0)))
        if kernels.window_kernel_supports(self.qkv.dtype, self.window, c // self.heads):
            return self.proj(self._attend_with_kernel(x, down, right))[:, :h, :w]
        if down or right:
            x = jnp.roll(x, (-down, -right), (1, 2))

        x = window_partition(x, self.window)
        qkv = self.qkv(x).reshape(*x.shape[:3], 3, self.heads, c // self.heads)
        q, k, v = qkv.transpose(3, 0, 1, 4, 2, 5)  # each (b, windows, heads, n, d)
        bias = self.bias()[None]
        if down or right:
            regions = shift_regions(height, width, self.window, (down, right))
            bias = bias + np.where(regions[:, :, None] == regions[:, None, :], 0.0, MASKED)[:, None].astype(bias.dtype)
        x = attend(q, k, v, bias).swapaxes(2, 3).reshape(x.shape)
        x = window_reverse(self.proj(x), self.window, height, width)

        if down or right:
            x = jnp.roll(x, (down, right), (1, 2))
        return x[:, :h, :w]

    def _attend_with_kernel(self, x: jax.Array, down: int, right: int) -> jax.Array:
        # Imported here, because not every jax has Triton.
        from histojax.models.ops.window_attention import Cut, window_attention

        assert self.qkv.bias is not None
        qkv_bias = self.qkv.bias[...].astype(self.qkv.dtype)
        return window_attention(self.qkv.product(x), qkv_bias, self.bias(), Cut(self.heads, self.window, down, right))


class MLP(nnx.Module):
    """Dense, GELU, Dense: (..., c) -> (..., c)."""

    def __init__(self, channels: int, hidden: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        self.fc1 = Linear(channels, hidden, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(hidden, channels, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map each (c,) of (..., c)."""
        return self.fc2(gelu(self.fc1(x)))


class SwinBlock(nnx.Module):
    """y = x + drop(attn(norm1(x))), z = y + drop(mlp(norm2(y))) (equation 3): (b, h, w, c) -> (b, h, w, c).

    In training `drop` is stochastic depth (Huang et al. 2016, arXiv 1603.09382): for each image the branch is dropped
    with probability `drop_rate`, and otherwise divided by 1 - `drop_rate`.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        *,
        shift: int = 0,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.norm1 = LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.attn = ShiftedWindowAttention(channels, heads, window, shift, dtype=dtype, rngs=rngs)
        self.stochastic_depth = nnx.Dropout(drop_rate, broadcast_dims=(1, 2, 3), rngs=rngs)
        self.norm2 = LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.mlp = MLP(channels, int(channels * mlp_ratio), dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (b, h, w, c) to (b, h, w, c)."""
        x = x + self.stochastic_depth(self.attn(self.norm1(x)))
        return x + self.stochastic_depth(self.mlp(self.norm2(x)))


class PatchEmbed(nnx.Module):
    """Patches of 4×4 pixels to vectors: (b, h, w, 3) -> (b, h / 4, w / 4, c)."""

    def __init__(self, channels: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        size = (PATCH, PATCH)
        self.proj = Conv(
            3, channels, size, strides=size, use_bias=True, dtype=dtype, kernel_init=lecun_normal, rngs=rngs
        )
        self.norm = LayerNorm(channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (b, h, w, 3) to (b, h / 4, w / 4, c)."""
        return self.norm(self.proj(x))


class PatchMerging(nnx.Module):
    """Concatenate 2×2 neighbours, normalise, project: (b, h, w, c) -> (b, h / 2, w / 2, 2c); h and w are even."""

    def __init__(self, channels: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        self.norm = LayerNorm(4 * channels, dtype=dtype, rngs=rngs)
        self.reduction = Linear(
            4 * channels, 2 * channels, use_bias=False, kernel_init=_kernel_init, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (b, h, w, c) to (b, h / 2, w / 2, 2c)."""
        b, h, w, c = x.shape
        # The four in torchvision's order: (0, 0), (1, 0), (0, 1), (1, 1).
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5).reshape(b, h // 2, w // 2, 4 * c)
        return self.reduction(self.norm(x))


def rematerialised(module: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Call a module, recomputing it in the backward pass instead of storing its activations."""
    return nnx.remat(type(module).__call__)(module, x)


class SwinStages(nnx.Module):
    """Patch embedding and stages of a Swin Transformer: images (b, h, w, 3) to the last stage's map.

    `remat` recomputes each block in the backward pass. `dtype` is the type of the computation.
    """

    def __init__(self, config: SwinConfig, *, dtype: Any = jnp.float32, remat: bool = False, rngs: nnx.Rngs) -> None:
        self.dtype = dtype
        self.remat = remat
        self.patch_embed = PatchEmbed(config.embed_dim, dtype=dtype, rngs=rngs)
        stages, merges = [], []
        for index, depth in enumerate(config.depths):
            if index:
                merges.append(PatchMerging(config.width(index - 1), dtype=dtype, rngs=rngs))
            before = sum(config.depths[:index])
            blocks = [
                SwinBlock(
                    config.width(index),
                    config.heads[index],
                    config.window,
                    shift=config.window // 2 if i % 2 else 0,
                    mlp_ratio=config.mlp_ratio,
                    drop_rate=config.drop_rate(before + i),
                    dtype=dtype,
                    rngs=rngs,
                )
                for i in range(depth)
            ]
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.merges = nnx.List(merges)

    def run(self, module: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        """Call a block, rematerialised if `remat` is set."""
        return rematerialised(module, x) if self.remat else module(x)

    def after_block(self, x: jax.Array, stage: int, block: int) -> jax.Array:
        """Hook for subclasses after each block, (b, h, w, c) -> (b, h, w, c); the identity here."""
        del stage, block
        return x

    def feature_maps(self, x: jax.Array) -> dict[str, jax.Array]:
        """Map images (b, h, w, 3) to the outputs of the stages, named `stage1`, `stage2`, …, in this order.

        The first is (b, h / 4, w / 4, embed_dim); each further one has half the height and width, twice the channels.

        Raises:
          ValueError: h or w is not a multiple of 32.
        """
        check_multiple_of(MULTIPLE, *x.shape[1:3])
        x = self.patch_embed(x)
        maps = {}
        for i, stage in enumerate(self.stages):
            if i:
                x = self.merges[i - 1](x)
            for j, block in enumerate(stage):
                x = self.after_block(self.run(block, x), i, j)
            maps[f"stage{i + 1}"] = x = tap(f"stage{i + 1}", x)
        return maps

    def features(self, x: jax.Array) -> jax.Array:
        """Map images (b, h, w, 3) to the last stage's output, before any norm.

        With four stages it is (b, h / 32, w / 32, 8 · embed_dim), with three (b, h / 16, w / 16, 4 · embed_dim).
        Raises as `feature_maps`.
        """
        return SwinStages.feature_maps(self, x)[f"stage{len(self.stages)}"]


class Swin(SwinStages):
    """Swin Transformer: images (b, h, w, 3), already normalised, to float32 logits (b, num_classes).

    Height and width are multiples of 32 and may differ; the same parameters serve every such size. The last norm and
    the head compute in at least float32 for every `dtype`.
    """

    def __init__(
        self,
        config: SwinConfig,
        *,
        num_classes: int,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(config, dtype=dtype, remat=remat, rngs=rngs)
        head_dtype = at_least_float32(dtype)
        self.norm = LayerNorm(config.num_features, dtype=head_dtype, rngs=rngs)
        self.head = Linear(config.num_features, num_classes, kernel_init=_kernel_init, dtype=head_dtype, rngs=rngs)

    def classify(self, features: jax.Array) -> jax.Array:
        """Map the output of `features` to float32 logits (b, num_classes)."""
        return self.head(global_avg_pool(self.norm(features)))

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
        """Map images (b, h, w, 3) to float32 logits (b, num_classes)."""
        return self.classify(self.features(x))


def check_image_size(size: int, config: SwinConfig) -> None:
    """Raise ValueError, naming the nearest legal sizes, if an image side is not a multiple of 32 pixels."""
    del config
    check_multiple_of(MULTIPLE, size)


def _tiles_every_map(size: int, config: SwinConfig) -> bool:
    return size % (PATCH * 2 ** (len(config.depths) - 1) * config.window) == 0


SPEC = ModelSpec(
    name="swin_tiny_patch4_window7_224",
    builder=Swin,
    config=SwinConfig(),
    check_image_size=check_image_size,
    without_weight_decay=("relative_position_bias_table",),
    drop_options=("stochastic_depth",),
    namings=SWIN,
    timm=TimmModel(
        "swin_tiny_patch4_window7_224",
        first_conv="patch_embed.proj",
        classifier="head.fc",
        fixed_size=True,
        arguments={
            "depths": "depths",
            "embed_dim": "embed_dim",
            "heads": "num_heads",
            "mlp_ratio": "mlp_ratio",
            "window": "window_size",
        },
        fits=_tiles_every_map,
        sizes="where windows tile every map, as at 224 pixels: it partitions other sizes differently",
    ),
    compared_with="torchvision swin_t",
    small={"embed_dim": 12, "depths": (2, 1, 1, 1), "heads": (1, 2, 2, 2), "window": 2},
)
