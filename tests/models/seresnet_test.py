"""SE-ResNet and the stages of ResNets: squeezes, gates, types, rematerialisation, devices."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from histojax.distributed.sharding import Layout
from histojax.models.ops.layers import ChannelAttention
from histojax.models.resnet import ResNet, ResNetConfig
from histojax.models.seresnet import SEResNet, SEResNetConfig, seresnet50

K, B = 3, 8
ORDER = ["layer1", "layer2", "layer3", "layer4"]
TINY = ResNetConfig(stage_sizes=(1, 2, 1, 1), width=4, num_classes=K, zero_init_residual=False)


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    """Most of the time here would go into optimizing programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def small(**kwargs) -> SEResNet:
    return SEResNet(SEResNetConfig(TINY), rngs=nnx.Rngs(0), **kwargs)


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


@pytest.mark.parametrize(
    ("channels", "reduction", "wanted"),
    [(256, 16, 16), (512, 16, 32), (1024, 16, 64), (2048, 16, 128), (8, 16, 8), (200, 16, 16), (128, 4, 32)],
)
def test_the_squeeze_has_timms_width(channels, reduction, wanted):
    assert SEResNetConfig(reduction=reduction).hidden(channels) == wanted


def test_each_block_has_a_gate_that_starts_open():
    model = nnx.eval_shape(lambda: seresnet50(num_classes=K, rngs=nnx.Rngs(0), reduction=8))
    widths = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        assert all(isinstance(block.attention, ChannelAttention) for block in stage)
        widths += [block.attention.fc1.kernel.shape for block in stage]
    assert widths == [(256, 32)] * 3 + [(512, 64)] * 4 + [(1024, 128)] * 6 + [(2048, 256)] * 3
    block = small().layer2[0]
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 32)).astype(np.float32)
    np.testing.assert_allclose(block.attention.gate(x), 0.9526, atol=1e-4)
    assert block.attention.activation is jax.nn.relu


def test_without_gates_it_is_the_resnet_at_the_same_paths():
    plain, gated = (set(flat(nnx.state(m))) for m in (ResNet(TINY, rngs=nnx.Rngs(0)), small()))
    assert plain < gated
    assert all("/attention/fc" in name for name in gated - plain)


def test_attention_of_the_last_stage_goes_before_that_of_all():
    def make(width):
        return ChannelAttention(width, hidden=2, rngs=nnx.Rngs(0))

    model = ResNet(
        TINY, layer4_attention=lambda: ChannelAttention(128, 4, rngs=nnx.Rngs(0)), attention=make, rngs=nnx.Rngs(0)
    )
    assert [stage[0].attention.fc1.kernel.shape[1] for stage in (model.layer1, model.layer3, model.layer4)] == [
        2,
        2,
        32,
    ]


def test_stages_by_name_and_size():
    # Also of the ResNet without gates, whose method this is.
    for model in (small(), ResNet(TINY, rngs=nnx.Rngs(0))):
        wanted = {"layer1": (19, 25, 16), "layer2": (10, 13, 32), "layer3": (5, 7, 64), "layer4": (3, 4, 128)}
        assert shapes(model, 75, 97) == wanted


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
    graphdef, params, rest = nnx.split(small(remat=remat), nnx.Param, ...)
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
    assert checkpoints == (5 if remat else 0)


@pytest.mark.parametrize("reduction", [0, -2])
def test_mistakes_are_named(reduction):
    with pytest.raises(ValueError, match=re.escape(f"reduction={reduction} is not a positive number")):
        seresnet50(num_classes=K, rngs=nnx.Rngs(0), reduction=reduction)
