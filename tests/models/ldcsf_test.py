"""LDCSF: its parts against the Swin Transformer that it extends, its options, groups, gradients and sizes."""

from __future__ import annotations

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from histojax import models
from histojax.models.ldcsf import LDCSF, LDCSFConfig, LocalDepthConv
from histojax.models.rngs import seeded
from histojax.models.swin import Swin, SwinConfig
from tests.helpers.modules import call, evaluation, flat, images

# Windows of 2 on maps of 8, 4 and 2: shifted in the first two stages.
SMALL = {"embed_dim": 16, "depths": (2, 2, 1), "heads": (2, 2, 4), "window": 2, "resnet_blocks": 2}
BACKBONE = SwinConfig(16, (2, 2, 1), (2, 2, 4), 2, stochastic_depth=0.0)
# Every parameter of a part that the paper adds has one of these in its path; the rest is the Swin backbone's.
ADDED = {"ldc", "fr", "resnet", "head"}
BLOCKS = {"ldc": "blocks", "ldc_norm": "batch", "stochastic_depth": 0.5}


def small(**kwargs) -> LDCSF:
    options = {"stochastic_depth": 0.0} | SMALL | kwargs
    return models.create("ldcsf", num_classes=3, rngs=seeded(default=0), **options)


def abstract(**options):
    return nnx.eval_shape(lambda: models.create("ldcsf", num_classes=4, rngs=seeded(default=0), **options))


def apply(method, model, x):
    return call(evaluation(model), x, method)


def parameters(model) -> dict[str, jax.Array]:
    return flat(nnx.state(model, nnx.Param))


def count(model) -> int:
    return sum(int(np.prod(p.shape)) for p in parameters(model).values())


def copy(source, target) -> None:
    """Give `target` the parameters of `source` at every path that both have."""
    values = parameters(source)

    def pick(path, leaf):
        return values.get(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)

    nnx.update(target, jax.tree_util.tree_map_with_path(pick, nnx.as_pure(nnx.state(target, nnx.Param))))


@functools.cache
def train_step(**options):
    """Return a function of {path: parameter}, the loss, gradients and batch statistics of a pass in training mode."""
    model = nnx.view(small(**BLOCKS, **options), use_running_average=False, deterministic=False)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss_fn(params, rest, x):
        merged = nnx.merge(graphdef, params, rest)
        loss = -jnp.mean(jax.nn.log_sigmoid(merged(x))[:, 1])
        return loss, nnx.as_pure(nnx.state(merged, nnx.BatchStat))

    step, treedef = jax.jit(jax.value_and_grad(loss_fn, has_aux=True)), jax.tree.structure(nnx.as_pure(params))

    def run(values):
        (loss, stats), grads = step(jax.tree.unflatten(treedef, values.values()), nnx.as_pure(rest), images())
        return loss, flat(grads), flat(stats)

    return run, flat(params)


@functools.cache
def small_pass(**options):
    run, params = train_step(**options)
    return run(params)


@pytest.mark.parametrize("places", ["stages", "blocks"])
def test_it_starts_equal_to_a_swin_transformer_with_its_weights(places):
    ldcsf, swin = small(ldc=places), Swin(BACKBONE, num_classes=3, rngs=seeded(default=1))
    copy(swin, ldcsf)
    wanted = apply(Swin.features, swin, images())
    np.testing.assert_array_equal(apply(LDCSF.features, ldcsf, images()), wanted)
    # FR initially scales every channel by 0.953; with an open gate it changes nothing.
    np.testing.assert_allclose(apply(lambda m, x: m.fr(x), ldcsf, wanted), 0.9526 * wanted, rtol=1e-4)
    ldcsf.fr.fc2.bias[...] = jnp.full_like(ldcsf.fr.fc2.bias[...], 50.0)
    np.testing.assert_array_equal(apply(lambda m, x: m.fr(x), ldcsf, wanted), wanted)
    # The LDCs have an effect once their last layers are not zero.
    for conv in ldcsf.ldc:
        conv.pointwise.kernel[...] = jnp.eye(len(conv.pointwise.bias[...]))
    assert np.abs(np.asarray(apply(LDCSF.features, ldcsf, images()) - wanted)).max() > 0.1


