"""VGG16, with batch norm and with Inception blocks: stages, dropout, types, rematerialisation, devices."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from histojax.distributed.sharding import Layout
from histojax.models import vgg
from histojax.models.ops.pooling import adaptive_avg_pool
from histojax.models.vgg import VGG, Inception, VGGConfig, VGGFeaturesConfig, VGGInception, VGGInceptionConfig

K, B = 3, 8
ORDER = ["conv1", "conv2", "conv3", "conv4", "conv5", "pool5"]
SMALL = {"widths": (4, 4, 8, 8, 8), "depths": (1, 2, 1, 1, 1)}
INCEPTIONS = ((4, 2, 4, 2, 4, 4), (2, 2, 4, 2, 4, 2))
KINDS = ("plain", "inception")


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    """Most of the time here would go into optimizing programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def small(kind="plain", *, seed=0, dropout=0.0, batch_norm=False, dtype=jnp.float32, remat=False):
    features, rngs = VGGFeaturesConfig(**SMALL, batch_norm=batch_norm), nnx.Rngs(params=0, dropout=seed)
    if kind == "plain":
        return VGG(VGGConfig(features, 16, dropout, K), dtype=dtype, remat=remat, rngs=rngs)
    config = VGGInceptionConfig(features, INCEPTIONS, dropout, K)
    return VGGInception(config, dtype=dtype, remat=remat, rngs=rngs)


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


def test_stages_by_name_and_size():
    wanted = {"conv1": (224, 224, 64), "conv2": (112, 112, 128), "conv3": (56, 56, 256), "conv4": (28, 28, 512)}
    wanted |= {"conv5": (14, 14, 512), "pool5": (7, 7, 512)}
    for name in ("vgg16", "vgg16_bn", "vgg16_inception"):
        model = nnx.eval_shape(lambda name=name: getattr(vgg, name)(num_classes=K, rngs=nnx.Rngs(0)))
        more = {"inception1": (7, 7, 832), "inception2": (7, 7, 1024)} if "inception" in name else {}
        assert shapes(model, 224, 224) == wanted | more
    heights_and_widths = [(75, 97), (37, 48), (18, 24), (9, 12), (4, 6), (2, 3)]
    assert [shape[:2] for shape in shapes(small(), 75, 97).values()] == heights_and_widths


@pytest.mark.parametrize("kind", KINDS)
def test_images_smaller_than_32_are_refused(kind):
    for size in ((31, 64), (64, 8)):
        with pytest.raises(ValueError, match=f"at least 32, not {size[0]}×{size[1]}"):
            shapes(small(kind), *size)


def test_hidden_dense_layers_are_the_classifier_and_the_last_one_the_head():
    model = nnx.eval_shape(lambda: vgg.vgg16(num_classes=K, rngs=nnx.Rngs(0)))
    dense = {name: v.shape for name, v in flat(nnx.state(model)).items() if "kernel" in name and "blocks" not in name}
    assert dense == {
        "classifier/fc1/kernel": (25088, 4096),
        "classifier/fc2/kernel": (4096, 4096),
        "head/kernel": (4096, K),
    }


def test_batch_norm_where_asked_for():
    assert not [name for name in flat(nnx.state(small())) if "norm" in name]
    norms = {name for name in flat(nnx.state(small(batch_norm=True))) if name.endswith("norm/mean")}
    assert len(norms) == sum(SMALL["depths"])
    for batch_norm in (False, True):
        names = flat(nnx.state(small("inception", batch_norm=batch_norm)))
        assert any("blocks" in name and "norm" in name for name in names) == batch_norm
        assert any("inceptions" in name and "norm" in name for name in names)
    made = nnx.eval_shape(lambda: vgg.vgg16_inception(num_classes=K, rngs=nnx.Rngs(0), batch_norm=True))
    assert "blocks/4/layers/2/norm/scale" in flat(nnx.state(made))


def test_averages_over_cells_by_hand():
    x = jnp.arange(5.0).reshape(1, 5, 1, 1)
    # Cells of 5 positions on a grid of 3: 0-1, 1-3 and 3-4; the one column is repeated.
    wanted = np.broadcast_to(np.array([0.5, 2.0, 3.5])[:, None], (3, 3))
    np.testing.assert_allclose(adaptive_avg_pool(x, 3)[0, :, :, 0], wanted)
    assert adaptive_avg_pool(x.astype(jnp.bfloat16), 3).dtype == jnp.bfloat16


def test_branches_see_1_3_and_5_pixels():
    block = evaluation(Inception(2, (1, 1, 1, 1, 1, 1), rngs=nnx.Rngs(0)))
    for unit in (block.branch1, *block.branch2, *block.branch3, block.branch4):
        unit.conv.kernel[...] = jnp.ones_like(unit.conv.kernel[...])
    x = np.zeros((1, 9, 9, 2), np.float32)
    x[0, 4, 4] = 1
    y = np.asarray(block(x))[0]
    assert [int((y[..., i] > 0).sum()) for i in range(4)] == [1, 9, 25, 9]


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_in_training_only(kind):
    model = small(kind, dropout=0.5)
    np.testing.assert_array_equal(call(evaluation(model), images()), call(evaluation(small(kind)), images()))
    one, other = (small(kind, dropout=0.5, seed=seed) for seed in (1, 2))
    assert not np.array_equal(call(one, images()), call(other, images()))


