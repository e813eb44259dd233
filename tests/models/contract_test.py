"""The contract of every model, for any architecture; each registered model is tested automatically."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from histojax import models
from histojax.models.rngs import seeded
from tests.helpers.modules import ALSO_IN, call, checkpoints, evaluation, filled, flat, images

K, B, RATE = 3, 4, 0.3
every_model = pytest.mark.parametrize("name", models.names())
DISTINCT = [name for name in models.names() if name not in ALSO_IN]
distinct_model = pytest.mark.parametrize("name", DISTINCT)
with_drops = pytest.mark.parametrize("name", [name for name in models.names() if models.spec(name).drop_options])


def build(name, *, rate=0.0, dtype=jnp.float32, remat=False, **options):
    """The small model of a specification, with every drop rate set to `rate`."""
    spec = models.spec(name)
    options = {**spec.small, **dict.fromkeys(spec.drop_options, rate), **options}
    return models.create(name, num_classes=K, rngs=seeded(default=0), dtype=dtype, remat=remat, **options)


@functools.cache
def small(name, *, seed=0, **kwargs):
    """The small model with random values: one that starts at zero would hide its layers."""
    return filled(lambda: build(name, **kwargs), seed)


@functools.cache
def parts(name, dtype=jnp.float32):
    """Names of the feature maps, the maps, the features, and the logits, computed together in evaluation mode."""
    names = []

    def compute(model, x):
        maps, features = model.feature_maps(x), model.features(x)
        names.extend(maps)
        return maps, features, model.classify(features), model(x)

    maps, features, classified, logits = call(evaluation(small(name, dtype=dtype)), images(B), compute)
    return names, maps, features, classified, logits


@every_model
def test_logits_equal_the_classified_features(name):
    _, _, _, classified, logits = parts(name)
    assert (logits.shape, logits.dtype) == ((B, K), jnp.float32)
    np.testing.assert_allclose(logits, classified, rtol=1e-5, atol=1e-6)
    assert np.isfinite(logits).all()
    assert np.ptp(np.asarray(logits), axis=0).max() > 0  # they depend on the image


@every_model
def test_feature_maps_are_named_and_never_grow(name):
    names, maps, *_ = parts(name)
    heights = [maps[key].shape[1] for key in names]
    assert heights == sorted(heights, reverse=True)
    assert all(maps[key].shape[0] == B and maps[key].ndim == 4 for key in names)
    assert models.spec(name).default_layer(names) in names


@pytest.mark.parametrize("name", [name for name in models.names() if name not in ("ldcsf",) and "vit" not in name])
def test_features_are_the_last_feature_map(name):
    # A ViT's features include the class token and the last norm; LDCSF's precede its last modules.
    names, maps, features, *_ = parts(name)
    np.testing.assert_array_equal(maps[names[-1]], features)


@distinct_model
def test_bfloat16_keeps_parameters_and_logits_in_float32(name):
    model = small(name, dtype=jnp.bfloat16)
    assert {v.dtype for v in flat(nnx.state(model, (nnx.Param, nnx.BatchStat))).values()} == {jnp.dtype("float32")}
    _, maps, _, _, narrow = parts(name, jnp.bfloat16)
    assert {leaf.dtype for leaf in maps.values()} == {jnp.dtype("bfloat16")}
    wide = parts(name)[-1]
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, atol=0.03 * float(jnp.abs(wide).max()))
    assert not np.array_equal(narrow, wide)


@every_model
def test_float64_is_used_throughout(name):
    with jax.enable_x64(True):
        model = evaluation(nnx.eval_shape(lambda: build(name, dtype=jnp.float64)))
        graphdef, values, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
        values = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float64), nnx.as_pure(values))

        def forward(values, rest, x):
            return nnx.merge(graphdef, values, rest)(x)

        # At 64 pixels, models with windows pad and shift.
        jaxpr = jax.make_jaxpr(forward)(values, nnx.as_pure(rest), images(1, 64, 64, dtype=np.float64))
        assert jaxpr.out_avals[0].dtype == jnp.float64
        assert not re.findall(r"f32\[\d[^\]]*\]", str(jaxpr.jaxpr))


@functools.cache
def train_pass(name, *, remat=False):
    """Return the loss, gradients and new state of one pass in training mode, with all drops."""
    model = nnx.view(
        small(name, remat=remat, rate=RATE), use_running_average=False, deterministic=False, raise_if_not_found=False
    )
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss_fn(params, rest, x):
        merged = nnx.merge(graphdef, params, rest)
        loss = -jnp.mean(jax.nn.log_softmax(merged(x))[:, 1])
        return loss, nnx.as_pure(nnx.state(merged, (nnx.BatchStat, nnx.RngCount)))

    step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, state), grads = step(nnx.as_pure(params), nnx.as_pure(rest), images(B))
    return loss, flat(grads), flat(state)


@pytest.mark.slow
@distinct_model
def test_gradients_are_finite_and_reach_the_head_and_the_backbone(name):
    _, grads, _ = train_pass(name)
    assert all(np.isfinite(grad).all() and grad.dtype == jnp.float32 for grad in grads.values())
    assert max(np.abs(grad).max() for grad in grads.values()) > 1e-2
    head = {path: grad for path, grad in grads.items() if path.startswith(models.spec(name).classifier)}
    assert any(np.linalg.norm(grad) > 0 for grad in head.values())
    outside = {path for path, grad in grads.items() if path not in head and np.linalg.norm(grad) > 0}
    assert len(outside) > len(grads) / 3


@pytest.mark.slow
@distinct_model
def test_rematerialisation_changes_no_values(name):
    loss, grads, state = train_pass(name)
    loss_remat, grads_remat, state_remat = train_pass(name, remat=True)
    # Without batch statistics, rounding is the only difference.
    loss_rtol, rtol, atol = (1e-6, 1e-4, 1e-6) if name.startswith("swin") else (1e-5, 1e-3, 2e-5)
    np.testing.assert_allclose(loss_remat, loss, rtol=loss_rtol)
    assert state_remat.keys() == state.keys()
    for path, value in (grads | state).items():
        np.testing.assert_allclose((grads_remat | state_remat)[path], value, rtol=rtol, atol=atol, err_msg=path)


# Number of blocks, units or modules that are rematerialised separately in each small model.
REMATERIALISED = {
    "resnet50": 5, "dala_resnet50": 5, "seresnet50": 5, "densenet121": 6,
    "vgg16": 5, "vgg16_bn": 5, "vgg16_inception": 5,
    "vit_base_patch16_224": 2, "dinov2_vitb14": 2, "vit_small_patch14_dinov2": 2, "vit": 2,
    "swin_tiny_patch4_window7_224": 5,
    "ldcsf": 5 + 3 + 1,  # blocks, LDCs, bottlenecks
}  # fmt: skip


@every_model
def test_rematerialisation_is_on_only_if_requested(name):
    assert checkpoints(small(name), images(B)) == 0
    assert checkpoints(small(name, remat=True), images(B)) == REMATERIALISED[name]


@pytest.mark.parametrize("name", [name for name in DISTINCT if models.spec(name).drop_options])
def test_drops_are_random_in_training_and_off_in_evaluation(name):
    one, other = (nnx.view(small(name, rate=0.5, seed=seed), deterministic=False) for seed in (1, 2))
    assert not np.array_equal(call(one, images(B)), call(other, images(B)))
    still = call(evaluation(one), images(B))
    np.testing.assert_array_equal(still, call(evaluation(other), images(B)))
    np.testing.assert_array_equal(still, call(evaluation(small(name)), images(B)))


@with_drops
def test_drop_rates_are_those_of_the_config(name):
    spec = models.spec(name)

    def rates(**options):
        model = nnx.eval_shape(
            lambda: models.create(name, num_classes=K, rngs=seeded(default=0), **spec.small | options)
        )
        return [module.rate for _, module in nnx.iter_modules(model) if isinstance(module, nnx.Dropout)]

    for option in spec.drop_options:
        default = getattr(spec.config, option)
        assert max(rates(**dict.fromkeys(spec.drop_options, 0.0) | {option: default})) == pytest.approx(default)
        assert max(rates(**dict.fromkeys(spec.drop_options, 0.0) | {option: 0.15})) == pytest.approx(0.15)


@every_model
def test_a_misspelt_option_is_named_with_a_hint(name):
    spec = models.spec(name)
    option = spec.options[0]
    misspelt = option[:-1] + option[-1] * 2
    message = f"unknown option {misspelt!r} of {name} (did you mean {option!r}?); options: {option}"
    with pytest.raises(ValueError, match=re.escape(message)):
        models.create(name, num_classes=K, rngs=seeded(default=0), **{misspelt: 1})


@every_model
def test_options_are_fields_of_a_frozen_config_and_survive_json(name):
    spec = models.spec(name)
    assert dataclasses.is_dataclass(spec.config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(spec.config, spec.options[0], None)
    assert spec.configure({}) == spec.config
    as_json = {key: list(value) if isinstance(value, tuple) else value for key, value in spec.small.items()}
    assert spec.configure(as_json) == spec.configure(spec.small)
    with pytest.raises(ValueError, match="num_classes=0 is not a positive number"):
        models.create(name, num_classes=0, rngs=seeded(default=0))


# These models run at any size; only `check_image_size` refuses small images.
RUN_AT_ANY_SIZE = ("resnet50", "dala_resnet50", "seresnet50", "densenet121")


@every_model
def test_invalid_image_sizes_are_refused_before_and_during_a_call(name):
    spec = models.spec(name)
    models.check_image_size(name, 32, spec.small)
    models.check_image_size(name, spec.config.image_size if "image_size" in spec.options else 224)
    with pytest.raises(ValueError, match=r"image height and width must be .*, not 20"):
        models.check_image_size(name, 20, spec.small)
    model = nnx.eval_shape(lambda: build(name))
    for h, w in ((20, 64), (64, 20)):
        x = jax.ShapeDtypeStruct((1, h, w, 3), jnp.float32)
        if name in RUN_AT_ANY_SIZE:
            assert nnx.eval_shape(lambda m, x: m(x), model, x).shape == (1, K)
        else:
            with pytest.raises(ValueError, match=rf"image height and width must be .*, not (20|{h}×{w})"):
                nnx.eval_shape(lambda m, x: m(x), model, x)


@every_model
def test_graphdefs_are_hashable_and_depend_on_the_mode(name):
    model = nnx.eval_shape(lambda: build(name))
    # Swin has no batch statistics, and nnx.view raises for a keyword that no module takes.
    training, evaluating = (
        nnx.view(model, use_running_average=on, deterministic=on, raise_if_not_found=False) for on in (False, True)
    )
    assert hash(nnx.graphdef(training)) == hash(nnx.graphdef(model))
    assert nnx.graphdef(training) != nnx.graphdef(evaluating)


def test_a_misspelt_model_is_named_with_a_hint():
    message = "'dala_resnet5' (did you mean 'dala_resnet50'?); models: resnet50, dala_resnet50"
    for look_up in (models.spec, lambda name: models.create(name, num_classes=K, rngs=seeded(default=0))):
        with pytest.raises(ValueError, match=re.escape(message)):
            look_up("dala_resnet5")
