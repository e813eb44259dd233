"""LDCSF against its PyTorch twin: logits, and in training the gradients and the batch statistics."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from histojax import models
from tests.helpers import ldcsf_torch as twin_module

pytestmark = pytest.mark.parity
CLASSES = 4
# Windows of 4 on maps of 16, 8 and 4: shifted in the first two stages.
SMALL = {"embed_dim": 24, "depths": (2, 2, 1), "heads": (2, 3, 6), "window": 4, "resnet_blocks": 2}
CHOICES = {
    "small": SMALL,
    "blocks, batch norm": SMALL | {"ldc": "blocks", "ldc_norm": "batch"},
    "no LDC": SMALL | {"ldc": "none"},
    "no FR": SMALL | {"fr": False, "fr_reduction": 8},
    "no ResNet": SMALL | {"resnet": False, "fr_reduction": 4},
    "Swin": SMALL | {"ldc": "none", "fr": False, "resnet": False},
}


@functools.cache
def abstract(choice, dtype=jnp.float32):
    options = {"stochastic_depth": 0.0, "dtype": dtype} | ({} if choice == "default" else CHOICES[choice])
    return nnx.eval_shape(lambda: models.create("ldcsf", num_classes=CLASSES, rngs=nnx.Rngs(0), **options))


def name_of(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def random_value(path, leaf, rng) -> np.ndarray:
    """Redraw every tensor, those that start at zero included, at scales that keep activations near one."""
    name, shape = name_of(path), leaf.shape
    if name.endswith("kernel"):
        return rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
    if name.endswith(("scale", "var")):
        return rng.uniform(0.5, 1.5, shape)
    return (1.0 if "position" in name else 0.2) * rng.normal(size=shape)


def flat(*trees) -> dict[str, np.ndarray]:
    leaves = [leaf for tree in trees for leaf in jax.tree_util.tree_leaves_with_path(tree)]
    return {name_of(path): np.asarray(leaf) for path, leaf in leaves}


def pair(choice, *, training, dtype=np.float32):
    """Return (graphdef, params, stats, rest) of the model and its twin with the same random values."""
    model = nnx.view(
        abstract(choice, dtype), use_running_average=not training, deterministic=not training, raise_if_not_found=False
    )
    rng = np.random.default_rng(1)
    graphdef, *kinds, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    params, stats = (
        jax.tree_util.tree_map_with_path(lambda p, v: random_value(p, v, rng).astype(dtype), nnx.as_pure(kind))
        for kind in kinds
    )
    # Stochastic depth is at rate 0, its keys are never used.
    rest = jax.tree.map(lambda leaf: np.zeros((), np.uint32), nnx.as_pure(rest))
    options = {} if choice == "default" else CHOICES[choice]
    twin = twin_module.LDCSF(CLASSES, **options).to(torch.from_numpy(np.zeros(1, dtype)).dtype)
    twin_module.load(twin, flat(params, stats), in_batches(choice))
    return (graphdef, params, stats, rest), twin.train(training)


def in_batches(choice) -> bool:
    return CHOICES.get(choice, {}).get("ldc_norm") == "batch"


def images(b, size, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(b, size, size, 3)).astype(dtype)


def to_torch(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize(("choice", "size"), [("default", 224), ("default", 64), *((name, 64) for name in CHOICES)])
def test_logits(choice, size):
    (graphdef, *state), twin = pair(choice, training=False)
    x = images(1, size)
    ours = np.asarray(jax.jit(lambda state, x: nnx.merge(graphdef, *state)(x))(state, x))
    with torch.no_grad():
        theirs = twin(to_torch(x)).numpy()
    assert 1e-2 < theirs.std() < 1e2
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"{choice} at {size}: {error:.1e}")
    assert error <= 1e-4


@pytest.mark.parametrize("choice", ["default", "small"])
def test_stages(choice):
    (graphdef, *state), twin = pair(choice, training=False)
    theirs = {}
    places = {f"stage{i + 1}": ldc for i, ldc in enumerate(twin.ldc)} | {"fr": twin.fr, "resnet": twin.resnet}
    for name, place in places.items():
        place.register_forward_hook(lambda m, i, o, name=name: theirs.update({name: o.detach().clone()}))
    x = images(2, 64)
    with torch.no_grad():
        twin(to_torch(x))
    theirs["resnet"] = theirs["resnet"].permute(0, 2, 3, 1)
    ours = jax.jit(lambda state, x: nnx.merge(graphdef, *state).feature_maps(x))(state, x)
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        assert ours[name].shape == tuple(wanted.shape)
        assert 1e-2 < wanted.std() < 1e2
        error = np.abs(ours[name] - wanted.numpy()).max() / np.abs(wanted.numpy()).max()
        print(f"{choice}, {name}: {error:.1e}")
        assert error <= 1e-4


@pytest.mark.parametrize("choice", ["default", *CHOICES])
def test_gradients_and_statistics_in_train_mode(choice):
    # In float64: batch norm over the few values of the last map amplifies float32 rounding beyond any honest tolerance.
    with jax.enable_x64(True):
        (graphdef, params, stats, rest), twin = pair(choice, training=True, dtype=np.float64)
        x = images(3, 64, np.float64)
        y = np.random.default_rng(2).integers(0, 2, (3, CLASSES)).astype(np.float64)

        def loss_fn(params, x, stats, rest):
            model = nnx.merge(graphdef, params, stats, rest)
            loss = optax.sigmoid_binary_cross_entropy(model(x), y).mean()
            return loss, nnx.as_pure(nnx.state(model, nnx.BatchStat))

        step = jax.jit(jax.value_and_grad(loss_fn, (0, 1), has_aux=True))
        (loss, new_stats), (grads, dx) = step(params, x, stats, rest)
        assert loss.dtype == jnp.float64
    x_torch = to_torch(x).requires_grad_()
    loss_torch = torch.nn.functional.binary_cross_entropy_with_logits(twin(x_torch), torch.from_numpy(y))
    loss_torch.backward()
    assert abs(float(loss) - loss_torch.item()) < 1e-9

    def by_name(tree):
        values = flat(tree)
        return {
            twin_module.torch_name(p, in_batches(choice)): twin_module.torch_layout(p, v) for p, v in values.items()
        }

    theirs = {name: p.grad.numpy() for name, p in twin.named_parameters()} | {"x": x_torch.grad.numpy()}
    ours = by_name(grads) | {"x": np.asarray(dx).transpose(0, 3, 1, 2)}
    assert ours.keys() == theirs.keys()
    # A bias right before a batch norm has no effect; what is left of its gradient is rounding.
    norms = {name: np.linalg.norm(reference) for name, reference in theirs.items()}
    idle = {name for name, norm in norms.items() if norm < 1e-12 * max(norms.values())}
    assert idle == ({"ldc.2.pointwise.inner.bias"} if choice == "no FR" else set())
    worst = {}
    for name, reference in theirs.items():
        worst[name] = np.linalg.norm(ours[name] - reference) / (max(norms.values()) if name in idle else norms[name])
    print(f"{choice}: {max(worst.values()):.1e} at {max(worst, key=worst.get)}")
    assert max(worst.values()) < 1e-3, sorted(worst.items(), key=lambda item: -item[1])[:5]

    buffers = {name: b.numpy() for name, b in twin.named_buffers() if "running_" in name}
    statistics = by_name(new_stats)
    assert statistics.keys() == buffers.keys()
    old = by_name(stats)
    for name, reference in buffers.items():
        value = statistics[name]
        if name.endswith("var"):
            # torch keeps the unbiased variance, n / (n - 1) of ours, in a tenth of the sum.
            n = 3 * map_size(name, choice) ** 2
            value = 0.9 * old[name] + (value - 0.9 * old[name]) * n / (n - 1)
        np.testing.assert_allclose(value, reference, rtol=1e-6, atol=1e-9, err_msg=name)


def map_size(name, choice) -> int:
    """Side of the map, of images of 64, that a batch norm works on."""
    if name.startswith("resnet"):
        return 4 if name.startswith("resnet.0.bn1") else 2
    block = int(name.split(".")[1])
    return 16 // 2 ** int(np.searchsorted(np.cumsum(CHOICES[choice]["depths"]), block, side="right"))