def test_both_hidden_layers_are_dropped_from():
    layers = vgg.Classifier(4, 64, 0.5, rngs=nnx.Rngs(0))
    layers.fc1.kernel[...], layers.fc1.bias[...] = jnp.zeros((4, 64)), jnp.ones(64)
    layers.fc2.kernel[...] = jnp.eye(64)
    y = np.asarray(layers(np.ones((64, 4), np.float32)))
    assert set(np.unique(y)) == {0.0, 4.0}
    assert np.mean(y == 0) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(("name", "rate"), [("vgg16", 0.5), ("vgg16_bn", 0.5), ("vgg16_inception", 0.4)])
def test_rates_of_dropout(name, rate):
    for options, wanted in (({}, rate), ({"dropout": 0.1}, 0.1)):
        model = nnx.eval_shape(lambda o=options: getattr(vgg, name)(num_classes=K, rngs=nnx.Rngs(0), **o))
        found = [model.dropout] if "inception" in name else [model.classifier.dropout1, model.classifier.dropout2]
        assert [dropout.rate for dropout in found] == [wanted] * len(found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_its_stages_and_its_classifier(kind):
    model = evaluation(small(kind))
    names = []

    def parts(model, x):
        maps, features = model.feature_maps(x), model.features(x)
        names.extend(maps)
        return maps[names[-1]], features, model.classify(features)

    last, features, logits = call(model, images(), parts)
    assert names == ORDER + ["inception1", "inception2"] * (kind == "inception")
    np.testing.assert_array_equal(last, features)
    np.testing.assert_allclose(call(model, images()), logits, rtol=1e-5, atol=1e-6)
    assert (logits.shape, logits.dtype) == ((B, K), jnp.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_keeps_parameters_and_logits_in_float32(kind):
    exact, model = evaluation(small(kind)), evaluation(small(kind, dtype=jnp.bfloat16))
    assert {v.dtype for v in flat(nnx.state(model, (nnx.Param, nnx.BatchStat))).values()} == {jnp.dtype("float32")}
    maps = nnx.eval_shape(lambda m, x: m.feature_maps(x), model, images())
    assert {leaf.dtype for leaf in maps.values()} == {jnp.dtype("bfloat16")}
    wanted, got = call(exact, images()), call(model, images())
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, atol=0.03 * float(jnp.abs(wanted).max()))
    assert not np.array_equal(got, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_float64_is_float64_throughout(kind):
    with jax.enable_x64(True):
        # Not cached: these models have no values.
        model = evaluation(nnx.eval_shape(lambda: small.__wrapped__(kind, dtype=jnp.float64)))
        graphdef, values, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
        values = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float64), nnx.as_pure(values))

        def forward(values, rest, x):
            return nnx.merge(graphdef, values, rest)(x)

        jaxpr = jax.make_jaxpr(forward)(values, nnx.as_pure(rest), images(1, dtype=np.float64))
        assert jaxpr.out_avals[0].dtype == jnp.float64
        assert not re.findall(r"f32\[\d[^\]]*\]", str(jaxpr.jaxpr))


@functools.cache
def train_pass(kind, *, remat=False, devices=1):
    """Return loss, gradients and new state of one pass, dropout and all, with parameters and batch sharded."""
    on = Layout(min(devices, 2), jax.devices()[:devices])
    graphdef, params, rest = nnx.split(small(kind, remat=remat, dropout=0.3, batch_norm=True), nnx.Param, ...)
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


@pytest.mark.parametrize("kind", KINDS)
def test_rematerialisation_changes_nothing_but_memory(kind):
    assert_same(train_pass(kind, remat=True), train_pass(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.devices
def test_training_does_not_depend_on_the_devices(kind):
    # Batch norm and dropout are those of the global batch.
    sharded = train_pass(kind, devices=4)
    assert any("fsdp" in spec for spec in sharded[3])
    assert_same(sharded, train_pass(kind))


@pytest.mark.parametrize("remat", [False, True])
def test_rematerialisation_is_on_where_asked_for(remat):
    graphdef, state = nnx.split(small(remat=remat))
    jaxpr = jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state)(x))(nnx.as_pure(state), images())
    checkpoints = sum(eqn.primitive.name.startswith(("remat", "checkpoint")) for eqn in jaxpr.eqns)
    assert checkpoints == (5 if remat else 0)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (VGGFeaturesConfig, {"widths": (64, 128)}, "widths=(64, 128) is not five positive numbers"),
        (VGGFeaturesConfig, {"depths": (2, 2, 3, 3, 0)}, "depths=(2, 2, 3, 3, 0) is not five positive numbers"),
        (VGGConfig, {"hidden": 0}, "hidden=0 is not a positive number"),
        (VGGConfig, {"dropout": 1.0}, "dropout=1.0 is not in [0, 1)"),
        (VGGInceptionConfig, {"dropout": -0.1}, "dropout=-0.1 is not in [0, 1)"),
        (VGGInceptionConfig, {"inceptions": ()}, "inceptions=() is not a tuple of blocks of six positive numbers each"),
        (VGGInceptionConfig, {"inceptions": ((1, 2, 3),)}, "inceptions=((1, 2, 3),) is not a tuple of blocks of six"),
        (VGGInceptionConfig, {"inceptions": ((1, 2, 3, 4, 5, 0),)}, "is not a tuple of blocks of six positive numbers"),
    ],
)
def test_mistakes_are_named(make, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**options)
