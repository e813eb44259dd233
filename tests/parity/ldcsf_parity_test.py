"""LDCSF against its PyTorch twin: logits, and in training the gradients and the batch statistics."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from histojax import models
from histojax.models.rngs import seeded
from tests.helpers import ldcsf_torch, parity
from tests.helpers.modules import call, flat, images

pytestmark = [pytest.mark.parity, pytest.mark.slow]
CLASSES = 4
# Windows of 4 on maps of 16, 8 and 4: shifted in the first two stages.
SMALL = {"embed_dim": 24, "depths": (2, 2, 1), "heads": (2, 3, 6), "window": 4, "resnet_blocks": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "small": SMALL,
    "blocks, batch norm": SMALL | {"ldc": "blocks", "ldc_norm": "batch"},
    "no LDC": SMALL | {"ldc": "none"},
    "no FR": SMALL | {"fr": False, "fr_reduction": 8},
    "no ResNet": SMALL | {"resnet": False, "fr_reduction": 4},
    "Swin": SMALL | {"ldc": "none", "fr": False, "resnet": False},
}


def make_pair(variant: str, *, training: bool = False, dtype: Any = np.float32) -> parity.Pair:
    sizes = VARIANTS[variant]

    def make() -> nnx.Module:
        return models.create(
            "ldcsf", num_classes=CLASSES, stochastic_depth=0.0, dtype=dtype, rngs=seeded(default=0), **sizes
        )

    twin = ldcsf_torch.LDCSF(CLASSES, **sizes)
    rules = ldcsf_torch.rules(batch_norm=sizes.get("ldc_norm") == "batch")
    return parity.make_pair(make, twin, parity.attention_values, rules, training=training, dtype=dtype)


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> parity.Pair:
    return make_pair(request.param)


# The sizes of "default" and "small" at 64 pixels are in the test of the stages.
@pytest.mark.parametrize(
    ("pair", "size"),
    [("default", 224), *((variant, 64) for variant in VARIANTS if variant not in ("default", "small"))],
    indirect=["pair"],
)
def test_logits_equal_the_twins(pair: parity.Pair, size: int) -> None:
    x = images(1, size, size)
    theirs = {"logits": parity.torch_logits(pair.twin, x)}
    parity.assert_outputs_equal({"logits": call(pair.model, x)}, theirs)


@pytest.mark.parametrize("pair", ["default", "small"], indirect=True)
def test_stages_and_logits_equal_the_twins(pair: parity.Pair) -> None:
    twin, x = pair.twin, images(2, 64, 64)
    parts = {f"stage{i + 1}": ldc for i, ldc in enumerate(twin.ldc)} | {"fr": twin.fr, "resnet": twin.resnet}
    theirs = parity.torch_outputs(twin, parts, x)
    theirs["resnet"] = theirs["resnet"].transpose(0, 2, 3, 1)
    parity.assert_outputs_equal(parity.our_outputs(pair.model, x, "stage3"), theirs)


def binary_cross_entropy(logits: jax.Array, labels: np.ndarray) -> jax.Array:
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean()


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_and_statistics_in_train_mode_equal_the_twins(variant: str) -> None:
    x = images(3, 64, 64, np.float64)
    y = np.random.default_rng(2).integers(0, 2, (3, CLASSES)).astype(np.float64)
    torch_loss = torch.nn.functional.binary_cross_entropy_with_logits
    # A bias right before a batch norm has no effect.
    without_effect = {"ldc.2.pointwise.inner.bias"} if variant == "no FR" else set()
    # In float64: batch norm over the few values of the last map amplifies float32 rounding beyond any honest tolerance.
    with jax.enable_x64(True):
        pair = make_pair(variant, training=True, dtype=np.float64)
        _, _, stats, _ = parity.split(pair.model)
        ours, theirs = parity.assert_steps_equal(pair, x, y, binary_cross_entropy, torch_loss, without_effect)
    before = parity.in_torch(flat(stats), pair.rules)
    for name in (name for name in theirs.stats if name.endswith("var")):
        # torch keeps the unbiased variance, n / (n - 1) of ours, in a tenth of the sum.
        n = 3 * map_size(name, variant) ** 2
        value = 0.9 * before[name] + (ours.stats[name] - 0.9 * before[name]) * n / (n - 1)
        np.testing.assert_allclose(value, theirs.stats[name], rtol=1e-6, atol=1e-9, err_msg=name)


def map_size(name: str, variant: str) -> int:
    """Side of the map, of images of 64 pixels, that a batch norm works on."""
    if name.startswith("resnet"):
        return 4 if name.startswith("resnet.0.bn1") else 2
    block = int(name.split(".")[1])
    return 16 // 2 ** int(np.searchsorted(np.cumsum(VARIANTS[variant]["depths"]), block, side="right"))
