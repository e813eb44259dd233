"""VGG16 against torchvision's, and VGG16 with Inception blocks against a twin written here."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn import functional

from histojax import models
from histojax.models.rngs import seeded
from histojax.models.vgg import VGGInception, VGGInceptionConfig
from tests.helpers import parity
from tests.helpers.modules import images

from tests.helpers import torchvision_import  # noqa: F401  # isort: skip  (makes torchvision importable)
from torchvision.models import vgg as torchvision_vgg  # isort: skip

pytestmark = [pytest.mark.parity, pytest.mark.slow]
CLASSES = 7
# Where torchvision's list of layers has the first layer of each block, and the last pooling; by batch norm.
STARTS = {False: (0, 5, 10, 17, 24), True: (0, 7, 14, 24, 34)}
POOL5 = {False: 30, True: 43}


def rules(name: str) -> parity.Rules:
    """Our paths -> torchvision's names; Inception's branches have those of torchvision's GoogLeNet."""
    batch_norm = name == "vgg16_bn"

    def layer_name(match: re.Match[str]) -> str:
        block, unit, part = int(match[1]), int(match[2]), match[3]
        return f"features/{STARTS[batch_norm][block] + unit * (3 if batch_norm else 2) + (part == 'norm')}"

    return (
        (r"^blocks/(\d)/layers/(\d)/(conv|norm)", layer_name),
        (r"^head", "head" if name == "vgg16_inception" else "classifier/6"),
        (r"^classifier/fc1", "classifier/0"),
        (r"^classifier/fc2", "classifier/3"),
        (r"(branch4)", r"\1/1"),
        (r"^(inceptions.*)/norm", r"\1/bn"),
    )


def random_value(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw at scales that keep the activations near one; kernels in float32, because they have 138 million values."""
    if path.endswith("kernel"):
        return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
    if path.endswith(("scale", "var")):
        return rng.uniform(0.5, 1.5, shape)
    return 0.2 * rng.normal(size=shape)


class TorchConv(torch.nn.Module):
    def __init__(self, i: int, o: int, kernel: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(i, o, kernel, padding=kernel // 2, bias=False)
        self.bn = torch.nn.BatchNorm2d(o)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn(self.conv(x)))


class TorchInception(torch.nn.Module):
    """GoogLeNet's block with names as in torchvision, whose third branch, unlike the paper's, is 3×3."""

    def __init__(self, i: int, w1: int, r3: int, w3: int, r5: int, w5: int, pool: int) -> None:
        super().__init__()
        self.branch1 = TorchConv(i, w1, 1)
        self.branch2 = torch.nn.Sequential(TorchConv(i, r3, 1), TorchConv(r3, w3, 3))
        self.branch3 = torch.nn.Sequential(TorchConv(i, r5, 1), TorchConv(r5, w5, 5))
        self.branch4 = torch.nn.Sequential(torch.nn.MaxPool2d(3, 1, 1), TorchConv(i, pool, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class TorchVGGInception(torch.nn.Module):
    def __init__(
        self, features: torch.nn.Module, channels: int, inceptions: Sequence[tuple[int, ...]], num_classes: int
    ) -> None:
        super().__init__()
        self.features = features
        blocks = []
        for w1, r3, w3, r5, w5, pool in inceptions:
            blocks.append(TorchInception(channels, w1, r3, w3, r5, w5, pool))
            channels = w1 + w3 + w5 + pool
        self.inceptions = torch.nn.Sequential(*blocks)
        self.dropout = torch.nn.Dropout(0.0)
        self.head = torch.nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.inceptions(self.features(x)).mean((2, 3))))


def torch_module(name: str, num_classes: int = CLASSES) -> torch.nn.Module:
    """The twin without values, which would take longer to draw than the test."""
    with torch.device("meta"):
        if name == "vgg16_inception":
            features = torchvision_vgg.make_layers(torchvision_vgg.cfgs["D"])
            return TorchVGGInception(features, 512, VGGInceptionConfig().inceptions, num_classes)
        return getattr(torchvision_vgg, name)(num_classes=num_classes, init_weights=False)


@pytest.fixture(scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pair(name: str) -> parity.Pair:
    def make() -> nnx.Module:
        return models.create(name, num_classes=CLASSES, rngs=seeded(default=0))

    return parity.make_pair(make, torch_module(name), random_value, rules(name))


@pytest.mark.parametrize(
    ("name", "count"), [("vgg16", 138_357_544), ("vgg16_bn", 138_365_992), ("vgg16_inception", 18_045_192)]
)
def test_number_of_parameters_equals_the_references(name: str, count: int) -> None:
    assert parity.num_parameters(name) == count == parity.num_torch_parameters(torch_module(name, 1000))


# 75×97: odd maps, cut by the pooling, and 2×3 at last, which the average spreads over 7×7. 224: 7×7 already.
CASES = [
    ("vgg16", (64, 64)),
    ("vgg16", (224, 224)),
    ("vgg16_bn", (75, 97)),
    ("vgg16_inception", (64, 64)),
    ("vgg16_inception", (75, 97)),
]


@pytest.mark.parametrize(("name", "size"), CASES, ids=str, indirect=["name"])
def test_stages_and_logits_equal_the_references(pair: parity.Pair, name: str, size: tuple[int, int]) -> None:
    twin, batch_norm = pair.twin, name == "vgg16_bn"
    # The convolutions of a block end one before the pooling, which is one before the next block.
    ends = [start - 2 for start in STARTS[batch_norm][1:]] + [POOL5[batch_norm] - 1]
    parts = {f"conv{i + 1}": twin.features[end] for i, end in enumerate(ends)}
    parts["pool5"] = twin.features[POOL5[batch_norm]]
    if name == "vgg16_inception":
        parts |= {f"inception{i + 1}": module for i, module in enumerate(twin.inceptions)}
    x = images(1 if size[0] > 200 else 2, *size)
    theirs = parity.channels_last(parity.torch_outputs(twin, parts, x))
    ours = parity.our_outputs(pair.model, x, "inception2" if name == "vgg16_inception" else "pool5")
    parity.assert_outputs_equal(ours, theirs, f"{name} {size}")


def test_gradients_of_a_small_model_with_inception_blocks_equal_the_twins() -> None:
    config = VGGInceptionConfig((4, 4, 8, 8, 8), inceptions=((4, 2, 6, 2, 4, 4), (6, 4, 6, 2, 4, 2)), dropout=0.0)
    layers: list[int | str] = []
    for width, depth in zip(config.widths, config.depths, strict=True):
        layers += [width] * depth + ["M"]
    twin = TorchVGGInception(torchvision_vgg.make_layers(layers), config.widths[-1], config.inceptions, CLASSES)

    def make() -> nnx.Module:
        return VGGInception(config, num_classes=CLASSES, dtype=np.float64, rngs=seeded(default=0))

    # In float64, train mode, odd sizes: gradients of pooling and concatenation as well.
    with jax.enable_x64(True):
        pair = parity.make_pair(make, twin, random_value, rules("vgg16_inception"), training=True, dtype=np.float64)
        parity.assert_steps_equal(pair, images(4, 75, 97, np.float64), np.array([3, 5, 0, 6]))
