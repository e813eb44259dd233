"""VGG16 against torchvision's, VGG16 with Inception blocks against a twin written here, pooling against torch's."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch.nn import functional

from histojax import models
from histojax.models import vgg
from histojax.models.ops import pooling
from tests.helpers import torchvision_import  # noqa: F401  (before torchvision, which it makes importable)

pytestmark = pytest.mark.parity
CLASSES = 7
STARTS = {False: (0, 5, 10, 17, 24), True: (0, 7, 14, 24, 34)}  # of the blocks in torchvision's row, by batch norm
POOL5 = {False: 30, True: 43}


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    """Most of the time here would go into optimizing programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def unit_name(match: re.Match, batch_norm: bool) -> str:
    block, unit, part = int(match[1]), int(match[2]), match[3]
    return f"features/{STARTS[batch_norm][block] + unit * (3 if batch_norm else 2) + (part == 'norm')}"


# Our path -> torchvision's name, applied in order; branches have the names of torchvision's GoogLeNet.
NAMES = (
    (r"^classifier/fc1", "classifier/0"),
    (r"^classifier/fc2", "classifier/3"),
    (r"(branch4)", r"\1/1"),
    (r"^(inceptions.*)/norm", r"\1/bn"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/(mean|var)$", r"/running_\1"),
    (r"/", "."),
)


def torch_name(path: str, batch_norm: bool, head: str) -> str:
    path = re.sub(r"^blocks/(\d)/layers/(\d)/(conv|norm)", lambda m: unit_name(m, batch_norm), path)
    path = re.sub(r"^head", head, path)
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
    """Redraw every tensor, at scales that keep the activations near one; in float32, there are 138 million."""
    if name.endswith("kernel"):
        return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
    if name.endswith(("scale", "var")):
        return rng.uniform(0.5, 1.5, shape)
    return 0.2 * rng.normal(size=shape)


class BasicConv2d(torch.nn.Module):
    def __init__(self, i, o, kernel):
        super().__init__()
        self.conv = torch.nn.Conv2d(i, o, kernel, padding=kernel // 2, bias=False)
        self.bn = torch.nn.BatchNorm2d(o)

    def forward(self, x):
        return functional.relu(self.bn(self.conv(x)))


class Inception(torch.nn.Module):
    """GoogLeNet's block with names as in torchvision, whose third branch, unlike the paper's, is 3×3."""

    def __init__(self, i, w1, r3, w3, r5, w5, pool):
        super().__init__()
        self.branch1 = BasicConv2d(i, w1, 1)
        self.branch2 = torch.nn.Sequential(BasicConv2d(i, r3, 1), BasicConv2d(r3, w3, 3))
        self.branch3 = torch.nn.Sequential(BasicConv2d(i, r5, 1), BasicConv2d(r5, w5, 5))
        self.branch4 = torch.nn.Sequential(torch.nn.MaxPool2d(3, 1, 1), BasicConv2d(i, pool, 1))

    def forward(self, x):
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class VGGInception(torch.nn.Module):
    def __init__(self, features, channels, inceptions, num_classes):
        super().__init__()
        self.features = features
        blocks = []
        for w1, r3, w3, r5, w5, pool in inceptions:
            blocks.append(Inception(channels, w1, r3, w3, r5, w5, pool))
            channels = w1 + w3 + w5 + pool
        self.inceptions = torch.nn.Sequential(*blocks)
        self.dropout = torch.nn.Dropout(0.0)
        self.head = torch.nn.Linear(channels, num_classes)

    def forward(self, x):
        return self.head(self.dropout(self.inceptions(self.features(x)).mean((2, 3))))


def reference(name, num_classes=CLASSES):
    """Build a reference without values, which would take longer to draw than the test."""
    from torchvision.models import vgg as reference

    with torch.device("meta"):
        if name == "vgg16_inception":
            widths = vgg.VGGInceptionConfig().inceptions
            return VGGInception(reference.make_layers(reference.cfgs["D"]), 512, widths, num_classes)
        return getattr(reference, name)(num_classes=num_classes, init_weights=False)


def draw(model, dtype=np.float32):
    """Return (graphdef, params, rest) with random values."""
    graphdef, params, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    rng = np.random.default_rng(1)

    def value(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return random_value(name, leaf.shape, rng).astype(dtype, copy=False)

    params, stats = (jax.tree_util.tree_map_with_path(value, nnx.as_pure(part)) for part in (params, stats))
    # Without dropout its keys are never used.
    return graphdef, params, (stats, jax.tree.map(lambda leaf: np.zeros((), np.uint32), nnx.as_pure(rest)))


def load(twin, values, batch_norm, head):
    state = {}
    for path, value in values.items():
        state[torch_name(path, batch_norm, head)] = torch.from_numpy(torch_layout(path, value))
    missing, unexpected = twin.load_state_dict(state, strict=False, assign=True)
    # Counters of batches, which nothing reads.
    assert not [name for name in missing if not name.endswith("num_batches_tracked")]
    assert not unexpected


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


def stages_and_logits(graphdef, params, rest, x, last):
    """Return the model's named maps and its logits, as jit leaves them: names sorted."""

    def forward(params, rest, x):
        model = nnx.merge(graphdef, params, *rest)
        maps = model.feature_maps(x)
        return maps, model.classify(maps[last])

    return jax.jit(forward)(params, rest, x)


@pytest.mark.parametrize(
    ("name", "expected"), [("vgg16", 138_357_544), ("vgg16_bn", 138_365_992), ("vgg16_inception", 18_045_192)]
)
def test_parameter_count(name, expected):
    abstract = nnx.eval_shape(lambda: models.create(name, num_classes=1000, rngs=nnx.Rngs(0)))
    count = sum(int(np.prod(p.shape)) for p in jax.tree.leaves(nnx.state(abstract, nnx.Param)))
    assert count == expected == sum(p.numel() for p in reference(name, 1000).parameters())


# 75×97: odd maps, cut by the pooling, and 2×3 at last, which the average spreads over 7×7. 224: 7×7 already.
CASES = [
    ("vgg16", (64, 64)),
    ("vgg16", (224, 224)),
    ("vgg16_bn", (75, 97)),
    ("vgg16_inception", (64, 64)),
    ("vgg16_inception", (75, 97)),
]


@pytest.mark.parametrize(("name", "size"), CASES, ids=str)
def test_stages_and_logits(name, size):
    batch_norm, head = name == "vgg16_bn", "head" if name == "vgg16_inception" else "classifier/6"
    model = nnx.eval_shape(lambda: models.create(name, num_classes=CLASSES, rngs=nnx.Rngs(0)))
    ours = draw(nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False))
    twin = reference(name).eval()
    load(twin, flat(ours[1], ours[2][0]), batch_norm, head)
    starts = STARTS[batch_norm]
    # The convolutions of a block end one before the pooling, which is one before the next block.
    ends = [start - 2 for start in starts[1:]] + [POOL5[batch_norm] - 1]
    modules = {f"conv{i + 1}": twin.features[end] for i, end in enumerate(ends)}
    modules["pool5"] = twin.features[POOL5[batch_norm]]
    if name == "vgg16_inception":
        modules |= {f"inception{i + 1}": module for i, module in enumerate(twin.inceptions)}
    heard = listen(modules)
    x = images(1 if size[0] > 200 else 2, *size)
    maps, logits = stages_and_logits(*ours, x, "inception2" if "inception" in name else "pool5")
    with torch.no_grad():
        logits_torch = twin(to_torch(x))
    assert maps.keys() == heard.keys()
    errors = {name: relative_error(maps[name], heard[name]) for name in maps}
    errors["logits"] = relative_error(logits, logits_torch)
    print(name, size, {name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) <= 1e-4, errors


def test_gradients_of_a_small_one_with_inception_blocks():
    # In float64, train mode, odd sizes: gradients of pooling and concatenation as well.
    widths, inceptions = (4, 4, 8, 8, 8), ((4, 2, 6, 2, 4, 4), (6, 4, 6, 2, 4, 2))
    layers = []
    with jax.enable_x64(True):
        config = vgg.VGGInceptionConfig(widths, inceptions=inceptions, dropout=0.0)
        model = nnx.eval_shape(
            lambda: vgg.VGGInception(config, num_classes=CLASSES, dtype=np.float64, rngs=nnx.Rngs(0))
        )
        graphdef, params, rest = draw(nnx.view(model, deterministic=False, use_running_average=False), np.float64)
        x = images(4, 75, 97, np.float64)
        y = np.array([3, 5, 0, 6])

        def loss_fn(params, rest, x):
            logits = nnx.merge(graphdef, params, *rest)(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        loss, grads = jax.jit(jax.value_and_grad(loss_fn))(params, rest, x)
        assert loss.dtype == jnp.float64

    from torchvision.models.vgg import make_layers

    for width, depth in zip(widths, config.depths, strict=True):
        layers += [width] * depth + ["M"]
    twin = VGGInception(make_layers(layers), widths[-1], inceptions, CLASSES).double()
    load(twin, flat(params, rest[0]), False, "head")
    loss_torch = functional.cross_entropy(twin.train()(to_torch(x)), torch.from_numpy(y))
    loss_torch.backward()
    assert abs(float(loss) - loss_torch.item()) < 1e-9
    theirs = {name: p.grad.numpy() for name, p in twin.named_parameters()}
    ours = {torch_name(p, False, "head"): torch_layout(p, g) for p, g in flat(grads).items()}
    assert ours.keys() == theirs.keys()
    worst = {}
    for name, wanted in theirs.items():
        assert np.linalg.norm(wanted) > 0, name
        worst[name] = np.linalg.norm(ours[name] - wanted) / np.linalg.norm(wanted)
    print(f"{max(worst.values()):.1e} at {max(worst, key=worst.get)}")
    assert max(worst.values()) < 1e-3, sorted(worst.items(), key=lambda item: -item[1])[:5]


def pool_pair(name):
    return {
        "max_pool_2x2": (pooling.max_pool_2x2, lambda x: functional.max_pool2d(x, 2)),
        "avg_pool_2x2": (pooling.avg_pool_2x2, lambda x: functional.avg_pool2d(x, 2)),
        "max_pool_3x3_s1": (pooling.max_pool_3x3_s1, lambda x: functional.max_pool2d(x, 3, 1, 1)),
        "adaptive": (lambda x: pooling.adaptive_avg_pool(x, 7), lambda x: functional.adaptive_avg_pool2d(x, 7)),
    }[name]


# For the average over 7×7: smaller, equal, twice, and sizes with cells that overlap.
@pytest.mark.parametrize("size", [(2, 3), (7, 7), (14, 8), (9, 13), (10, 1)], ids=str)
@pytest.mark.parametrize("name", ["max_pool_2x2", "avg_pool_2x2", "max_pool_3x3_s1", "adaptive"])
def test_pooling_and_its_gradient_are_those_of_torch(name, size):
    if name.endswith("2x2") and min(size) < 2:
        size = (10, 2)  # at least one whole window
    ours, theirs = pool_pair(name)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    y, back = jax.vjp(ours, jnp.asarray(x))
    x_torch = to_torch(x).requires_grad_()
    y_torch = theirs(x_torch)
    np.testing.assert_allclose(y, y_torch.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6)
    cotangent = rng.normal(size=y.shape).astype(np.float32)
    y_torch.backward(to_torch(cotangent))
    wanted = x_torch.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(back(jnp.asarray(cotangent))[0], wanted, rtol=1e-4, atol=1e-5)
