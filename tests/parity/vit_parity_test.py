"""ViT-B/16 and DINOv2's ViT-B/14 against timm and torchvision: logits, named maps, gradients, position embeddings."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from histojax import models
from histojax.models.vit import resample_positions
from histojax.weights import convert

# It makes torchvision importable, which timm wants.
from tests.helpers import torchvision_import  # noqa: F401  # isort: skip
import timm  # isort: skip
import timm.layers  # isort: skip
import torchvision  # isort: skip

pytestmark = pytest.mark.parity
CLASSES = 5
SMALL = {"embed_dim": 64, "depth": 3, "heads": 4}


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in module.named_parameters():
            drawn = torch.randn(p.shape, generator=generator)
            if "norm" in name or ".ln" in name:
                drawn = 0.5 + drawn.sigmoid() if name.endswith("weight") else 0.2 * drawn
            elif p.ndim > 1 and "pos" not in name and "token" not in name:
                drawn = drawn / p[0].numel() ** 0.5
            elif p.ndim == 1:
                drawn = 0.2 * drawn
            p.copy_(drawn)
    return module.eval()


def name_of(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


@functools.cache
def abstract(name, options):
    return nnx.eval_shape(lambda: models.create(name, num_classes=CLASSES, rngs=nnx.Rngs(0), **dict(options)))


def loaded(name, module, dtype=np.float32, **options):
    """(graphdef, params) of our model in evaluation mode with the module's values, which all find their place."""
    model = nnx.view(abstract(name, tuple(options.items())), deterministic=True)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params = nnx.as_pure(params)
    expected = {name_of(p): (v.shape, dtype) for p, v in jax.tree_util.tree_leaves_with_path(params)}
    arrays = {key: value.numpy() for key, value in module.state_dict().items()}
    values, report = convert(arrays, models.spec(name), expected)
    assert not report.initial
    params = jax.tree_util.tree_map_with_path(lambda p, _: jnp.asarray(values[name_of(p)]), params)
    rest = jax.tree.map(lambda leaf: np.zeros((), np.uint32), nnx.as_pure(rest))  # keys, not used at rate 0
    return graphdef, params, rest


def images(h, w, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(2, h, w, 3)).astype(dtype)


def to_torch(x):
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def assert_logits(name, module, x, **options):
    graphdef, params, rest = loaded(name, module, **options)
    ours = np.asarray(jax.jit(lambda p, x: nnx.merge(graphdef, p, rest)(x))(params, x))
    with torch.no_grad():
        theirs = module(to_torch(x)).numpy()
    assert 1e-2 < theirs.std() < 1e2
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"{name} {x.shape[1]}×{x.shape[2]}: {error:.1e}")
    assert error <= 1e-4


def test_vit_is_timms_and_torchvisions():
    assert_logits(
        "vit_base_patch16_224",
        randomised(timm.create_model("vit_base_patch16_224", num_classes=CLASSES)),
        images(224, 224)[:1],
    )
    assert_logits(
        "vit_base_patch16_224",
        randomised(torchvision.models.vit_b_16(num_classes=CLASSES, image_size=64)),
        images(64, 64),
        image_size=64,
    )


@pytest.mark.parametrize("size", [(56, 56), (70, 84)])
def test_dinov2_is_timms_at_its_size_and_at_others(size):
    module = timm.create_model("vit_base_patch14_dinov2", num_classes=CLASSES, img_size=56, dynamic_img_size=True)
    assert_logits("dinov2_vitb14", randomised(module), images(*size), image_size=56)


@pytest.mark.parametrize(
    ("name", "parameters"), [("vit_base_patch16_224", 86_567_656), ("dinov2_vitb14", 86_579_712 + 769_000)]
)
def test_parameters_at_1000_classes(name, parameters):
    # DINOv2: timm counts without a head at 37×37 positions; these options give ours the same number.
    options = {"image_size": 518} if name == "dinov2_vitb14" else {}
    model = nnx.eval_shape(lambda: models.create(name, num_classes=1000, rngs=nnx.Rngs(0), **options))
    assert sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters


def small(**options):
    heads = SMALL["heads"]
    return timm.models.vision_transformer.VisionTransformer(
        img_size=64, patch_size=16, embed_dim=64, depth=3, num_heads=heads, num_classes=CLASSES, **options
    )


def test_named_maps():
    module = randomised(small())
    x = images(64, 64)
    graphdef, params, rest = loaded("vit", module, image_size=64, **SMALL)
    ours = nnx.merge(graphdef, params, rest).feature_maps(jnp.asarray(x))
    with torch.no_grad():
        theirs = module.forward_intermediates(to_torch(x), intermediates_only=True)
    assert list(ours) == ["block1", "block2", "block3"]
    for found, wanted in zip(ours.values(), theirs, strict=True):
        wanted = wanted.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def test_gradients():
    with jax.enable_x64(True):
        module = randomised(small(init_values=0.5)).double()
        x = images(64, 64, np.float64)
        options = {"image_size": 64, "layer_scale": 0.5} | SMALL
        _, params, rest = loaded("vit", module, np.float64, **options)
        model = nnx.view(
            nnx.eval_shape(
                lambda: models.create("vit", num_classes=CLASSES, rngs=nnx.Rngs(0), dtype=jnp.float64, **options)
            ),
            deterministic=True,
        )
        graphdef = nnx.graphdef(model)
        y = np.array([1, 3])

        def loss(params, x):
            log_p = jax.nn.log_softmax(nnx.merge(graphdef, params, rest)(x))
            return -log_p[jnp.arange(2), y].mean()

        grads, dx = jax.jit(jax.grad(loss, (0, 1)))(params, x)
        xt = to_torch(x).requires_grad_()
        torch.nn.functional.cross_entropy(module(xt), torch.from_numpy(y)).backward()
        arrays = {name: p.grad.numpy() for name, p in module.named_parameters()}
        expected = {name_of(p): (v.shape, np.float64) for p, v in jax.tree_util.tree_leaves_with_path(params)}
        wanted, _ = convert(arrays, models.spec("vit"), expected)
        worst = 0.0
        for path, found in jax.tree_util.tree_leaves_with_path(grads):
            reference = wanted[name_of(path)]
            worst = max(worst, np.linalg.norm(found - reference) / np.linalg.norm(reference))
        theirs = xt.grad.numpy().transpose(0, 2, 3, 1)
        worst = max(worst, np.linalg.norm(dx - theirs) / np.linalg.norm(theirs))
        print(f"gradients: {worst:.1e}")
        assert worst <= 1e-3


@pytest.mark.parametrize(
    ("old", "new"), [((37, 37), (16, 16)), ((4, 4), (9, 9)), ((14, 14), (7, 20)), ((5, 8), (5, 8))]
)
def test_positions_are_resampled_like_timms(old, new):
    table = np.random.default_rng(0).normal(size=(1, 1 + old[0] * old[1], 6)).astype(np.float32)
    wanted = timm.layers.resample_abs_pos_embed(torch.from_numpy(table), list(new), list(old), num_prefix_tokens=1)
    found = resample_positions(table, old, new)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
    np.testing.assert_allclose(resample_positions(jnp.asarray(table), old, new), wanted.numpy(), atol=1e-5)
