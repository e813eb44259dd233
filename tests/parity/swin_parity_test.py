"""Swin-T against torchvision's: names, logits at several sizes, and gradients of every parameter and of the input."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from histojax import models
from tests.helpers.torchvision_import import StochasticDepth, swin_t

pytestmark = pytest.mark.parity
CLASSES = 7

# Our path -> torchvision's name, applied in order.
NAMES = (
    (r"^patch_embed/proj", "features/0/0"),
    (r"^patch_embed/norm", "features/0/2"),
    (r"^stages/(\d)", lambda m: f"features/{2 * int(m[1]) + 1}"),
    (r"^merges/(\d)", lambda m: f"features/{2 * int(m[1]) + 2}"),
    (r"/mlp/fc1", "/mlp/0"),
    (r"/mlp/fc2", "/mlp/3"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/", "."),
)


def torch_name(path: str) -> str:
    for pattern, replacement in NAMES:
        path = re.sub(pattern, replacement, path)
    return path


def torch_layout(path: str, value: np.ndarray) -> np.ndarray:
    """HWIO -> OIHW and (i, o) -> (o, i)."""
    if not path.endswith("kernel"):
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def name_of(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flat(tree) -> dict[str, np.ndarray]:
    return {name_of(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def random_value(path, leaf, rng) -> np.ndarray:
    """Redraw every tensor, at scales at which attention, its bias and its mask matter."""
    name, shape = name_of(path), leaf.shape
    if name.endswith("kernel"):
        return rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
    if name.endswith("scale"):
        return rng.uniform(0.5, 1.5, shape)
    return (1.0 if "position" in name else 0.2) * rng.normal(size=shape)


@functools.cache
def abstract(num_classes, dtype=jnp.float32):
    def make():
        options = {"stochastic_depth": 0.0, "dtype": dtype}
        return models.create("swin_tiny_patch4_window7_224", num_classes=num_classes, rngs=nnx.Rngs(0), **options)

    return nnx.eval_shape(make)


@functools.cache
def pair(*, training, dtype=np.float32):
    """Return (graphdef, params, rest) of the model and torchvision's with the same random values."""
    model = nnx.view(abstract(CLASSES, dtype), deterministic=not training)
    rng = np.random.default_rng(1)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params = jax.tree_util.tree_map_with_path(lambda p, v: random_value(p, v, rng).astype(dtype), nnx.as_pure(params))
    # Stochastic depth is at rate 0, its keys are never used.
    rest = jax.tree.map(lambda leaf: np.zeros((), np.uint32), nnx.as_pure(rest))
    twin = swin_t(num_classes=CLASSES).to(torch.from_numpy(np.zeros(1, dtype)).dtype)
    for module in twin.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0
    state = {torch_name(p): torch.from_numpy(torch_layout(p, v).copy()) for p, v in flat(params).items()}
    missing, unexpected = twin.load_state_dict(state, strict=False)
    # Not a parameter: computed from the window.
    missing = [name for name in missing if not name.endswith("relative_position_index")]
    assert not missing
    assert not unexpected
    return (graphdef, params, rest), twin.train(training)


def images(b, h, w, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(b, h, w, 3)).astype(dtype)


def to_torch(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def test_parameter_count():
    count = sum(int(np.prod(p.shape)) for p in jax.tree.leaves(nnx.state(abstract(1000), nnx.Param)))
    assert count == 28_288_354 == sum(p.numel() for p in swin_t().parameters())


# 224: whole windows, the last stage a single one. 256: padding everywhere. 64: maps of 16, 8, 4 and 2, so padded
# windows of which some are not shifted. 64×192: shifted along one axis only (8×24 padded to 14×28, 4×12 to 7×14).
@pytest.mark.parametrize("size", [(224, 224), (256, 256), (64, 64), (64, 96), (64, 192)], ids=str)
def test_logits(size):
    (graphdef, params, rest), twin = pair(training=False)
    x = images(2 if size[0] < 100 else 1, *size)
    forward = jax.jit(lambda params, rest, x: nnx.merge(graphdef, params, rest)(x))
    ours = np.asarray(forward(params, rest, x))
    with torch.no_grad():
        theirs = twin(to_torch(x)).numpy()
    assert 1e-2 < theirs.std() < 1e2
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"{size}: {error:.1e}")
    assert error <= 1e-4


def test_gradients_in_train_mode():
    # In float64, where an error of 1e-8 is a mistake and not rounding. 96×64: maps of 24×16, 12×8, 6×4 and 3×2.
    with jax.enable_x64(True):
        (graphdef, params, rest), twin = pair(training=True, dtype=np.float64)
        x = images(2, 96, 64, np.float64)
        y = np.array([3, 5])

        def loss_fn(params, x):
            logits = nnx.merge(graphdef, params, rest)(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        loss, (grads, dx) = jax.jit(jax.value_and_grad(loss_fn, (0, 1)))(params, x)
        assert loss.dtype == jnp.float64
    x_torch = to_torch(x).requires_grad_()
    loss_torch = torch.nn.functional.cross_entropy(twin(x_torch), torch.from_numpy(y))
    loss_torch.backward()
    assert abs(float(loss) - loss_torch.item()) < 1e-9
    theirs = {name: p.grad.numpy() for name, p in twin.named_parameters()} | {"x": x_torch.grad.numpy()}
    ours = {torch_name(p): torch_layout(p, g) for p, g in flat(grads).items()} | {
        "x": np.asarray(dx).transpose(0, 3, 1, 2)
    }
    assert ours.keys() == theirs.keys()
    worst = {}
    for name, reference in theirs.items():
        assert np.linalg.norm(reference) > 0, name
        worst[name] = np.linalg.norm(ours[name] - reference) / np.linalg.norm(reference)
    print(f"{max(worst.values()):.1e} at {max(worst, key=worst.get)}")
    assert max(worst.values()) < 1e-3, sorted(worst.items(), key=lambda item: -item[1])[:5]
