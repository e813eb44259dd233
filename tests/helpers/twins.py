"""Models of ours and of PyTorch's world, small, with every parameter and statistic drawn at random."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from histojax import models

# torchvision first: timm and transformers also import it.
from tests.helpers import torchvision_import  # noqa: F401  # isort: skip
import timm.models.resnet
import timm.models.swin_transformer
import torchvision
import transformers

SWIN = {"embed_dim": 12, "depths": (2, 2, 3), "heads": (1, 2, 4), "stochastic_depth": 0.0}
CLASSES = 5


def name_of(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


@functools.cache
def abstract(name: str, num_classes: int = CLASSES, **options: Any) -> nnx.Module:
    return nnx.eval_shape(lambda: models.create(name, num_classes=num_classes, rngs=nnx.Rngs(0), **options))


def expected(model: nnx.Module) -> dict[str, tuple[tuple[int, ...], Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(nnx.as_pure(nnx.state(model, (nnx.Param, nnx.BatchStat))))
    return {name_of(path): (leaf.shape, leaf.dtype) for path, leaf in leaves}


def logits(model: nnx.Module, values: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    model = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    graphdef, weights, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
    weights = jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(values[name_of(path)]), nnx.as_pure(weights))
    rest = jax.tree.map(lambda leaf: np.zeros((), np.uint32), nnx.as_pure(rest))  # keys, not used at rate 0
    return np.asarray(jax.jit(lambda w, x: nnx.merge(graphdef, w, rest)(x))(weights, x))


def torch_logits(module: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        out = module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    return getattr(out, "logits", out).numpy()


def images(side: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        drawn = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var") or (
            ("norm" in name or "bn" in name or "downsample.1" in name) and "weight" in name
        ):
            drawn = 0.5 + drawn.sigmoid()
        elif tensor.ndim > 1 and "table" not in name:
            drawn = drawn / tensor[0].numel() ** 0.5
        elif tensor.ndim == 1:
            drawn = drawn * 0.2
        tensor.copy_(drawn)
    return module.eval()


def torchvision_swin(num_classes: int = CLASSES, depths: tuple[int, ...] = SWIN["depths"]) -> torch.nn.Module:
    return torchvision.models.SwinTransformer(
        [4, 4], SWIN["embed_dim"], list(depths), [1, 2, 4, 8][: len(depths)], [7, 7], num_classes=num_classes
    )


def timm_swin(num_classes: int = CLASSES, depths: tuple[int, ...] = SWIN["depths"]) -> torch.nn.Module:
    heads = (1, 2, 4, 8)[: len(depths)]
    return timm.models.swin_transformer.SwinTransformer(
        embed_dim=SWIN["embed_dim"], depths=depths, num_heads=heads, num_classes=num_classes
    )


def hugging_face_swin() -> torch.nn.Module:
    config = transformers.SwinConfig(
        embed_dim=SWIN["embed_dim"], depths=SWIN["depths"], num_heads=SWIN["heads"], num_labels=CLASSES
    )
    return transformers.SwinForImageClassification(config)


def resnet50(num_classes: int = CLASSES) -> torch.nn.Module:
    return torchvision.models.resnet50(num_classes=num_classes)


def timm_resnet50(num_classes: int = CLASSES) -> torch.nn.Module:
    return timm.models.resnet.resnet50(num_classes=num_classes)
