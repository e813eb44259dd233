"""Names of Vision Transformer weights: timm and DINOv2, which agree, torchvision, Hugging Face, and the original."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from histojax.models.naming.rules import Naming, Rule, dense, layer_norm
from histojax.models.naming.transforms import CONV, DENSE, SPLIT_BIAS, SPLIT_DENSE, Transform

_BLOCK = "blocks/{i}"
_HEAD_CHANNELS = 64  # the original's files store heads separately; every published size has this width
# One vector (c,) <-> (1, 1, c); several (r, c) <-> (1, r, c).
_TOKEN = Transform(lambda a: a[0].reshape(-1), lambda a: (a.reshape(1, 1, -1),))
_TOKENS = Transform(lambda a: a[0].reshape(a[0].shape[-2:]), lambda a: (a.reshape(1, *a.shape),))


def _split(a: np.ndarray, axis: int) -> list[np.ndarray]:
    shape = (a.shape[0], -1, _HEAD_CHANNELS) if a.ndim == 2 else (-1, _HEAD_CHANNELS)
    return [part.reshape(shape) for part in np.split(a, 3, axis=axis)]


def _join(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([part.reshape(*part.shape[:-2], -1) for part in parts], axis=-1)


# Query, key and value (c, heads, d), biases (heads, d); the output (heads, d, c).
_HEADS = Transform(_join, lambda a: _split(a, -1))
_OUT = Transform(lambda a: a[0].reshape(-1, a[0].shape[-1]), lambda a: (a.reshape(-1, _HEAD_CHANNELS, a.shape[-1]),))


def _ends(token: str, positions: str, patches: str, last: str, head: str) -> tuple[Rule, ...]:
    """Return the rules for everything outside the blocks."""
    return (
        Rule("class_token", token, _TOKEN),
        Rule("position_embedding", positions),
        Rule("patch_embed/proj/kernel", f"{patches}.weight", CONV),
        Rule("patch_embed/proj/bias", f"{patches}.bias"),
        *layer_norm("norm", last),
        *dense("head", head),
    )


def _timm(title: str, registers: str = "reg_token", mlp: tuple[str, str] = ("fc1", "fc2")) -> Naming:
    rules = [*_ends("cls_token", "pos_embed", "patch_embed.proj", "norm", "head")]
    rules.append(Rule("registers", registers, _TOKENS))
    for n in (1, 2):
        rules += layer_norm(f"{_BLOCK}/norm{n}", f"blocks.{{i}}.norm{n}")
        rules += dense(f"{_BLOCK}/mlp/fc{n}", f"blocks.{{i}}.mlp.{mlp[n - 1]}")
        rules.append(Rule(f"{_BLOCK}/scale{n}", f"blocks.{{i}}.ls{n}.gamma"))
    for part in ("qkv", "proj"):
        rules += dense(f"{_BLOCK}/attn/{part}", f"blocks.{{i}}.attn.{part}")
    return Naming(title, tuple(rules), classifier=("head.",), ignored=(r"^mask_token$",))


def _torchvision() -> Naming:
    layer = "encoder.layers.encoder_layer_{i}"
    rules = [*_ends("class_token", "encoder.pos_embedding", "conv_proj", "encoder.ln", "heads.head")]
    for n in (1, 2):
        rules += layer_norm(f"{_BLOCK}/norm{n}", f"{layer}.ln_{n}")
        rules += dense(f"{_BLOCK}/mlp/fc{n}", f"{layer}.mlp.{3 * (n - 1)}")
    attention = f"{layer}.self_attention"
    rules += [
        Rule(f"{_BLOCK}/attn/qkv/kernel", f"{attention}.in_proj_weight", DENSE),
        Rule(f"{_BLOCK}/attn/qkv/bias", f"{attention}.in_proj_bias"),
        *dense(f"{_BLOCK}/attn/proj", f"{attention}.out_proj"),
    ]
    return Naming("torchvision", tuple(rules), classifier=("heads.",))


def _hugging_face(title: str, begin: str, names: dict[str, str]) -> Naming:
    layer = f"{begin}encoder.layer.{{i}}"
    embeddings = f"{begin}embeddings"
    rules = [
        *_ends(
            f"{embeddings}.cls_token",
            f"{embeddings}.position_embeddings",
            f"{embeddings}.patch_embeddings.projection",
            f"{begin}layernorm",
            "classifier",
        ),
        Rule("registers", f"{embeddings}.register_tokens", _TOKENS),
    ]
    for n in (1, 2):
        rules += layer_norm(f"{_BLOCK}/norm{n}", f"{layer}.{names[f'norm{n}']}")
        rules += dense(f"{_BLOCK}/mlp/fc{n}", f"{layer}.{names[f'fc{n}']}")
        rules.append(Rule(f"{_BLOCK}/scale{n}", f"{layer}.layer_scale{n}.lambda1"))
    separate = tuple(f"{layer}.attention.attention.{part}" for part in ("query", "key", "value"))
    rules += [
        Rule(f"{_BLOCK}/attn/qkv/kernel", tuple(f"{name}.weight" for name in separate), SPLIT_DENSE),
        Rule(f"{_BLOCK}/attn/qkv/bias", tuple(f"{name}.bias" for name in separate), SPLIT_BIAS),
        *dense(f"{_BLOCK}/attn/proj", f"{layer}.attention.output.dense"),
    ]
    ignored = (r"embeddings\.mask_token$", r"^(\w+\.)?pooler\.")
    return Naming(title, tuple(rules), classifier=("classifier.",), ignored=ignored)


_VIT = {"norm1": "layernorm_before", "norm2": "layernorm_after", "fc1": "intermediate.dense", "fc2": "output.dense"}
_DINOV2 = {"norm1": "norm1", "norm2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
_DINOV2_GATED = _DINOV2 | {"fc1": "mlp.weights_in", "fc2": "mlp.weights_out"}


def _original() -> Naming:
    block = "Transformer/encoderblock_{i}"
    attention = f"{block}/MultiHeadDotProductAttention_1"
    rules = [
        Rule("class_token", "cls", _TOKEN),
        Rule("position_embedding", "Transformer/posembed_input/pos_embedding"),
        Rule("patch_embed/proj/kernel", "embedding/kernel"),
        Rule("patch_embed/proj/bias", "embedding/bias"),
        Rule("norm/scale", "Transformer/encoder_norm/scale"),
        Rule("norm/bias", "Transformer/encoder_norm/bias"),
        Rule("head/kernel", "head/kernel"),
        Rule("head/bias", "head/bias"),
    ]
    for n, theirs in ((1, 0), (2, 2)):
        rules.append(Rule(f"{_BLOCK}/norm{n}/scale", f"{block}/LayerNorm_{theirs}/scale"))
        rules.append(Rule(f"{_BLOCK}/norm{n}/bias", f"{block}/LayerNorm_{theirs}/bias"))
        rules.append(Rule(f"{_BLOCK}/mlp/fc{n}/kernel", f"{block}/MlpBlock_3/Dense_{n - 1}/kernel"))
        rules.append(Rule(f"{_BLOCK}/mlp/fc{n}/bias", f"{block}/MlpBlock_3/Dense_{n - 1}/bias"))
    for kind in ("kernel", "bias"):
        parts = tuple(f"{attention}/{part}/{kind}" for part in ("query", "key", "value"))
        rules.append(Rule(f"{_BLOCK}/attn/qkv/{kind}", parts, _HEADS))
    rules.append(Rule(f"{_BLOCK}/attn/proj/kernel", f"{attention}/out/kernel", _OUT))
    rules.append(Rule(f"{_BLOCK}/attn/proj/bias", f"{attention}/out/bias"))
    return Naming("the original's", tuple(rules), classifier=("head/", "pre_logits/"))


_TIMM = _timm("timm/DINOv2")
_OF_VIT = (
    _torchvision(),
    _hugging_face("Hugging Face", "vit.", _VIT),
    _hugging_face("Hugging Face, without head", "", _VIT),
    _original(),
)
_OF_DINOV2 = (
    _hugging_face("Hugging Face DINOv2", "dinov2.", _DINOV2),
    _hugging_face("Hugging Face DINOv2, without head", "", _DINOV2),
)
# DINOv2's own files differ from timm's names for the parts that only its larger models have.
_OF_LARGER_DINOV2 = (
    _timm("DINOv2, registers", "register_tokens"),
    _timm("DINOv2, gated", "register_tokens", ("w12", "w3")),
    *(
        _hugging_face(f"Hugging Face DINOv2, {variant}", begin, names)
        for variant, begin, names in (
            ("registers", "dinov2_with_registers.", _DINOV2),
            ("gated", "dinov2.", _DINOV2_GATED),
            ("gated, without head", "", _DINOV2_GATED),
            ("gated, registers", "dinov2_with_registers.", _DINOV2_GATED),
        )
    ),
)

VIT_BASE = (_TIMM, *_OF_VIT)
DINOV2_BASE = (_TIMM, *_OF_DINOV2)
VIT = (_TIMM, *_OF_VIT, *_OF_DINOV2, *_OF_LARGER_DINOV2)