def test_without_its_parts_it_equals_the_swin_transformer():
    plain, swin = small(ldc="none", fr=False, resnet=False), Swin(BACKBONE, num_classes=3, rngs=seeded(default=1))
    assert parameters(plain).keys() == parameters(swin).keys()
    copy(swin, plain)
    np.testing.assert_array_equal(apply(LDCSF.__call__, plain, images()), apply(Swin.__call__, swin, images()))


def test_the_backbone_has_the_paths_and_shapes_of_swin_tiny():
    swin = nnx.eval_shape(
        lambda: models.create("swin_tiny_patch4_window7_224", num_classes=1000, rngs=seeded(default=0))
    )
    first_stages = {
        name: p.shape
        for name, p in parameters(swin).items()
        if name.split("/")[0] in ("patch_embed", "stages", "merges") and not name.startswith(("stages/3", "merges/2"))
    }
    own = {name: p.shape for name, p in parameters(abstract()).items() if not ADDED & set(name.split("/"))}
    assert own == first_stages


@pytest.mark.parametrize(
    ("options", "groups"),
    [
        ({}, {"ldc": 3 * 5, "fr": 4, "resnet": 4 * 3 + 2 * 9, "head": 2}),
        ({"ldc": "blocks"}, {"ldc": 10 * 5, "fr": 4, "resnet": 30, "head": 2}),
        ({"ldc": "none"}, {"ldc": 0, "fr": 4, "resnet": 30, "head": 2}),
        ({"ldc_norm": "batch", "fr": False, "resnet_blocks": 1}, {"ldc": 15, "fr": 0, "resnet": 12, "head": 2}),
        ({"resnet": False}, {"ldc": 15, "fr": 4, "resnet": 0, "head": 2}),
    ],
)
def test_parameter_groups_follow_from_paths(options, groups):
    names = parameters(abstract(**options))
    assert {group: sum(group in name.split("/") for name in names) for group in ADDED} == groups
    # No other component of a path may put a part of the backbone into an optimizer group.
    assert not any("attention" in name.split("/") for name in names)


def test_parameter_counts():
    def ldc(c):
        return 9 * c + 2 * c + c * c + c

    bottlenecks = 384 * 512 + 9 * 512**2 + 512 * 2048 + 384 * 2048 + 2 * (512 + 512 + 2048 + 2048)
    bottlenecks += 2 * (2048 * 512 + 9 * 512**2 + 512 * 2048 + 2 * (512 + 512 + 2048))
    fr = 384 * 24 + 24 + 24 * 384 + 384
    default, plain = abstract(), abstract(ldc="none", fr=False, resnet=False)
    assert count(plain) == SWIN_STAGES + 2 * 384 + 385 * 4
    assert count(default) == SWIN_STAGES + ldc(96) + ldc(192) + ldc(384) + fr + bottlenecks + 2049 * 4
    assert count(default) == LDCSF_PARAMETERS


# torchvision's swin_t without its last merging, stage, norm and head.
SWIN_STAGES = 12_151_242
LDCSF_PARAMETERS = 25_706_214


