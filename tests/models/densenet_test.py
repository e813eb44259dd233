"""DenseNet: channels, stages, dropout, types, rematerialisation, devices."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from histojax.distributed.sharding import Layout
from histojax.models.densenet import DenseNet, DenseNetConfig, densenet121

K, B = 3, 8
ORDER = ["block1", "block2", "block3", "block4", "norm5"]
SMALL = {"growth_rate": 4, "block_sizes": (2, 3, 1, 2), "width": 8, "bn_size": 2, "num_classes": K}


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    """Most of the time here would go into optimizing programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def small(*, seed=0, drop_rate=0.0, dtype=jnp.float32, remat=False) -> DenseNet:
    config = DenseNetConfig(**SMALL, drop_rate=drop_rate)
    return DenseNet(config, dtype=dtype, remat=remat, rngs=nnx.Rngs(params=0, dropout=seed))


def images(b=B, h=32, w=32, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(b, h, w, 3)).astype(dtype)


def evaluation(model):
    return nnx.view(model, use_running_average=True, deterministic=True, raise_if_not_found=False)


def call(model, x, method=lambda model, x: model(x)):
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, x: method(nnx.merge(graphdef, state), x))(nnx.as_pure(state), x)


def flat(state) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(nnx.as_pure(state))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def shapes(model, *size) -> dict[str, tuple[int, ...]]:
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    return {name: leaf.shape[1:] for name, leaf in nnx.eval_shape(lambda m, x: m.feature_maps(x), model, x).items()}


def test_channels_grow_and_are_halved():
    # Table 1 of the paper, and torchvision's in_features of its transitions and classifier.
    config = DenseNetConfig()
    assert [config.in_features(i) for i in range(4)] == [64, 128, 256, 512]
    assert [config.out_features(i) for i in range(4)] == [256, 512, 1024, 1024]
    model = nnx.eval_shape(lambda: densenet121(num_classes=K, rngs=nnx.Rngs(0)))
    assert [len(block) for block in model.blocks] == [6, 12, 24, 16]
    assert shapes(model, 224, 224) == {
        "block1": (56, 56, 256),
        "block2": (28, 28, 512),
        "block3": (14, 14, 1024),
        "block4": (7, 7, 1024),
        "norm5": (7, 7, 1024),
    }


