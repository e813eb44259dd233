"""A training step of every model: on four devices, data- and parameter-sharded, it is the step on one."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from histojax import models
from histojax.distributed.sharding import Layout
from histojax.models.dala_resnet import DALAResNet, DALAResNetConfig
from histojax.models.densenet import DenseNet, DenseNetConfig
from histojax.models.resnet import ResNet, ResNetConfig
from histojax.models.seresnet import SEResNet, SEResNetConfig
from histojax.models.vgg import VGG as VGG16
from histojax.models.vgg import VGGConfig, VGGFeaturesConfig, VGGInception, VGGInceptionConfig
from histojax.models.vit import ViT, ViTConfig
from histojax.training.optimizer import OptimizerSpec, make_optimizer
from histojax.training.step import Program, StepSpec
from histojax.training.tasks import Multiclass

TASK = Multiclass(("a", "b", "c"), (1.0, 0.5, 1.5))
SGD = OptimizerSpec("sgd", 0.01, 100, schedule="constant")
B, K, SIZE = 8, 3, 32
RESNET = ResNetConfig((1, 2, 1, 1), width=16, num_classes=K)
VGG = {"widths": (16, 16, 32, 32, 32), "depths": (1, 1, 2, 1, 1)}
VIT = {"image_size": SIZE, "patch": 8, "embed_dim": 32, "depth": 2, "heads": 2, "num_classes": K}
SWIN = {"embed_dim": 12, "depths": (2, 1, 1, 1), "heads": (1, 2, 2, 2), "window": 2, "stochastic_depth": 0.0}


def vgg(batch_norm: bool) -> VGGConfig:
    return VGGConfig(VGGFeaturesConfig(**VGG, batch_norm=batch_norm), hidden=32, dropout=0.0, num_classes=K)


# Every model's class with few blocks, for the time it takes to compile; without drops, which are drawn for the global
# batch and have tests of their own.
SMALL: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {
    "resnet50": lambda rngs: ResNet(RESNET, rngs=rngs),
    "dala_resnet50": lambda rngs: DALAResNet(DALAResNetConfig(RESNET, dropout=0.0), rngs=rngs),
    "seresnet50": lambda rngs: SEResNet(SEResNetConfig(RESNET), rngs=rngs),
    "densenet121": lambda rngs: DenseNet(DenseNetConfig(8, (1, 2, 2, 1), 16, num_classes=K), rngs=rngs),
    "vgg16": lambda rngs: VGG16(vgg(False), rngs=rngs),
    "vgg16_bn": lambda rngs: VGG16(vgg(True), rngs=rngs),
    "vgg16_inception": lambda rngs: VGGInception(
        VGGInceptionConfig(VGGFeaturesConfig(**VGG), ((16, 8, 16, 8, 8, 8),), dropout=0.0, num_classes=K), rngs=rngs
    ),
    "vit_base_patch16_224": lambda rngs: ViT(ViTConfig(**VIT), rngs=rngs),
    "dinov2_vitb14": lambda rngs: ViT(ViTConfig(**VIT, layer_scale=0.1), rngs=rngs),
    "vit": lambda rngs: ViT(ViTConfig(**VIT, registers=2, mlp="swiglu"), rngs=rngs),
    "swin_tiny_patch4_window7_224": lambda rngs: models.create(
        "swin_tiny_patch4_window7_224", num_classes=K, rngs=rngs, **SWIN
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    """Most of the time here would go into optimizing programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def step(name: str, layout: Layout, batch: dict[str, np.ndarray]) -> tuple[Any, Any]:
    program = Program(SMALL[name], TASK, make_optimizer(SGD), StepSpec((0.5,) * 3, (0.2,) * 3), layout)
    state, metrics = program.train(program.init(), layout.to_device(batch))
    return state.model, metrics


@functools.cache
def layout(fsdp: int, devices: int) -> Layout:
    return Layout(fsdp, jax.devices()[:devices])


def test_no_model_is_left_out() -> None:
    assert SMALL.keys() | {"ldcsf"} == models.MODELS.keys(), "ldcsf has these tests in ldcsf_step_test.py"


@pytest.mark.devices
@pytest.mark.parametrize("name", SMALL)
def test_four_devices_take_the_step_of_one(name: str) -> None:
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (B, SIZE, SIZE, 3), dtype=np.uint8),
        "label": rng.integers(0, K, B).astype(np.int32),
        "mask": np.array([True] * (B - 1) + [False]),
    }
    wanted, one = step(name, layout(1, 1), batch)
    found, four = step(name, layout(2, 4), batch)
    specs = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(found.params)}
    assert any("fsdp" in spec for spec in specs), specs
    assert float(four["loss"]) == pytest.approx(float(one["loss"]), rel=1e-4)
    assert float(four["grad_norm"]) == pytest.approx(float(one["grad_norm"]), rel=1e-3)
    for ours, theirs in ((found.params, wanted.params), (found.stats, wanted.stats)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)
