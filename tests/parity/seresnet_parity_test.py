"""SE-ResNet50 against timm's: names, stages and logits at several sizes, gradients of a shallower one."""

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
from histojax.models.seresnet import SEResNet, SEResNetConfig
from tests.helpers import torchvision_import  # noqa: F401  (timm imports torchvision)

pytestmark = pytest.mark.parity
CLASSES = 7

# Our path -> timm's name, applied in order.
NAMES = (
    (r"^head/", "fc/"),
    (r"/attention/", "/se/"),
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
    """HWIO -> OIHW, (i, o) -> (o, i), and a gate's (i, o) -> (o, i, 1, 1)."""
    if not path.endswith("kernel"):
        return value
    value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return value[:, :, None, None] if "attention" in path else value


def random_value(name, shape, rng) -> np.ndarray:
    """Redraw every tensor, at scales that keep the activations of sixteen blocks near one and open gates apart."""
    if name.endswith("kernel"):
        return rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
    if name.endswith("scale"):
        return (0.5 if "bn3" in name else 1.0) * rng.uniform(0.5, 1.5, shape)
    if name.endswith("var"):
        return rng.uniform(0.5, 1.5, shape)
    return 0.2 * rng.normal(size=shape)


def reference(num_classes, layers=(3, 4, 6, 3)):
    from timm.models.resnet import Bottleneck, ResNet, seresnet50

    if layers == (3, 4, 6, 3):
        return seresnet50(num_classes=num_classes)
    return ResNet(Bottleneck, layers, num_classes=num_classes, block_args={"attn_layer": "se"})


@functools.cache
def pair(layers=(3, 4, 6, 3), *, training=False, dtype=np.float32):
    """Return (graphdef, params, stats) of the model and timm's with the same random values."""
    config = SEResNetConfig(layers)
    model = nnx.eval_shape(lambda: SEResNet(config, num_classes=CLASSES, dtype=dtype, rngs=nnx.Rngs(0)))
    model = nnx.view(model, use_running_average=not training)
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return random_value(name, leaf.shape, rng).astype(dtype)

    params, stats = (jax.tree_util.tree_map_with_path(draw, nnx.as_pure(part)) for part in (params, stats))
    twin = reference(CLASSES, layers).to(torch.from_numpy(np.zeros(1, dtype)).dtype)
    state = {torch_name(p): torch.from_numpy(torch_layout(p, v).copy()) for p, v in flat(params, stats).items()}
    missing, unexpected = twin.load_state_dict(state, strict=False)
    # Counters of batches, which nothing reads.
    assert not [name for name in missing if not name.endswith("num_batches_tracked")]
    assert not unexpected
    return (graphdef, params, stats), twin.train(training)


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
        model = nnx.merge(graphdef, params, rest)
        maps = model.feature_maps(x)
        return maps, model.classify(maps["layer4"])

    return jax.jit(forward)(params, rest, x)


def test_parameter_count():
    abstract = nnx.eval_shape(lambda: models.create("seresnet50", num_classes=1000, rngs=nnx.Rngs(0)))
    count = sum(int(np.prod(p.shape)) for p in jax.tree.leaves(nnx.state(abstract, nnx.Param)))
    assert count == 28_088_024 == sum(p.numel() for p in reference(1000).parameters())


# 75×97: odd sizes at every stage, 19×25, 10×13, 5×7 and 3×4.
@pytest.mark.parametrize("size", [(64, 64), (75, 97)], ids=str)
def test_stages_and_logits(size):
    ours, twin = pair()
    heard = listen({f"layer{i}": getattr(twin, f"layer{i}") for i in range(1, 5)})
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
    # Of fewer blocks, for the time it takes. In float64: batch norm over the few values of layer4 amplifies float32
    # rounding beyond any honest tolerance.
    with jax.enable_x64(True):
        (graphdef, params, stats), twin = pair((1, 2, 1, 1), training=True, dtype=np.float64)
        x = images(4, 64, 64, np.float64)
        y = np.array([3, 5, 0, 6])

        def loss_fn(params, stats, x):
            model = nnx.merge(graphdef, params, stats)
            loss = optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()
            return loss, nnx.as_pure(nnx.state(model, nnx.BatchStat))

        (loss, stats), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, stats, x)
        assert loss.dtype == jnp.float64
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