@pytest.mark.parametrize("size", [(32, 32), (75, 97)])
def test_sizes_are_rounded_down_at_transitions(size):
    h, w = (-(-n // 4) for n in size)
    found = shapes(small(), *size)
    assert [found[f"block{i + 1}"][:2] for i in range(4)] == [(h // 2**i, w // 2**i) for i in range(4)]


def test_dropout_is_in_training_only_after_each_layer():
    def new(model):
        """What the first block's layers add."""
        return np.asarray(call(model, images(), lambda m, x: m.feature_maps(x)["block1"]))[..., SMALL["width"] :]

    one, other = (small(drop_rate=0.5, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(new(evaluation(one)), new(evaluation(small())))
    assert not np.array_equal(new(one), new(other))
    assert np.mean(new(one) == 0) == pytest.approx(0.5, abs=0.05)
    made = nnx.eval_shape(lambda: densenet121(num_classes=K, rngs=nnx.Rngs(0), drop_rate=0.2))
    assert {layer.dropout.rate for block in made.blocks for layer in block} == {0.2}


def test_a_model_is_its_stages_and_its_classifier():
    model = evaluation(small())
    names = []

    def parts(model, x):
        maps, features = model.feature_maps(x), model.features(x)
        names.extend(maps)
        return maps[names[-1]], features, model.classify(features)

    last, features, logits = call(model, images(), parts)
    assert names == ORDER
    np.testing.assert_array_equal(last, features)
    np.testing.assert_allclose(call(model, images()), logits, rtol=1e-5, atol=1e-6)
    assert (logits.shape, logits.dtype) == ((B, K), jnp.float32)


def test_bfloat16_keeps_parameters_and_logits_in_float32():
    exact, model = evaluation(small()), evaluation(small(dtype=jnp.bfloat16))
    assert {v.dtype for v in flat(nnx.state(model, (nnx.Param, nnx.BatchStat))).values()} == {jnp.dtype("float32")}
    maps = nnx.eval_shape(lambda m, x: m.feature_maps(x), model, images())
    assert {leaf.dtype for leaf in maps.values()} == {jnp.dtype("bfloat16")}
    wanted, got = call(exact, images()), call(model, images())
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, atol=0.03 * float(jnp.abs(wanted).max()))
    assert not np.array_equal(got, wanted)


def test_float64_is_float64_throughout():
    with jax.enable_x64(True):
        # Not cached: these models have no values.
        model = evaluation(nnx.eval_shape(lambda: small.__wrapped__(dtype=jnp.float64)))
        graphdef, values, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
        values = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float64), nnx.as_pure(values))

        def forward(values, rest, x):
            return nnx.merge(graphdef, values, rest)(x)

        jaxpr = jax.make_jaxpr(forward)(values, nnx.as_pure(rest), images(1, dtype=np.float64))
        assert jaxpr.out_avals[0].dtype == jnp.float64
        assert not re.findall(r"f32\[\d[^\]]*\]", str(jaxpr.jaxpr))


@functools.cache
def train_pass(*, remat=False, devices=1):
    """Return loss, gradients and new state of one pass, dropout and all, with parameters and batch sharded."""
    on = Layout(min(devices, 2), jax.devices()[:devices])
    graphdef, params, rest = nnx.split(small(remat=remat, drop_rate=0.3), nnx.Param, ...)
    params, rest = nnx.as_pure(params), nnx.as_pure(rest)
    params = jax.device_put(params, on.state(params))

    def loss_fn(params, rest, x):
        merged = nnx.merge(graphdef, params, rest)
        loss = -jnp.mean(jax.nn.log_softmax(merged(x))[:, 1])
        return loss, nnx.as_pure(nnx.state(merged, (nnx.BatchStat, nnx.RngCount)))

    step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, state), grads = step(params, jax.device_put(rest, on.replicated), jax.device_put(images(), on.batch))
    specs = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(params)}
    return loss, flat(grads), flat(state), specs


def assert_same(got, wanted):
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5)
    assert got[2].keys() == wanted[2].keys()
    for name, value in (wanted[1] | wanted[2]).items():
        assert np.all(np.isfinite(value)), name
        np.testing.assert_allclose((got[1] | got[2])[name], value, rtol=1e-3, atol=2e-5, err_msg=name)
    assert max(np.abs(grad).max() for grad in wanted[1].values()) > 1e-2


def test_rematerialisation_changes_nothing_but_memory():
    assert_same(train_pass(remat=True), train_pass())


@pytest.mark.devices
def test_training_does_not_depend_on_the_devices():
    # Batch norm and dropout are those of the global batch.
    sharded = train_pass(devices=4)
    assert any("fsdp" in spec for spec in sharded[3])
    assert_same(sharded, train_pass())


@pytest.mark.parametrize("remat", [False, True])
def test_rematerialisation_is_on_where_asked_for(remat):
    graphdef, state = nnx.split(small(remat=remat))
    jaxpr = jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state)(x))(nnx.as_pure(state), images())
    checkpoints = sum(eqn.primitive.name.startswith(("remat", "checkpoint")) for eqn in jaxpr.eqns)
    assert checkpoints == (8 if remat else 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth_rate": 0}, "growth_rate=0 is not a positive number"),
        ({"width": 0}, "width=0 is not a positive number"),
        ({"bn_size": -1}, "bn_size=-1 is not a positive number"),
        ({"block_sizes": (6, 12, 24)}, "block_sizes=(6, 12, 24) is not four positive numbers"),
        ({"block_sizes": (6, 12, 24, 0)}, "block_sizes=(6, 12, 24, 0) is not four positive numbers"),
        ({"drop_rate": 1.0}, "drop_rate=1.0 is not in [0, 1)"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DenseNetConfig(**options)
    if "drop_rate" in options:
        with pytest.raises(ValueError, match=re.escape(message)):
            densenet121(num_classes=K, rngs=nnx.Rngs(0), **options)
