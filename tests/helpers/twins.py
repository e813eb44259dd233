"""Models of torchvision, timm and transformers with random values, and ours with the same values by public names."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from histojax import models
from histojax.distributed.sharding import path_of
from histojax.models.rngs import seeded
from histojax.weights import Shapes, convert
from tests.helpers import modules
from tests.helpers.modules import call, evaluation, flat
from tests.helpers.parity import Step, zero_keys

# torchvision first: timm and transformers also import it.
from tests.helpers import torchvision_import  # noqa: F401  # isort: skip
import timm.models.resnet
import timm.models.swin_transformer
import torchvision
import transformers

SWIN = {"embed_dim": 12, "depths": (2, 2, 3), "heads": (1, 2, 4), "stochastic_depth": 0.0}
CLASSES = 5


@functools.cache
def abstract(name: str, num_classes: int = CLASSES, **options: Any) -> nnx.Module:
    """Our model with shapes in place of arrays."""
    return nnx.eval_shape(lambda: models.create(name, num_classes=num_classes, rngs=seeded(default=0), **options))


def expected(model: nnx.Module) -> Shapes:
    """Shape and type of every parameter and statistic by path, as `convert` takes them."""
    weights = flat(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    return {path: (leaf.shape, leaf.dtype) for path, leaf in weights.items()}


def with_values(model: nnx.Module, values: Mapping[str, np.ndarray]) -> nnx.Module:
    """An abstract model in evaluation mode with these parameters and statistics by path."""
    graphdef, weights, rest = nnx.split(evaluation(model), (nnx.Param, nnx.BatchStat), ...)
    weights = jax.tree_util.tree_map_with_path(lambda path, _: values[path_of(path)], nnx.as_pure(weights))
    return nnx.merge(graphdef, weights, zero_keys(rest))


def logits(model: nnx.Module, values: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Logits (b, k) of images (b, h, w, 3) by an abstract model with these values."""
    return np.asarray(call(with_values(model, values), x))


def from_torch(
    name: str, arrays: Mapping[str, np.ndarray], dtype: Any = np.float32, **options: Any
) -> dict[str, np.ndarray]:
    """Arrays by the names of a PyTorch module -> by the paths of our model; every path must have one."""
    shapes = {path: (shape, dtype) for path, (shape, _) in expected(abstract(name, **options)).items()}
    values, report = convert(arrays, models.spec(name), shapes)
    assert not report.initial
    return values


def loaded(name: str, module: torch.nn.Module, dtype: Any = np.float32, **options: Any) -> nnx.Module:
    """Our model in evaluation mode with the values of a PyTorch module.

    Args:
      name: name of our model.
      module: the PyTorch module, in `dtype`.
      dtype: float32 or float64, which needs `jax.enable_x64`.
      options: other options of our model.
    """
    options["dtype"] = dtype
    return with_values(abstract(name, **options), from_torch(name, arrays_of(module), **options))


def gradients_from_torch(name: str, step: Step, **options: Any) -> dict[str, np.ndarray]:
    """Gradients of a PyTorch module in float64, and that of the images -> by the paths of our model."""
    gradients = {key: gradient for key, gradient in step.gradients.items() if key != "x"}
    # With the statistics, because the conversion expects every array of a file.
    values = from_torch(name, gradients | step.stats, np.float64, **options)
    params = {path: value for path, value in values.items() if not path.endswith(("/mean", "/var"))}
    return params | {"x": step.gradients["x"]}


def arrays_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Parameters and statistics of a PyTorch module by name."""
    return {key: value.numpy() for key, value in module.state_dict().items() if "num_batches" not in key}


def images(side: int) -> np.ndarray:
    """Two random images (2, side, side, 3)."""
    return modules.images(2, side, side)


def randomised(module: torch.nn.Module, unscaled: Sequence[str] = ("table",)) -> torch.nn.Module:
    """Redraw every parameter and statistic in place, and switch to evaluation mode.

    Args:
      module: a PyTorch module in float32.
      unscaled: parts of names of matrices and tables drawn at scale one, not divided by the root of their fan-in.
    """
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        drawn = torch.randn(tensor.shape, generator=generator)
        is_norm = any(part in name for part in ("norm", "bn", ".ln", "downsample.1"))
        if name.endswith("running_var") or (is_norm and "weight" in name):
            drawn = 0.5 + drawn.sigmoid()
        elif tensor.ndim > 1 and not any(part in name for part in unscaled):
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