@pytest.mark.parametrize("size", [(224, 224), (64, 96)])
@pytest.mark.parametrize("resnet", [True, False])
def test_shapes_of_features_and_logits(size, resnet):
    model = nnx.eval_shape(lambda: evaluation(abstract(resnet=resnet)))
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    features = nnx.eval_shape(lambda m, x: m.features(x), model, x)
    assert features.shape == (2, size[0] // 16, size[1] // 16, 384)
    last = nnx.eval_shape(lambda m, x: m.reconstruct(x), model, features)
    assert last.shape == ((2, size[0] // 32, size[1] // 32, 2048) if resnet else features.shape)
    out = nnx.eval_shape(lambda m, x: m(x), model, x)
    assert (out.shape, out.dtype) == ((2, 4), jnp.float32)


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_the_local_convolution_equals_its_formula(norm):
    conv = LocalDepthConv(3, norm=norm, rngs=seeded(default=0))
    conv.pointwise.kernel[...] = jnp.eye(3)[::-1] * 2
    conv.pointwise.bias[...] = jnp.arange(3.0)
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    kernel, padded = np.asarray(conv.depthwise.kernel[...]), np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = sum(padded[:, i : i + 4, j : j + 5] * kernel[i, j, 0] for i in range(3) for j in range(3))
    axes = (3,) if norm == "layer" else (0, 1, 2)
    y = (y - y.mean(axes, keepdims=True)) / np.sqrt(y.var(axes, keepdims=True) + 1e-5)
    erf = np.vectorize(math.erf)
    y = 0.5 * y * (1 + erf(y / np.sqrt(2)))
    np.testing.assert_allclose(conv(x), x + 2 * y[..., ::-1] + np.arange(3), rtol=1e-5, atol=1e-5)


def test_every_parameter_gets_a_gradient_within_two_steps():
    """At the first step, or at the second where the layer above starts at zero."""
    _, grads, _ = small_pass()
    behind_zero = r"ldc/\d/(depthwise|norm)|fr/fc1|resnet/\d/(conv\d|bn[12])/"
    assert {n for n, g in grads.items() if not np.linalg.norm(g) > 0} == {n for n in grads if re.match(behind_zero, n)}
    run, params = train_step()
    after = {name: value - 0.1 * grads[name] for name, value in params.items()}
    assert not [name for name, grad in run(after)[1].items() if not np.linalg.norm(grad) > 0]


def test_rematerialisation_changes_no_values():
    loss, grads, stats = small_pass()
    loss_remat, grads_remat, stats_remat = small_pass(remat=True)
    np.testing.assert_allclose(loss_remat, loss, rtol=1e-6)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in grads.values()))
    for name, grad in grads.items():
        np.testing.assert_allclose(grads_remat[name], grad, rtol=1e-4, atol=1e-5 * norm, err_msg=name)
    assert any(name.startswith("ldc") for name in stats)
    for name, stat in stats.items():
        np.testing.assert_allclose(stats_remat[name], stat, rtol=1e-5, atol=1e-6, err_msg=name)


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32():
    loss, grads, stats = small_pass(dtype=jnp.bfloat16)
    for name, value in {"loss": loss, **grads, **stats}.items():
        assert value.dtype == jnp.float32, name
    exact, exact_grads, _ = small_pass()
    np.testing.assert_allclose(loss, exact, rtol=0.02)
    np.testing.assert_allclose(grads["head/bias"], exact_grads["head/bias"], atol=0.02)
    model = small(**BLOCKS, dtype=jnp.bfloat16)
    assert nnx.eval_shape(lambda m, x: m.features(x), model, images()).dtype == jnp.bfloat16
    assert nnx.eval_shape(lambda m, x: m(x), model, images()).dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ldc": "never"}, "ldc='never' is not one of 'stages', 'blocks', 'none'"),
        ({"ldc_norm": "group"}, "ldc_norm='group' is not one of 'layer', 'batch'"),
        ({"fr": "no"}, "fr='no' is not one of True, False"),
        ({"resnet": 0}, "resnet=0 is not one of True, False"),
        ({"fr_reduction": 0}, "fr_reduction=0 is not in [1, 384], the channels of the map that FR weighs"),
        ({"fr_reduction": 65, **SMALL}, "fr_reduction=65 is not in [1, 64]"),
        ({"resnet_blocks": 0}, "resnet_blocks=0 is not a positive number"),
        ({"depths": (1,) * 4, "heads": (3,) * 4}, "depths=(1, 1, 1, 1): at most three stages"),
        ({"window": 0}, "window=0 is not a positive number"),
        ({"fr_reductoin": 8}, "'fr_reductoin' of ldcsf (did you mean 'fr_reduction'?)"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        abstract(**options)


def test_the_default_config_gives_the_default_model():
    model = nnx.eval_shape(lambda: LDCSF(LDCSFConfig(), num_classes=1000, rngs=seeded(default=0)))
    expected = nnx.eval_shape(lambda: models.create("ldcsf", num_classes=1000, rngs=seeded(default=0)))
    assert nnx.graphdef(model) == nnx.graphdef(expected)
