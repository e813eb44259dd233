"""Schedules at hand-picked steps, groups of parameters, and equality with optax's and PyTorch's optimizers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from histojax import models
from histojax.models.cost import parameter_shapes
from histojax.training.optimizer import OptimizerSpec, begins_with, decayed, in_head, learning_rate, make_optimizer


def spec(**fields):
    return OptimizerSpec(**({"name": "adamw", "learning_rate": 0.1, "total_steps": 20} | fields))


def tree(seed=0):
    rng = np.random.default_rng(seed)

    def layer():
        return {
            "kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=2), jnp.float32),
        }

    # An integer key, as nnx.List gives them.
    return {"layer1": {0: layer()}, "head": layer()}


def run(optimizer, params, steps, gradients=None):
    """Return the parameters after each step."""
    state, history = optimizer.init(params), []
    for i in range(steps):
        updates, state = optimizer.update(tree(100 + i) if gradients is None else gradients, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **({"rtol": 1e-6, "atol": 1e-7} | tolerance)), a, b)


# ---- Schedule -----------------------------------------------------------------------------------------------------

# Warm-up of 4 steps: 0.025, 0.05, 0.075, 0.1; then half a cosine over the remaining 16, so half of 0.1 at 4 + 8.
COSINE = {
    0: 0.025,
    1: 0.05,
    3: 0.1,
    4: 0.1,
    8: 0.1 * (1 + np.cos(np.pi / 4)) / 2,
    12: 0.05,
    19: 0.1 * (1 + np.cos(np.pi * 15 / 16)) / 2,
    20: 0.0,
    25: 0.0,
}
SCHEDULES = {
    "cosine": (spec(warmup_steps=4), COSINE),
    "cosine, no warm-up": (spec(), {0: 0.1, 10: 0.05, 20: 0.0}),
    "constant": (spec(schedule="constant", warmup_steps=4), {0: 0.025, 2: 0.075, 3: 0.1, 4: 0.1, 19: 0.1, 99: 0.1}),
    "constant, no warm-up": (spec(schedule="constant"), {0: 0.1, 19: 0.1}),
    "warm-up of one step": (spec(warmup_steps=1), {0: 0.1, 1: 0.1, 20: 0.0}),
    # Shortened to the run's length, so that the last step has the full rate.
    "warm-up longer than the run": (spec(warmup_steps=50), {0: 0.005, 9: 0.05, 19: 0.1}),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedule_has_hand_computed_values(name):
    fields, expected = SCHEDULES[name]
    schedule = learning_rate(fields)
    for step, value in expected.items():
        np.testing.assert_allclose(schedule(step), value, rtol=1e-5, atol=1e-8, err_msg=f"step {step}")


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_the_schedule_is_optax_s(warmup):
    ramp = optax.linear_schedule(0.1 / max(warmup, 1), 0.1, max(warmup - 1, 1))
    expected = optax.join_schedules([ramp, optax.cosine_decay_schedule(0.1, 50 - warmup)], [warmup])
    schedule = learning_rate(spec(total_steps=50, warmup_steps=warmup))
    rates = [[float(each(step)) for step in range(55)] for each in (schedule, expected)]
    np.testing.assert_allclose(*rates, rtol=1e-5, atol=1e-8)


def test_the_schedule_reaches_the_updates():
    # Without momentum, sgd's update of a gradient of 1 is the learning rate itself.
    optimizer = make_optimizer(spec(name="sgd", momentum=0.0, warmup_steps=4))
    params = {"kernel": jnp.zeros((1, 1))}
    values = [float(p["kernel"][0, 0]) for p in run(optimizer, params, 13, {"kernel": jnp.ones((1, 1))})]
    steps = -np.diff([0.0, *values])
    np.testing.assert_allclose(steps[[0, 1, 3, 4, 8, 12]], [COSINE[i] for i in (0, 1, 3, 4, 8, 12)], rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adam"}, r"optimizer\.name='adam' is neither 'adamw' nor 'sgd'"),
        ({"schedule": "step"}, r"optimizer\.schedule='step' is neither 'cosine' nor 'constant'"),
    ],
)
def test_unknown_names_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(spec(**fields))


# ---- Groups -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_shrinks_kernels_only(name):
    params = tree()
    optimizer = make_optimizer(spec(name=name, schedule="constant", weight_decay=0.5))
    zero = jax.tree.map(jnp.zeros_like, params)
    (after,) = run(optimizer, params, 1, zero)
    for path in (("layer1", 0), ("head",)):
        before, now = params, after
        for key in path:
            before, now = before[key], now[key]
        np.testing.assert_allclose(now["kernel"], before["kernel"] * (1 - 0.1 * 0.5), rtol=1e-6)
        np.testing.assert_array_equal(now["bias"], before["bias"])


def test_convolutions_are_decayed_and_norms_and_positions_are_not():
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 2, 4))},
        "bn": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
        "attn": {"relative_position_bias_table": jnp.ones((9, 2))},
    }
    assert decayed(params, models.spec("swin_tiny_patch4_window7_224").without_weight_decay) == {
        "conv": {"kernel": True},
        "bn": {"scale": False, "bias": False},
        "attn": {"relative_position_bias_table": False},
    }


def test_the_head_is_recognised_by_path_components():
    leaf = jnp.zeros(1)
    params = {
        "head": {"dense1": {"bias": leaf}},
        "headless": {"bias": leaf},
        "ahead": leaf,
        "layer4": {0: {"attention": {"kernel": leaf}, "conv1": leaf, "attention_free": leaf}},
        "attention": leaf,
        "stages": {0: {"ldc": {"kernel": leaf}, "blocks": leaf}},
        "fr": leaf,
        "resnet": {0: leaf},
    }
    assert in_head(params, ("head", "attention", "ldc", "fr", "resnet")) == {
        "head": {"dense1": {"bias": True}},
        "headless": {"bias": False},
        "ahead": False,
        "layer4": {0: {"attention": {"kernel": True}, "conv1": False, "attention_free": False}},
        "attention": True,
        "stages": {0: {"ldc": {"kernel": True}, "blocks": False}},
        "fr": True,
        "resnet": {0: True},
    }


# The groups of all models before the specifications listed them; existing checkpoints depend on them.
HEAD = re.compile(r"(^|/)(head|attention|ldc|fr|resnet)(/|$)")
NOT_DECAYED = re.compile(r"position|registers")


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in models.names()), ("dala_resnet50", {"attention": "layer4_blocks", "head": "linear"}),
     ("ldcsf", {"ldc": "blocks", "fr": False}), ("vit", {"layer_scale": 0.1})],
)  # fmt: skip
def test_the_groups_of_each_model_match_earlier_checkpoints(name, options):
    spec = models.spec(name)
    shapes = parameter_shapes(name, 3, {**spec.small, **options})
    params = {path: jax.ShapeDtypeStruct(shape, dtype) for path, (shape, dtype) in shapes.items()}
    head, decays = in_head(params, spec.head_parts), decayed(params, spec.without_weight_decay)
    assert head == {path: bool(HEAD.search(path)) for path in params}
    assert decays == {path: len(p.shape) > 1 and not NOT_DECAYED.search(path) for path, p in params.items()}
    assert any(head.values())
    assert not all(head.values())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_head_multiplier_scales_the_heads_updates_and_their_decay(name):
    params = tree()
    fields = {"name": name, "schedule": "constant", "weight_decay": 0.2}
    (plain,) = run(make_optimizer(spec(**fields)), params, 1)
    (scaled,) = run(make_optimizer(spec(**fields, head_multiplier=10.0)), params, 1)
    assert_close(scaled["layer1"], plain["layer1"])
    moved = jax.tree.map(jnp.subtract, plain["head"], params["head"])
    assert_close(scaled["head"], jax.tree.map(lambda p, m: p + 10 * m, params["head"], moved), rtol=1e-5, atol=1e-6)


def test_moments_of_a_frozen_backbone_are_still_updated():
    params = tree()
    fields = {"schedule": "constant", "weight_decay": 0.2}
    frozen = run(make_optimizer(spec(**fields, freeze_backbone_steps=3)), params, 4)
    free = run(make_optimizer(spec(**fields)), params, 4)
    for after in frozen[:3]:
        jax.tree.map(np.testing.assert_array_equal, after["layer1"], params["layer1"])
    for after, other in zip(frozen, free, strict=True):
        assert_close(after["head"], other["head"])
    # Adam's moments were kept up to date, so the first step equals the free backbone's fourth, except for the decay,
    # which depends on the weights. Biases have none.
    got = frozen[3]["layer1"][0]["bias"] - params["layer1"][0]["bias"]
    assert np.abs(got).min() > 1e-4
    assert_close(got, free[3]["layer1"][0]["bias"] - free[2]["layer1"][0]["bias"], rtol=1e-4, atol=1e-6)


def test_freezing_and_the_multiplier_work_together():
    params = tree()
    fields = {"name": "sgd", "schedule": "constant"}
    both = run(make_optimizer(spec(**fields, head_multiplier=2.0, freeze_backbone_steps=1)), params, 2)
    only = run(make_optimizer(spec(**fields, head_multiplier=2.0)), params, 2)
    jax.tree.map(np.testing.assert_array_equal, both[0]["layer1"], params["layer1"])
    assert_close(both[1]["head"], only[1]["head"])
    assert np.abs(both[1]["layer1"][0]["kernel"] - params["layer1"][0]["kernel"]).min() > 0


def test_frozen_arrays_are_neither_updated_nor_decayed():
    params = tree()
    fields = {"schedule": "constant", "weight_decay": 0.2}
    frozen = run(make_optimizer(spec(**fields, frozen=("layer1/0/kernel",))), params, 2)
    free = run(make_optimizer(spec(**fields)), params, 2)
    for after, other in zip(frozen, free, strict=True):
        np.testing.assert_array_equal(after["layer1"][0]["kernel"], params["layer1"][0]["kernel"])
        assert_close(after["layer1"][0]["bias"], other["layer1"][0]["bias"])
        assert_close(after["head"], other["head"])


@pytest.mark.parametrize(
    ("beginnings", "inside"),
    [(["layer1"], True), (["layer1/0"], True), (["layer"], False), (["layer1/00"], False), (["0"], False)],
)
def test_a_path_begins_with_whole_components(beginnings, inside):
    found = begins_with(tree(), beginnings)
    assert found["layer1"][0] == {"kernel": inside, "bias": inside}
    assert found["head"] == {"kernel": False, "bias": False}


# ---- Clipping and equality with others ------------------------------------------------------------------------------


def test_clipping_limits_the_global_norm():
    params = {"a": jnp.zeros((1, 1)), "b": jnp.zeros((1, 1))}
    # The norm is 5; clipped to 1, the parts are 3/5 and 4/5.
    large = {"a": jnp.full((1, 1), 3.0), "b": jnp.full((1, 1), 4.0)}
    fields = {"name": "sgd", "momentum": 0.0, "learning_rate": 1.0, "schedule": "constant"}
    (clipped,) = run(make_optimizer(spec(**fields, clip_norm=1.0)), params, 1, large)
    assert_close(clipped, {"a": jnp.full((1, 1), -0.6), "b": jnp.full((1, 1), -0.8)})
    (off,) = run(make_optimizer(spec(**fields)), params, 1, large)
    assert_close(off, {"a": jnp.full((1, 1), -3.0), "b": jnp.full((1, 1), -4.0)})
    small = jax.tree.map(lambda g: g / 100, large)
    (untouched,) = run(make_optimizer(spec(**fields, clip_norm=1.0)), params, 1, small)
    assert_close(untouched, jax.tree.map(jnp.negative, small))


def test_adamw_equals_optax():
    fields = {"warmup_steps": 3, "weight_decay": 0.05, "beta1": 0.8, "beta2": 0.95}
    ours = run(make_optimizer(spec(**fields)), tree(), 6)
    theirs = optax.adamw(learning_rate(spec(**fields)), b1=0.8, b2=0.95, weight_decay=0.05, mask=decayed)
    for a, b in zip(ours, run(theirs, tree(), 6), strict=True):
        assert_close(a, b)


def assert_follows(ours, theirs, params):
    """Compare the parameters after each update; the gradients are those of `run`."""
    for i, after in enumerate(ours):
        for p, gradient in zip(params, jax.tree.leaves(tree(100 + i)), strict=True):
            p.grad = torch.tensor(np.asarray(gradient))
        theirs.step()
        for mine, p in zip(jax.tree.leaves(after), params, strict=True):
            np.testing.assert_allclose(mine, p.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_adamw_equals_pytorch():
    # With the usual β₂ = 0.999, 1 - β₂ in float32 is off by 6e-5; β₂ = 0.9 keeps the bound tight.
    params = [torch.nn.Parameter(torch.tensor(np.asarray(p))) for p in jax.tree.leaves(tree())]
    theirs = torch.optim.AdamW(params, lr=0.1, betas=(0.9, 0.9), eps=1e-8, weight_decay=0.0)
    assert_follows(run(make_optimizer(spec(schedule="constant", beta2=0.9)), tree(), 5), theirs, params)


def test_sgd_equals_pytorch():
    params = [torch.nn.Parameter(torch.tensor(np.asarray(p))) for p in jax.tree.leaves(tree())]
    theirs = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    assert_follows(run(make_optimizer(spec(name="sgd", schedule="constant", momentum=0.9)), tree(), 5), theirs, params)
