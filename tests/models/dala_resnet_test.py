"""ResNet50 and DALAResNet50: sizes, options, initial values, state and rematerialisation."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from histojax import models
from histojax.models.dala_resnet import ChannelAttention, DALAResNet, DALAResNetConfig, DualActivationHead
from histojax.models.ops.layers import max_pool_3x3_s2
from histojax.models.resnet import ResNet, ResNetConfig
from histojax.models.rngs import seeded
from tests.helpers import modules
from tests.helpers.modules import call, evaluation, flat

SIZES = {"stage_sizes": (1, 1, 1, 2), "width": 4}
TINY, K = ResNetConfig(**SIZES), 3
CHOICES = [(a, h) for a in ("none", "layer4", "layer4_blocks") for h in ("linear", "dual")]


@pytest.fixture(autouse=True)
def _strict_ranks() -> Iterator[None]:
    with jax.numpy_rank_promotion("raise"):
        yield


def tiny(attention="layer4", head="dual", dropout=0.0, **kwargs) -> DALAResNet:
    config = DALAResNetConfig(
        **SIZES, attention=attention, head=head, reduction=8, head_widths=(16, 8), dropout=dropout
    )
    return DALAResNet(config, num_classes=K, rngs=seeded(default=0), **kwargs)


# Of 64 pixels a side, so that the last maps have more than one position.
images = functools.partial(modules.images, h=64, w=64)


def predict(model, x) -> jax.Array:
    return call(evaluation(model), x)


def train_pass(model):
    """Return the loss, the gradients and the new batch statistics of one training pass."""
    graphdef, params, stats, rest = nnx.split(
        nnx.view(model, use_running_average=False, deterministic=False), nnx.Param, nnx.BatchStat, ...
    )

    def loss_fn(params, stats, rest, x):
        merged = nnx.merge(graphdef, params, stats, rest)
        logits = merged(x)
        loss = -jnp.mean(jax.nn.log_softmax(logits)[:, 1])
        return loss, nnx.as_pure(nnx.state(merged, nnx.BatchStat))

    step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, new_stats), grads = step(*(nnx.as_pure(s) for s in (params, stats, rest)), images())
    return loss, flat(grads), flat(new_stats)


def abstract(name, **options):
    return nnx.eval_shape(lambda: models.create(name, num_classes=1000, rngs=seeded(default=0), **options))


def parameter_count(model) -> int:
    return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_parameter_counts():
    backbone = 25_557_032 - 2049 * 1000
    attention = 2048 * 128 + 128 + 128 * 2048 + 2048
    head = 2049 * 512 + 513 * 256 + 257 * 1000
    assert parameter_count(abstract("resnet50")) == 25_557_032
    assert parameter_count(abstract("dala_resnet50")) == backbone + attention + head
    blocks = abstract("dala_resnet50", attention="layer4_blocks", head="linear")
    assert parameter_count(blocks) == 25_557_032 + 3 * attention


@pytest.mark.parametrize(("attention", "head"), CHOICES)
def test_parameter_groups_follow_from_paths(attention, head):
    names = set(flat(nnx.state(abstract("dala_resnet50", attention=attention, head=head), nnx.Param)))
    backbone = {n for n in names if not {"attention", "head"} & set(n.split("/"))}
    assert backbone == {n for n in flat(nnx.state(abstract("resnet50"), nnx.Param)) if "head" not in n}
    in_group = {group: sum(group in n.split("/") for n in names) for group in ("attention", "head")}
    assert in_group["attention"] == {"none": 0, "layer4": 4, "layer4_blocks": 12}[attention]
    assert in_group["head"] == {"linear": 2, "dual": 6}[head]


@pytest.mark.parametrize(("attention", "head"), CHOICES)
def test_shapes_of_features_and_logits(attention, head):
    model = nnx.eval_shape(lambda: evaluation(tiny(attention, head)))
    features = nnx.eval_shape(lambda m, x: m.features(x), model, images(2))
    assert features.shape == (2, 2, 2, TINY.num_features)
    for x, shape in ((images(2), (2, 3)), (images(1, h=45, w=45), (1, 3))):
        out = nnx.eval_shape(lambda m, x: m(x), model, x)
        assert (out.shape, out.dtype) == (shape, jnp.float32)


def test_without_attention_and_dual_head_it_equals_resnet():
    dala, resnet = tiny("none", "linear"), ResNet(TINY, num_classes=K, rngs=seeded(default=1))
    assert not np.array_equal(dala.conv1.kernel[...], resnet.conv1.kernel[...])
    nnx.update(resnet, nnx.state(dala))
    np.testing.assert_array_equal(predict(dala, images()), predict(resnet, images()))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_gate_starts_open_for_every_input(scale):
    attention = ChannelAttention(32, reduction=4, rngs=seeded(default=0))
    x = scale * np.abs(np.random.default_rng(0).normal(size=(3, 2, 2, 32))).astype(np.float32)
    gate = attention.gate(x)
    assert gate.shape == (3, 32)
    assert (np.asarray(gate) >= 0.95).all()
    np.testing.assert_allclose(attention(x), x * np.asarray(gate)[:, None, None], rtol=1e-6)


def test_the_attention_gets_gradients_within_two_steps():
    model = tiny()
    _, grads, _ = train_pass(model)
    assert np.linalg.norm(grads["attention/fc2/kernel"]) > 0
    assert np.linalg.norm(grads["attention/fc1/kernel"]) == 0  # as documented: from the second step on
    model.attention.fc2.kernel[...] -= grads["attention/fc2/kernel"]
    assert np.linalg.norm(train_pass(model)[1]["attention/fc1/kernel"]) > 0


def test_residual_branches_start_at_zero_by_default():
    assert (np.asarray(tiny().layer4[0].bn3.scale[...]) == 0).all()
    config = ResNetConfig((1, 1, 1, 1), 4, zero_init_residual=False)
    assert (np.asarray(ResNet(config, num_classes=K, rngs=seeded(default=0)).layer4[0].bn3.scale[...]) == 1).all()


@functools.cache
def tiny_pass(attention, **kwargs):
    return train_pass(tiny(attention, **kwargs))


def test_rematerialisation_changes_no_values():
    loss, grads, stats = tiny_pass("layer4_blocks")
    loss_remat, grads_remat, stats_remat = tiny_pass("layer4_blocks", remat=True)
    np.testing.assert_allclose(loss, loss_remat, rtol=1e-6)
    assert set(grads) == set(grads_remat)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in grads.values()))
    for name, grad in grads.items():
        np.testing.assert_allclose(grads_remat[name], grad, rtol=1e-4, atol=1e-5 * norm, err_msg=name)
    for name, stat in stats.items():
        np.testing.assert_allclose(stats_remat[name], stat, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("remat", [False, True])
def test_a_training_pass_updates_the_batch_statistics_once(remat):
    model = tiny("layer4_blocks")
    stem = model.conv1(images())
    block_input = max_pool_3x3_s2(jax.nn.relu(model.bn1(stem)))
    _, _, stats = tiny_pass("layer4_blocks", **({"remat": True} if remat else {}))
    # The second one lies inside a block, where rematerialisation runs the forward pass twice.
    for name, y in (("bn1", stem), ("layer1/0/bn1", model.layer1[0].conv1(block_input))):
        mean, var = np.mean(y, (0, 1, 2)), np.var(y, (0, 1, 2))
        np.testing.assert_allclose(stats[f"{name}/mean"], 0.1 * mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(stats[f"{name}/var"], 0.9 + 0.1 * var, rtol=1e-4)


def test_evaluation_does_not_change_the_state():
    bn, x = tiny().bn1, np.ones((2, 3, 3, 4), np.float32)
    evaluation(bn)(x)
    np.testing.assert_array_equal(bn.mean[...], 0)
    bn(x)
    np.testing.assert_allclose(bn.mean[...], 0.1, rtol=1e-6)


@pytest.mark.parametrize("active", ["dropout1", "dropout2"])
def test_each_dropout_is_on_in_training_only(active):
    head, x = DualActivationHead(32, 3, widths=(16, 8), dropout=0.5, rngs=seeded(default=0)), np.ones((4, 32), "f")
    np.testing.assert_array_equal(nnx.view(head, deterministic=True)(x), nnx.view(head, deterministic=True)(x))
    head = nnx.view(head, deterministic=True)
    getattr(head, active).deterministic = False
    assert not np.array_equal(head(x), head(x))


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32():
    model = nnx.eval_shape(lambda: tiny("layer4_blocks", dtype=jnp.bfloat16))
    assert nnx.eval_shape(lambda m, x: m.features(x), model, images()).dtype == jnp.bfloat16
    assert nnx.eval_shape(lambda m, x: m(x), evaluation(model), images()).dtype == jnp.float32
    loss, grads, stats = tiny_pass("layer4_blocks", dtype=jnp.bfloat16)
    for name, value in {"loss": loss, **grads, **stats, **flat(nnx.state(model, nnx.Param))}.items():
        assert value.dtype == jnp.float32, name
    exact, exact_grads, _ = tiny_pass("layer4_blocks")
    np.testing.assert_allclose(loss, exact, rtol=0.02)
    np.testing.assert_allclose(grads["head/dense3/bias"], exact_grads["head/dense3/bias"], atol=0.02)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet50",
            {"attention": "layer4"},
            "unknown option 'attention' of resnet50; options: stage_sizes, width",
        ),
        ("resnet50", {"stage_sizes": (3, 4, 6)}, "stage_sizes=(3, 4, 6) is not four positive numbers"),
        ("resnet50", {"width": 0}, "width=0 is not a positive number"),
        ("dala_resnet50", {"atention": "layer4"}, "'atention' of dala_resnet50 (did you mean 'attention'?)"),
        (
            "dala_resnet50",
            {"attention": "layer3"},
            "attention='layer3' is not one of 'none', 'layer4', ",
        ),
        ("dala_resnet50", {"head": "mlp"}, "head='mlp' is not one of 'linear', 'dual'"),
        ("dala_resnet50", {"reduction": 0}, "reduction=0 is not in [1, 2048]"),
        ("dala_resnet50", {"head_widths": (512,)}, "head_widths=(512,) is not two positive numbers"),
        ("dala_resnet50", {"dropout": 1.0}, "dropout=1.0 is not in [0, 1)"),
    ],
)
def test_invalid_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        abstract(name, **options)
