"""Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929), equal to timm's and torchvision's, and DINOv2's.

DINOv2 (Oquab et al. 2023, arXiv 2304.07193) and the pathology backbones made like it are the same network with patches
of 14, layer scale, registers (Darcet et al. 2023, arXiv 2309.16588) and a gated MLP (Shazeer 2020, arXiv 2002.05202).
The model `vit` takes their sizes as options. Names are timm's, except for `pos_embed`, `cls_token`, `reg_token` and
`ls1.gamma`, which are `position_embedding`, `class_token`, `registers` and `scale1` here. Shapes: n positions row by
row, c channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from histojax.models.naming import vit as naming
from histojax.models.naming.rules import Naming
from histojax.models.ops.attention import attend
from histojax.models.ops.image_size import check_multiple_of
from histojax.models.ops.intermediates import tap
from histojax.models.ops.layers import Conv, Linear, at_least_float32, gelu, lecun_normal
from histojax.models.ops.norms import LayerNorm
from histojax.models.registry import ModelSpec, TimmModel

Pool = Literal["token", "mean", "token_mean"]
Gate = Literal["gelu", "swiglu"]

_kernel_init = jax.nn.initializers.truncated_normal(0.02)


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a Vision Transformer; the defaults are ViT-B/16's at 224×224 (table 1 of the paper).

    Attributes:
      image_size: image side of the position embedding, in pixels; it is resampled for images of other sizes.
      patch: side of a patch in pixels.
      embed_dim: channels.
      depth: number of blocks.
      heads: number of attention heads.
      mlp_ratio: hidden channels of the MLPs, in multiples of `embed_dim`.
      mlp: "gelu", or "swiglu", which splits the hidden channels into gates and values, half each.
      layer_scale: initial value of the scales of the branches (Touvron et al. 2021, arXiv 2103.17239); 0: no scales.
      registers: number of additional tokens, which the head does not see. With registers only the patches have a
        position embedding, as in timm.
      pool: what the head sees: the class token ("token"), the mean over the positions ("mean"), or both concatenated
        ("token_mean").
      epsilon: epsilon of the norms.
      dropout: dropout rate.
      stochastic_depth: drop rate of the last block; the others' grow linearly from zero.

    Raises:
      ValueError: a value out of range; the message names the legal ones.
    """

    image_size: int = 224
    patch: int = 16
    embed_dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    mlp: Gate = "gelu"
    layer_scale: float = 0.0
    registers: int = 0
    pool: Pool = "token"
    epsilon: float = 1e-6
    dropout: float = 0.0
    stochastic_depth: float = 0.0

    def __post_init__(self) -> None:
        for name in ("patch", "embed_dim", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a positive number")
        check_multiple_of(self.patch, self.image_size)
        if self.embed_dim % self.heads:
            raise ValueError(f"heads={self.heads} does not divide embed_dim={self.embed_dim}")
        for name, kind in (("pool", Pool), ("mlp", Gate)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, get_args(kind)))}")
        for name in ("mlp_ratio", "epsilon"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} is not positive")
        for name in ("layer_scale", "registers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is negative")
        if self.mlp == "swiglu" and self.hidden % 2:
            raise ValueError(
                f"mlp_ratio={self.mlp_ratio} gives {self.hidden} hidden channels; swiglu needs an even number"
            )
        for name in ("dropout", "stochastic_depth"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not in [0, 1)")

    @property
    def grid(self) -> int:
        """Positions along a side of the position embedding."""
        return self.image_size // self.patch

    @property
    def hidden(self) -> int:
        """Channels after an MLP's first layer."""
        return int(self.embed_dim * self.mlp_ratio)


def resampling_weights(old: int, new: int) -> np.ndarray:
    """Return the matrix (new, old) that resamples `old` equidistant values to `new`: bicubic, with antialiasing.

    As in Pillow, and in PyTorch with `antialias=True`: Keys's kernel with a = -1/2, widened by old / new if that is
    more than one, and cut at the borders.
    """
    scale = old / new
    wide = max(scale, 1.0)
    weights = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * scale
        first, last = max(int(centre - 2 * wide + 0.5), 0), min(int(centre + 2 * wide + 0.5), old)
        x = np.abs((np.arange(first, last) + 0.5 - centre) / wide)
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        kernel = np.where(x < 1, near, np.where(x < 2, far, 0.0))
        weights[i, first:last] = kernel / kernel.sum()
    return weights


def resample_positions(table: Any, old: tuple[int, int], new: tuple[int, int]) -> Any:
    """Map a position embedding (1, t + h·w, c) from a grid (h, w) to another; the t leading tokens stay as they are.

    Equal to timm's `resample_abs_pos_embed`. The result has the library and the type of `table`.
    """
    if old == new:
        return table
    leading, xp = table.shape[1] - old[0] * old[1], np if isinstance(table, np.ndarray) else jnp
    dtype = np.promote_types(table.dtype, np.float32)
    rows, columns = (resampling_weights(o, n).astype(dtype) for o, n in zip(old, new, strict=True))
    grid = table[:, leading:].astype(dtype).reshape(1, *old, -1)
    grid = xp.einsum("ah,bw,nhwc->nabc", rows, columns, grid).reshape(1, new[0] * new[1], -1)
    return xp.concatenate([table[:, :leading], grid.astype(table.dtype)], axis=1)


class Attention(nnx.Module):
    """Multi-head self-attention: (b, n, c) -> (b, n, c).

    softmax(q kᵀ / √d) v, where logits and softmax are at least float32.
    """

    def __init__(self, channels: int, heads: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        self.qkv = Linear(channels, 3 * channels, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)
        self.proj = Linear(channels, channels, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)
        self.heads = heads

    def __call__(self, x: jax.Array) -> jax.Array:
        """Let every position of (b, n, c) attend to all positions."""
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # each (b, heads, n, d)
        return self.proj(attend(q, k, v).swapaxes(1, 2).reshape(b, n, c))


class MLP(nnx.Module):
    """Dense, GELU or gate, dropout, dense: (..., c) -> (..., c)."""

    def __init__(self, config: ViTConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        channels, hidden = config.embed_dim, config.hidden
        self.gated = config.mlp == "swiglu"
        self.fc1 = Linear(channels, hidden, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)
        inner = hidden // 2 if self.gated else hidden
        self.fc2 = Linear(inner, channels, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map each (c,) of (..., c)."""
        x = self.fc1(x)
        if self.gated:
            gate, value = jnp.split(x, 2, axis=-1)
            x = jax.nn.silu(gate) * value
        else:
            x = gelu(x)
        return self.fc2(self.dropout(x))


class Block(nnx.Module):
    """y = x + drop(scale1 · attn(norm1(x))), z = y + drop(scale2 · mlp(norm2(y))): (b, n, c) -> (b, n, c).

    In training `drop` is dropout, then stochastic depth: for each image the branch is dropped with probability
    `drop_rate`, and otherwise divided by 1 - `drop_rate`.
    """

    def __init__(self, config: ViTConfig, drop_rate: float, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        channels = config.embed_dim
        self.norm1 = LayerNorm(channels, epsilon=config.epsilon, dtype=dtype, rngs=rngs)
        self.attn = Attention(channels, config.heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(channels, epsilon=config.epsilon, dtype=dtype, rngs=rngs)
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)
        self.stochastic_depth = nnx.Dropout(drop_rate, broadcast_dims=(1, 2), rngs=rngs)

        def scale() -> nnx.Param | None:
            return nnx.Param(jnp.full((channels,), config.layer_scale, jnp.float32)) if config.layer_scale else None

        self.scale1, self.scale2 = scale(), scale()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (b, n, c) to (b, n, c)."""
        x = x + self._branch(self.attn(self.norm1(x)), self.scale1)
        return x + self._branch(self.mlp(self.norm2(x)), self.scale2)

    def _branch(self, x: jax.Array, scale: nnx.Param | None) -> jax.Array:
        if scale is not None:
            x = x * scale[...][None, None].astype(x.dtype)
        return self.stochastic_depth(self.dropout(x))


class PatchEmbed(nnx.Module):
    """Patches to vectors: (b, h, w, 3) -> (b, h / p, w / p, c)."""

    def __init__(self, patch: int, channels: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        size = (patch, patch)
        self.proj = Conv(
            3, channels, size, strides=size, use_bias=True, dtype=dtype, kernel_init=lecun_normal, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (b, h, w, 3) to (b, h / p, w / p, c)."""
        return self.proj(x)


_rematerialised = nnx.remat(Block.__call__)


class ViT(nnx.Module):
    """Vision Transformer: images (b, h, w, 3), already normalised, to float32 logits (b, num_classes).

    Height and width are multiples of the patch and may differ; for sizes other than `image_size` the position embedding
    is resampled. `remat` recomputes each block in the backward pass. The last norm and the head compute in at least
    float32 for every `dtype`.
    """

    def __init__(
        self,
        config: ViTConfig,
        *,
        num_classes: int,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.dtype = dtype
        self.remat = remat
        self.patch = config.patch
        self.grid = config.grid
        self.pool = config.pool
        channels = config.embed_dim
        self.patch_embed = PatchEmbed(config.patch, channels, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(jnp.zeros((channels,), jnp.float32))
        shape = (config.registers, channels)
        self.registers = nnx.Param(_kernel_init(rngs.params(), shape, jnp.float32)) if config.registers else None
        # With registers the class token has no position, which could be part of the token anyway.
        n = config.grid**2 + (0 if config.registers else 1)
        self.position_embedding = nnx.Param(_kernel_init(rngs.params(), (1, n, channels), jnp.float32))
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)
        rates = np.linspace(0, config.stochastic_depth, config.depth).tolist()
        self.blocks = nnx.List([Block(config, rate, dtype=dtype, rngs=rngs) for rate in rates])
        head_dtype = at_least_float32(dtype)
        self.norm = LayerNorm(channels, epsilon=config.epsilon, dtype=head_dtype, rngs=rngs)
        seen = channels * (2 if config.pool == "token_mean" else 1)
        self.head = Linear(seen, num_classes, kernel_init=_kernel_init, dtype=head_dtype, rngs=rngs)

    def _run(self, x: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        check_multiple_of(self.patch, *x.shape[1:3])
        x = self.patch_embed(x)
        b, h, w, c = x.shape
        positions = resample_positions(self.position_embedding[...], (self.grid, self.grid), (h, w)).astype(x.dtype)
        x = x.reshape(b, h * w, c)
        token = jnp.broadcast_to(self.class_token[...][None, None].astype(x.dtype), (b, 1, c))
        if self.registers is None:
            x = jnp.concatenate([token, x], axis=1)
            x = self.dropout(x + jnp.broadcast_to(positions, x.shape))
            leading = 1
        else:
            registers = jnp.broadcast_to(self.registers[...][None].astype(x.dtype), (b, *self.registers.shape))
            x = x + jnp.broadcast_to(positions, x.shape)
            x = self.dropout(jnp.concatenate([token, registers, x], axis=1))
            leading = 1 + self.registers.shape[0]
        maps = {}
        for i, block in enumerate(self.blocks):
            x = tap(f"block{i + 1}", _rematerialised(block, x) if self.remat else block(x), (h, w))
            maps[f"block{i + 1}"] = x[:, leading:].reshape(b, h, w, c)
        if leading > 1:
            x = jnp.concatenate([x[:, :1], x[:, leading:]], axis=1)
        return maps, x

    def feature_maps(self, x: jax.Array) -> dict[str, jax.Array]:
        """Map images (b, h, w, 3) to the positions after each block, `block1`, `block2`, …, each (b, h / p, w / p, c).

        Raises:
          ValueError: h or w is not a multiple of the patch.
        """
        return self._run(x)[0]

    def features(self, x: jax.Array) -> jax.Array:
        """Map images (b, h, w, 3) to the class token and the positions after the last norm, (b, 1 + n, c), float32.

        Raises:
          ValueError: h or w is not a multiple of the patch.
        """
        return self.norm(self._run(x)[1])

    def classify(self, features: jax.Array) -> jax.Array:
        """Map the output of `features` to float32 logits (b, num_classes)."""
        token, mean = features[:, 0], features[:, 1:].mean(1)
        seen = {"token": token, "mean": mean, "token_mean": jnp.concatenate([token, mean], axis=-1)}
        return self.head(seen[self.pool])

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b k"]:
        """Map images (b, h, w, 3) to float32 logits (b, num_classes)."""
        return self.classify(self.features(x))


def check_image_size(size: int, config: ViTConfig) -> None:
    """Raise ValueError, naming the nearest legal sizes, if an image side is not a multiple of the patch."""
    check_multiple_of(config.patch, size)


def _timm(name: str) -> TimmModel:
    return TimmModel(
        name,
        first_conv="patch_embed.proj",
        classifier="head",
        fixed_size=True,
        arguments={"image_size": "img_size", "embed_dim": "embed_dim", "depth": "depth", "heads": "num_heads"},
        fits=lambda size, config: config.image_size == size,
        sizes="at the size of its position embedding (model.options.image_size)",
    )


def _spec(name: str, config: ViTConfig, namings: tuple[Naming, ...], **fields: Any) -> ModelSpec:
    return ModelSpec(
        name=name,
        builder=ViT,
        config=config,
        check_image_size=check_image_size,
        without_weight_decay=("position_embedding", "registers"),
        position_embedding="position_embedding",
        drop_options=("dropout", "stochastic_depth"),
        # The positions that enter the last block. After it only the class token reaches the logits, and the gradient
        # with respect to every other position is zero.
        grad_cam_layer=-2,
        namings=namings,
        **fields,
    )


_SMALL = {"image_size": 32, "patch": 8, "embed_dim": 32, "depth": 2, "heads": 2}

VIT_BASE = _spec(
    "vit_base_patch16_224",
    ViTConfig(),
    naming.VIT_BASE,
    timm=_timm("vit_base_patch16_224"),
    compared_with="timm, torchvision vit_b_16",
    small=_SMALL,
)
# DINOv2's ViT-B/14. Its published position embedding, for 518×518, is resampled when it is loaded.
DINOV2_BASE = _spec(
    "dinov2_vitb14",
    ViTConfig(patch=14, layer_scale=1e-5),
    naming.DINOV2_BASE,
    timm=_timm("vit_base_patch14_dinov2"),
    compared_with="timm vit_base_patch14_dinov2",
    small={**_SMALL, "layer_scale": 0.1},
)
# DINOv2's ViT-S/14, the same network with half the channels.
DINOV2_SMALL = _spec(
    "vit_small_patch14_dinov2",
    ViTConfig(patch=14, layer_scale=1e-5, embed_dim=384, heads=6),
    naming.DINOV2_BASE,
    timm=_timm("vit_small_patch14_dinov2"),
    compared_with="timm vit_small_patch14_dinov2",
    small={**_SMALL, "layer_scale": 0.1},
)
# A Vision Transformer of any size.
VIT = _spec(
    "vit",
    ViTConfig(),
    naming.VIT,
    compared_with="timm, transformers (UNI, UNI2, GigaPath, H-optimus, Virchow2, Phikon, DINOv2)",
    small={**_SMALL, "registers": 2, "mlp": "swiglu"},
)
