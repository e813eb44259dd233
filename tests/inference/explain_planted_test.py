"""The map of every model finds a planted object: feature map, reshaping and orientation are right.

Small models learn whether noise contains a bright square. Only the head of Vision Transformers is trained: trained
attention carries the square's presence to other positions within two blocks, and the map follows it there.
"""

import functools

import cv2
import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from histojax import models
from histojax.distributed.sharding import Layout
from histojax.inference.explain.grad_cam import GradCAM, upsample
from histojax.training.loading import LoadedModel
from histojax.training.optimizer import OptimizerSpec
from histojax.training.program import Program, StepSpec
from histojax.training.tasks import Multiclass

pytestmark = pytest.mark.slow

SIZE, SQUARE, BATCH, STEPS = 96, 24, 8, 30
# The small models of the specifications, and windows that tile maps of this size.
SWIN = {"embed_dim": 12, "depths": (2, 1), "heads": (1, 2), "window": 4}
OPTIONS = {"swin_tiny_patch4_window7_224": SWIN, "ldcsf": SWIN | {"resnet_blocks": 1}}
CLASSES = ("nothing", "square", "never")


def small_model(name: str, rngs: nnx.Rngs) -> nnx.Module:
    spec = models.spec(name)
    options = OPTIONS.get(name, spec.small) | dict.fromkeys(spec.drop_options, 0.0)
    return models.create(name, num_classes=len(CLASSES), rngs=rngs, **options)


def planted(rng: np.random.Generator, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright square where the label is 1, and the square's first row and column."""
    images = rng.normal(128, 20, (len(labels), SIZE, SIZE, 3))
    corners = rng.integers(0, SIZE - SQUARE, (len(labels), 2))
    for image, label, (y, x) in zip(images, labels, corners, strict=True):
        image[y : y + SQUARE, x : x + SQUARE] += 100 * label
    return np.clip(images, 0, 255).astype(np.uint8), corners


def train(name: str) -> LoadedModel:
    layout, rng = Layout(1, jax.devices()[:1]), np.random.default_rng(0)
    vit = "vit" in name
    spec = OptimizerSpec(
        "adamw", 0.02 if vit else 0.003, STEPS, schedule="constant", freeze_backbone_steps=STEPS if vit else 0
    )
    task = Multiclass(CLASSES, (1.0,) * len(CLASSES))
    make_model = functools.partial(small_model, name)
    program = Program(make_model, task, spec, StepSpec((0.5,) * 3, (0.2,) * 3), layout)
    state = program.init()
    for _ in range(STEPS):
        labels = rng.permutation(np.arange(BATCH) % 2).astype(np.int32)
        batch = {"image": planted(rng, labels)[0], "label": labels, "mask": np.ones(BATCH, bool)}
        state, _ = program.train(state, layout.to_device(batch))
    config = ConfigDict({"model": {"name": name}, "data": {"image_size": SIZE}})
    return LoadedModel(None, {}, config, layout, program, state.model)


def concentration(maps: np.ndarray, corners: np.ndarray) -> tuple[float, float]:
    """How much denser the maps are in the squares than on average, and the fraction of them that peak there.

    Squares are grown by half a position of the map, beyond which linear interpolation spreads.
    """
    density, peaks = [], []
    for one, (y, x) in zip(maps, corners, strict=True):
        values, grown = upsample(one, SIZE, SIZE), SIZE // len(one) // 2
        square = np.zeros((SIZE, SIZE), np.uint8)
        square[y : y + SQUARE, x : x + SQUARE] = 1
        square = cv2.dilate(square, np.ones((2 * grown + 1,) * 2, np.uint8)).astype(bool)
        assert values.any()
        density.append(values[square].mean() / values.mean())
        peaks.append(square.flat[values.argmax()])
    return float(np.mean(density)), float(np.mean(peaks))


# One of those whose maps are taken in the same way: the last stage of residual networks, the last convolution of VGG,
# and the Vision Transformer with registers.
SAME = {"resnet50", "seresnet50", "vgg16", "vgg16_inception"}
SAME |= {"vit_base_patch16_224", "dinov2_vitb14", "vit_small_patch14_dinov2"}


@pytest.mark.parametrize("name", sorted(set(models.names()) - SAME))
def test_the_map_finds_the_planted_square(name: str) -> None:
    cam = GradCAM(train(name), BATCH)
    n = 24
    images, corners = planted(np.random.default_rng(1), np.ones(n))
    maps = cam.maps(images, np.ones(n, int))
    assert maps.shape == (n, *cam.layers[cam.layer])
    density, peaks = concentration(maps, corners)
    turned, turned_peaks = concentration(maps.swapaxes(1, 2)[:, ::-1], corners)
    print(f"{name}: {cam.layer} {maps.shape[1:]}, density {density:.2f}, peaks {peaks:.2f}; turned {turned:.2f}")
    assert density >= 1.3
    assert peaks >= 0.5
    # A map in the wrong orientation stays below the bounds.
    assert turned < min(1.25, density)
    assert turned_peaks < peaks
