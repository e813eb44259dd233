"""DenseNet-121 against torchvision's: names, stages and logits at several sizes, gradients of a small one."""

from __future__ import annotations

import functools
import re

import jax
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from histojax import models
from histojax.models.densenet import DenseNet, DenseNetConfig
from tests.helpers import torchvision_import  # noqa: F401  (before torchvision, which it makes importable)

pytestmark = pytest.mark.parity
CLASSES = 7
SMALL = {"growth_rate": 4, "block_sizes": (2, 3, 2, 2), "width": 8, "bn_size": 2}

# Our path -> torchvision's name, applied in order.
NAMES = (
    (r"^head/", "classifier/"),
    (r"^(conv0|norm0|norm5)/", r"features/\1/"),
    (r"^blocks/(\d)/(\d+)", lambda m: f"features/denseblock{int(m[1]) + 1}/denselayer{int(m[2]) + 1}"),
    (r"^transitions/(\d)", lambda m: f"features/transition{int(m[1]) + 1}"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/(mean|var)$", r"/running_\1"),
    (r"/", "."),
)


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    """Most of the time here would go into optimizing programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def torch_name(path: str) -> str:
    for pattern, replacement in NAMES:
        path = re.sub(pattern, replacement, path)
    return path


def flat(*trees) -> dict[str, np.ndarray]:
    leaves = [leaf for tree in trees for leaf in jax.tree_util.tree_leaves_with_path(tree)]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def torch_layout(path: str, value: np.ndarray) -> np.ndarray:
    """HWIO -> OIHW and (i, o) -> (o, i)."""
    if not path.endswith("kernel"):
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def random_value(name, shape, rng) -> np.ndarray:
    """Redraw every tensor, at scales that keep the activations near one."""
    if name.endswith("kernel"):
        return rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
    if name.endswith(("scale", "var")):
        return rng.uniform(0.5, 1.5, shape)
    return 0.2 * rng.normal(size=shape)


def reference(*, num_classes=CLASSES, **sizes):
    from torchvision.models import densenet

    if not sizes:
        return densenet.densenet121(num_classes=num_classes)
    block_config, width = sizes.pop("block_sizes"), sizes.pop("width")
    return densenet.DenseNet(block_config=block_config, num_init_features=width, num_classes=num_classes, **sizes)


def pair(make, twin, *, training=False, dtype=np.float32):
    """Return (graphdef, params, rest) of what `make` builds and the twin with the same random values."""
    model = nnx.view(nnx.eval_shape(make), use_running_average=not training, deterministic=not training)
    graphdef, params, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return random_value(name, leaf.shape, rng).astype(dtype)

    params, stats = (jax.tree_util.tree_map_with_path(draw, nnx.as_pure(part)) for part in (params, stats))
    # Dropout is at rate 0, its keys are never used.
    rest = jax.tree.map(lambda leaf: np.zeros((), np.uint32), nnx.as_pure(rest))
    twin = twin.to(torch.from_numpy(np.zeros(1, dtype)).dtype)
    state = {torch_name(p): torch.from_numpy(torch_layout(p, v).copy()) for p, v in flat(params, stats).items()}
    missing, unexpected = twin.load_state_dict(state, strict=False)
    # Counters of batches, which nothing reads.
    assert not [name for name in missing if not name.endswith("num_batches_tracked")]
    assert not unexpected
    return (graphdef, params, (stats, rest)), twin.train(training)


def images(b, h, w, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(b, h, w, 3)).astype(dtype)


def to_torch(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def relative_error(ours, theirs: torch.Tensor) -> float:
    """Greatest difference by greatest value; maps and logits are neither constant nor exploding."""
    ours, theirs = np.asarray(ours), theirs.numpy()
    theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
    assert ours.shape == theirs.shape
    assert 1e-2 < theirs.std() < 1e3
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def listen(modules: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    """Fill the dict returned with what the modules put out; copies, because a ReLU in place may follow."""
    heard = {}

    def hook(name):
        return lambda module, inputs, output: heard.update({name: output.detach().clone()})

    for name, module in modules.items():
        module.register_forward_hook(hook(name))
    return heard


def stages_and_logits(graphdef, params, rest, x):
    """Return the model's named maps and its logits, as jit leaves them: names sorted."""

    def forward(params, rest, x):
        model = nnx.merge(graphdef, params, *rest)
        maps = model.feature_maps(x)
        return maps, model.classify(maps["norm5"])

    return jax.jit(forward)(params, rest, x)


def test_parameter_count():
    abstract = nnx.eval_shape(lambda: models.create("densenet121", num_classes=1000, rngs=nnx.Rngs(0)))
    count = sum(int(np.prod(p.shape)) for p in jax.tree.leaves(nnx.state(abstract, nnx.Param)))
    assert count == 7_978_856 == sum(p.numel() for p in reference(num_classes=1000).parameters())


@functools.cache
def full_pair():
    return pair(lambda: models.create("densenet121", num_classes=CLASSES, rngs=nnx.Rngs(0)), reference())


# 75×97: maps of 19×25, 9×12, 4×6 and 2×3, odd ones cut at the transitions.
@pytest.mark.parametrize("size", [(64, 64), (75, 97)], ids=str)
def test_stages_and_logits(size):
    ours, twin = full_pair()
    children = dict(twin.features.named_children())
    heard = listen({f"block{i}": children[f"denseblock{i}"] for i in range(1, 5)} | {"norm5": children["norm5"]})
    x = images(2, *size)
    maps, logits = stages_and_logits(*ours, x)
    with torch.no_grad():
        logits_torch = twin(to_torch(x))
    assert maps.keys() == heard.keys()
    errors = {name: relative_error(maps[name], heard[name]) for name in maps}
    errors["logits"] = relative_error(logits, logits_torch)
    print(size, {name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) <= 1e-4, errors


def test_gradients_in_train_mode():
    # In float64: batch norm over few values amplifies float32 rounding beyond any honest tolerance.
    with jax.enable_x64(True):

        def make():
            return DenseNet(DenseNetConfig(**SMALL), num_classes=CLASSES, dtype=np.float64, rngs=nnx.Rngs(0))

        (graphdef, params, rest), twin = pair(make, reference(**SMALL), training=True, dtype=np.float64)
        x = images(4, 64, 64, np.float64)
        y = np.array([3, 5, 0, 6])

        def loss_fn(params, rest, x):
            model = nnx.merge(graphdef, params, *rest)
            loss = optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()
            return loss, nnx.as_pure(nnx.state(model, nnx.BatchStat))

        (loss, stats), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, rest, x)
    loss_torch = torch.nn.functional.cross_entropy(twin(to_torch(x)), torch.from_numpy(y))
    loss_torch.backward()
    assert abs(float(loss) - loss_torch.item()) < 1e-9
    theirs = {name: p.grad.numpy() for name, p in twin.named_parameters()}
    ours = {torch_name(p): torch_layout(p, g) for p, g in flat(grads).items()}
    assert ours.keys() == theirs.keys()
    worst = {}
    for name, wanted in theirs.items():
        assert np.linalg.norm(wanted) > 0, name
        worst[name] = np.linalg.norm(ours[name] - wanted) / np.linalg.norm(wanted)
    print(f"{max(worst.values()):.1e} at {max(worst, key=worst.get)}")
    assert max(worst.values()) < 1e-3, sorted(worst.items(), key=lambda item: -item[1])[:5]
    buffers = dict(twin.named_buffers())
    for path, mean in flat(stats).items():
        if path.endswith("mean"):  # the variances differ by n / (n - 1)
            np.testing.assert_allclose(mean, buffers[torch_name(path)].numpy(), rtol=1e-6, atol=1e-9, err_msg=path)
