"""ResNet50, Swin-T and DALAResNet50 stage by stage, and ResNet50's gradients, against their references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from histojax import models
from histojax.weights import convert
from tests.helpers import dala_resnet_torch, twins

import torchvision  # isort: skip  (after twins, which makes it importable)

pytestmark = pytest.mark.parity
K = twins.CLASSES


def heard(module: torch.nn.Module, places: dict[str, torch.nn.Module], x: np.ndarray) -> dict[str, np.ndarray]:
    """What the modules in `places` put out, (b, h, w, c); copies, because a ReLU in place may follow."""
    found: dict[str, Any] = {}
    for name, place in places.items():
        place.register_forward_hook(lambda m, i, o, name=name: found.update({name: o.detach().clone().numpy()}))
    with torch.no_grad():
        module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    return found


def maps_of(model: Any, values: dict[str, np.ndarray], x: np.ndarray) -> dict[str, np.ndarray]:
    model = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    graphdef, arrays, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
    arrays = jax.tree_util.tree_map_with_path(lambda p, _: jnp.asarray(values[twins.name_of(p)]), nnx.as_pure(arrays))
    rest = jax.tree.map(lambda leaf: np.zeros((), np.uint32), nnx.as_pure(rest))  # keys, not used at rate 0
    return jax.jit(lambda a, x: nnx.merge(graphdef, a, rest).feature_maps(x))(arrays, x)


def assert_same(ours: dict[str, Any], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() >= theirs.keys()
    errors = {}
    for name, wanted in theirs.items():
        assert ours[name].shape == wanted.shape
        assert 1e-2 < wanted.std() < 1e3, name
        errors[name] = float(np.abs(ours[name] - wanted).max() / np.abs(wanted).max())
    print({name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) <= 1e-4, errors


def randomised(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    with torch.no_grad():
        return twins.randomised(make())


def loaded(name: str, module: torch.nn.Module, **options: Any) -> tuple[Any, dict[str, np.ndarray]]:
    model = twins.abstract(name, **options)
    expected = {path: (shape, options.get("dtype", np.float32)) for path, (shape, _) in twins.expected(model).items()}
    arrays = {key: value.numpy() for key, value in module.state_dict().items() if "num_batches" not in key}
    values, report = convert(arrays, models.spec(name), expected)
    assert not report.initial
    return model, values


@pytest.mark.parametrize("size", [(64, 64), (75, 97)], ids=str)
def test_the_stages_of_resnet50_are_torchvisions(size: tuple[int, int]) -> None:
    module = randomised(lambda: torchvision.models.resnet50(num_classes=K))
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    theirs = heard(module, {f"layer{i}": getattr(module, f"layer{i}") for i in range(1, 5)}, x)
    assert_same(maps_of(*loaded("resnet50", module), x), {name: m.transpose(0, 2, 3, 1) for name, m in theirs.items()})


def test_the_stages_of_swin_are_torchvisions() -> None:
    module = randomised(twins.torchvision_swin)
    x = twins.images(96)
    stages = {f"stage{i + 1}": module.features[2 * i + 1] for i in range(3)}
    assert_same(maps_of(*loaded("swin_tiny_patch4_window7_224", module, **twins.SWIN), x), heard(module, stages, x))


def test_the_gradients_of_resnet50_are_torchvisions() -> None:
    # In float64: batch norm over the few values of layer4 amplifies float32 rounding beyond any honest tolerance.
    with jax.enable_x64(True):
        module = randomised(lambda: torchvision.models.resnet50(num_classes=K)).double().train()
        model, values = loaded("resnet50", module, dtype=np.float64)
        graphdef, params, stats = nnx.split(nnx.view(model, use_running_average=False), nnx.Param, nnx.BatchStat)
        params, stats = (
            jax.tree_util.tree_map_with_path(lambda p, _: jnp.asarray(values[twins.name_of(p)]), nnx.as_pure(part))
            for part in (params, stats)
        )
        x = np.random.default_rng(0).normal(size=(4, 64, 64, 3))
        y = np.array([3, 0, 1, 4])

        def loss_fn(params: Any) -> jax.Array:
            logits = nnx.merge(graphdef, params, stats)(jnp.asarray(x))
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        grads = jax.jit(jax.grad(loss_fn))(params)
        loss = torch.nn.functional.cross_entropy(
            module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())), torch.from_numpy(y)
        )
        loss.backward()
        theirs = {key: p.grad.numpy() for key, p in module.named_parameters()}
        theirs |= {key: b.numpy() for key, b in module.named_buffers() if "num_batches" not in key}
        expected = {path: (shape, np.float64) for path, (shape, _) in twins.expected(model).items()}
        wanted, _ = convert(theirs, models.spec("resnet50"), expected)
    worst = {}
    for path, found in jax.tree_util.tree_leaves_with_path(grads):
        name = twins.name_of(path)
        assert np.linalg.norm(wanted[name]) > 0, name
        worst[name] = np.linalg.norm(np.asarray(found) - wanted[name]) / np.linalg.norm(wanted[name])
    print(f"{max(worst.values()):.1e} at {max(worst, key=worst.get)}")
    assert max(worst.values()) < 1e-3


@pytest.mark.parametrize("attention", ["layer4", "layer4_blocks"])
def test_the_stages_of_dala_are_its_twins(attention: str) -> None:
    module = dala_resnet_torch.DALAResNet50(K, attention, "dual")
    model = twins.abstract("dala_resnet50", attention=attention, dropout=0.0)
    rng = np.random.default_rng(1)
    values = {}
    for path, (shape, dtype) in twins.expected(model).items():
        if path.endswith("kernel"):
            value = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
        elif path.endswith(("scale", "var")):
            value = rng.uniform(0.5, 1.5, shape) * (0.3 if "bn3/scale" in path else 1)
        else:
            value = 0.2 * rng.normal(size=shape)
        values[path] = value.astype(dtype)
    dala_resnet_torch.load(module, values)
    x = twins.images(64)
    ours = maps_of(model, values, x)
    theirs = heard(module.eval(), {f"layer{i}": getattr(module, f"layer{i}") for i in range(1, 5)}, x)
    assert_same(ours, {name: m.transpose(0, 2, 3, 1) for name, m in theirs.items()})
