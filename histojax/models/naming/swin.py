"""Names of Swin weights: torchvision, timm since 0.9, Microsoft (and earlier timm), and two of Hugging Face.

All of them concatenate the four neighbours of a patch merging in the same order, column before row: (0, 0), (1, 0),
(0, 1), (1, 1). `histojax.models.swin` does the same, so nothing is permuted.
"""

from __future__ import annotations

import numpy as np

from histojax.models.naming.rules import Naming, Rule, dense, layer_norm
from histojax.models.naming.transforms import CONV, DENSE, SPLIT_BIAS, SPLIT_DENSE

_BLOCK = "stages/{i}/{j}"
_IGNORED = (r"relative_position_index$", r"attn_mask$")


def _ends(embed: str, embed_norm: str, merge: str, last_norm: str, head: str) -> tuple[Rule, ...]:
    """Return the rules for everything outside the blocks."""
    return (
        Rule("patch_embed/proj/kernel", f"{embed}.weight", CONV),
        Rule("patch_embed/proj/bias", f"{embed}.bias"),
        *layer_norm("patch_embed/norm", embed_norm),
        *layer_norm("merges/{i}/norm", f"{merge}.norm"),
        Rule("merges/{i}/reduction/kernel", f"{merge}.reduction.weight", DENSE),
        *layer_norm("norm", last_norm),
        *dense("head", head),
    )


def _block(block: str, fc1: str, fc2: str) -> tuple[Rule, ...]:
    """Return the rules for a block whose query, key and value are one layer."""
    table = "attn.relative_position_bias_table"
    return (
        *layer_norm(f"{_BLOCK}/norm1", f"{block}.norm1"),
        *layer_norm(f"{_BLOCK}/norm2", f"{block}.norm2"),
        *dense(f"{_BLOCK}/attn/qkv", f"{block}.attn.qkv"),
        *dense(f"{_BLOCK}/attn/proj", f"{block}.attn.proj"),
        Rule(f"{_BLOCK}/attn/relative_position_bias_table", f"{block}.{table}"),
        *dense(f"{_BLOCK}/mlp/fc1", f"{block}.mlp.{fc1}"),
        *dense(f"{_BLOCK}/mlp/fc2", f"{block}.mlp.{fc2}"),
    )


def _split_block(block: str, qkv: tuple[str, str, str], table: str, out: str, fc1: str, fc2: str) -> tuple[Rule, ...]:
    """Return the rules for a block whose query, key and value are separate layers."""
    weights, biases = (tuple(f"{block}.attention.{name}.{leaf}" for name in qkv) for leaf in ("weight", "bias"))
    return (
        *layer_norm(f"{_BLOCK}/norm1", f"{block}.layernorm_before"),
        *layer_norm(f"{_BLOCK}/norm2", f"{block}.layernorm_after"),
        Rule(f"{_BLOCK}/attn/qkv/kernel", weights, SPLIT_DENSE),
        Rule(f"{_BLOCK}/attn/qkv/bias", biases, SPLIT_BIAS),
        *dense(f"{_BLOCK}/attn/proj", f"{block}.attention.{out}"),
        Rule(f"{_BLOCK}/attn/relative_position_bias_table", f"{block}.attention.{table}"),
        *dense(f"{_BLOCK}/mlp/fc1", f"{block}.{fc1}"),
        *dense(f"{_BLOCK}/mlp/fc2", f"{block}.{fc2}"),
    )


def _position_index(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute torchvision's buffers (w⁴,): the row of a bias table ((2w - 1)², heads) for each pair of positions."""
    indices = {}
    for name, table in arrays.items():
        if name.endswith("attn.relative_position_bias_table"):
            side = round(table.shape[0] ** 0.5)
            window = (side + 1) // 2
            y, x = np.divmod(np.arange(window**2), window)
            dy, dx = (v[:, None] - v[None, :] + window - 1 for v in (y, x))
            indices[name.replace("bias_table", "index")] = (dy * side + dx).reshape(-1).astype(np.int64)
    return indices


_TORCHVISION = Naming(
    "torchvision",
    _ends("features.0.0", "features.0.2", "features.{i*2+2}", "norm", "head")
    + _block("features.{i*2+1}.{j}", "0", "3"),
    ("head.",),
    _IGNORED,
    _position_index,
)
_TIMM = Naming(
    "timm",
    _ends("patch_embed.proj", "patch_embed.norm", "layers.{i+1}.downsample", "norm", "head.fc")
    + _block("layers.{i}.blocks.{j}", "fc1", "fc2"),
    ("head.",),
    _IGNORED,
)
_MICROSOFT = Naming(
    "Microsoft",
    _ends("patch_embed.proj", "patch_embed.norm", "layers.{i}.downsample", "norm", "head")
    + _block("layers.{i}.blocks.{j}", "fc1", "fc2"),
    ("head.",),
    _IGNORED,
)


def _hugging_face(root: str, title: str, blocks: tuple[Rule, ...]) -> Naming:
    embed = f"{root}embeddings."
    merge = f"{root}encoder.layers.{{i}}.downsample"
    ends = _ends(f"{embed}patch_embeddings.projection", f"{embed}norm", merge, f"{root}layernorm", "classifier")
    return Naming(title, ends + blocks, ("classifier.", "pooler."), _IGNORED)


def _saved_blocks(root: str) -> tuple[Rule, ...]:
    qkv = ("self.query", "self.key", "self.value")
    table = "self.relative_position_bias_table"
    return _split_block(
        f"{root}encoder.layers.{{i}}.blocks.{{j}}", qkv, table, "output.dense", "intermediate.dense", "output.dense"
    )


def _in_memory_blocks(root: str) -> tuple[Rule, ...]:
    qkv = ("q_proj", "k_proj", "v_proj")
    table = "relative_position_bias.relative_position_bias_table"
    return _split_block(f"{root}encoder.layers.{{i}}.blocks.{{j}}", qkv, table, "o_proj", "mlp.fc1", "mlp.fc2")


SWIN = (
    _TORCHVISION,
    _TIMM,
    _MICROSOFT,
    # `save_pretrained` writes the first names. In memory, and so for torch.save, transformers 5 has the second ones.
    _hugging_face("swin.", "Hugging Face", _saved_blocks("swin.")),
    _hugging_face("", "Hugging Face, without head", _saved_blocks("")),
    _hugging_face("swin.", "Hugging Face in memory", _in_memory_blocks("swin.")),
    _hugging_face("", "Hugging Face in memory, without head", _in_memory_blocks("")),
)
