"""One training step, pinned; on any devices the same; mixing, averaging and accumulating by their formulas."""

import dataclasses
import functools
import threading
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from histojax.distributed.sharding import Layout
from histojax.models.ops.layers import Conv, Linear, global_avg_pool
from histojax.models.ops.norms import BatchNorm
from histojax.models.resnet import ResNet, ResNetConfig
from histojax.training.optimizer import OptimizerSpec, make_optimizer
from histojax.training.step import Program, StepSpec
from histojax.training.tasks import Multiclass, Multilabel

SIZE, B, K = 8, 8, 3
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
TINY = ResNetConfig(stage_sizes=(1, 1, 1, 1), width=4)
TASK = Multiclass(("a", "b", "c"), (1.0, 0.5, 1.5), label_smoothing=0.1)
SGD = OptimizerSpec("sgd", 0.05, 100, schedule="constant")


class Flat(nnx.Module):
    """Logits linear in the pixels: no batch statistics, so images do not see each other."""

    def __init__(self, rngs: nnx.Rngs):
        self.head = Linear(SIZE * SIZE * 3, K, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(x.reshape(x.shape[0], -1))


class Dropped(nnx.Module):
    """As `Flat`, behind dropout."""

    def __init__(self, rngs: nnx.Rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = Linear(SIZE * SIZE * 3, K, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.dropout(x.reshape(x.shape[0], -1)))


class Normed(nnx.Module):
    """Convolution, BatchNorm, pooling: compiles in a second, where the smallest ResNet takes ten."""

    def __init__(self, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32):
        self.conv = Conv(3, 8, (3, 3), padding=((1, 1), (1, 1)), dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(8, dtype=dtype, rngs=rngs)
        self.head = Linear(8, K, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(global_avg_pool(jax.nn.relu(self.bn(self.conv(x)))))


def resnet(rngs: nnx.Rngs) -> ResNet:
    return ResNet(TINY, num_classes=K, rngs=rngs)


def narrow(rngs: nnx.Rngs) -> Normed:
    return Normed(rngs, dtype=jnp.bfloat16)


@functools.cache
def single() -> Layout:
    return Layout(1, jax.devices()[:1])


@functools.cache  # most of the time here goes into compiling
def program(make_model=Flat, *, task=TASK, optimizer=SGD, layout=None, **fields) -> Program:
    spec = StepSpec(MEAN, STD, **fields)
    return Program(make_model, task, make_optimizer(optimizer), spec, layout or single())


def batch(seed=0, n=B, size=SIZE):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
        "label": rng.integers(0, K, n).astype(np.int32),
        "mask": np.ones(n, bool),
    }


def train(made, layout, batches):
    """The state after these batches, and each step's metrics."""
    state, seen = made.init(), []
    for one in batches:
        state, metrics = made.train(state, layout.to_device(one))
        seen.append({key: float(value) for key, value in metrics.items()})
    return state, seen


def host(tree):
    """Copies of the arrays, random keys as integers."""

    def fetch(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.array(leaf)

    return jax.tree.map(fetch, tree)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, host(a), host(b))


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **({"rtol": 1e-5, "atol": 1e-6} | tolerance)), a, b)


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly() -> Iterator[None]:
    """Half of the time here would go into optimizing programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def one() -> Layout:
    """A single device."""
    return single()


@pytest.fixture(scope="module")
def net(one) -> Program:
    """A net with batch statistics."""
    return program(Normed, layout=one)


# ---- One step, in numbers ------------------------------------------------------------------------------------------


def test_a_step_of_a_linear_model_by_hand(one):
    made = program(layout=one)
    state, data = made.init(), batch()
    head = host(state.model.params)["head"]
    after, metrics = made.train(state, one.to_device(data))

    x = ((data["image"] / 255 - MEAN) / STD).reshape(B, -1)
    logits = x @ head["kernel"] + head["bias"]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    targets = np.eye(K)[data["label"]] * 0.9 + 0.1 / 3
    weighted = targets * TASK.class_weights
    # d/dz_j of -Σ_k w_k t_k log p_k is p_j Σ_k w_k t_k - w_j t_j
    slope = (p * weighted.sum(-1, keepdims=True) - weighted) / weighted.sum()
    kernel, bias = x.T @ slope, slope.sum(0)
    np.testing.assert_allclose(metrics["loss"], -(weighted * np.log(p)).sum() / weighted.sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(-1) == data["label"]).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt((kernel**2).sum() + (bias**2).sum()), rtol=1e-5)
    now = host(after.model.params)["head"]
    np.testing.assert_allclose(now["kernel"], head["kernel"] - 0.05 * kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(now["bias"], head["bias"] - 0.05 * bias, rtol=1e-5, atol=1e-6)
    assert int(after.step) == 1


# What two steps of the tiny ResNet gave on one CPU device with jax 0.10.2 and flax 0.12.8 when this test was written,
# the same with and without the compiler's optimizations. Nothing but "as before" speaks for them: a change that moves
# them changes training, and must be meant.
PINNED = [
    {"loss": 1.095062, "accuracy": 0.375, "grad_norm": 6.151962},
    {"loss": 0.934438, "accuracy": 0.5, "grad_norm": 5.287454},
]


def test_steps_are_pinned(one):
    _, seen = train(program(resnet, layout=one), one, [batch(seed, size=32) for seed in range(2)])
    for got, expected in zip(seen, PINNED, strict=True):
        assert got == pytest.approx(expected, rel=1e-4)


def test_init_is_a_function_of_the_seed(one):
    def state(seed):
        return host(program.__wrapped__(Dropped, layout=one, seed=seed).init())

    a, again, b = state(0), state(0), state(1)
    assert_equal(a, again)
    assert (a.model.params["head"]["kernel"] != b.model.params["head"]["kernel"]).all()
    assert (a.key != b.key).any()
    assert (a.model.rng["dropout"]["rngs"]["key"] != b.model.rng["dropout"]["rngs"]["key"]).any()


# ---- Devices -------------------------------------------------------------------------------------------------------


@pytest.mark.devices
def test_loss_and_parameters_do_not_depend_on_the_devices(net, one):
    batches = [batch(0), batch(1)]
    expected, expected_metrics = train(net, one, batches)
    for fsdp, devices in ((1, 2), (1, 4), (2, 4)):
        layout = Layout(fsdp, jax.devices()[:devices])
        state, metrics = train(program(Normed, layout=layout), layout, batches)
        for got, wanted in zip(metrics, expected_metrics, strict=True):
            assert got == pytest.approx(wanted, rel=2e-5, abs=1e-6), (fsdp, devices)
        # Batch statistics, too: they are those of the global batch, not of a device's share.
        assert_close(host(state.model.params), host(expected.model.params), rtol=1e-4, atol=1e-5)
        assert_close(host(state.model.stats), host(expected.model.stats), rtol=1e-4, atol=1e-5)
        # The state stays where it was born; left to itself, the compiler moves parameters about.
        places = jax.tree.map(lambda leaf, wanted: leaf.sharding == wanted.sharding, state, layout_state(layout, state))
        assert all(jax.tree.leaves(places))
        specs = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(state)}
        assert any("fsdp" in spec for spec in specs) == (fsdp == 2)


def layout_state(layout, state):
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        layout.state(state),
    )


@pytest.mark.devices
def test_evaluation_does_not_depend_on_the_devices():
    data, found = batch(3), []
    data["mask"][5:] = False
    for fsdp, devices in ((1, 1), (1, 4), (2, 2)):
        layout = Layout(fsdp, jax.devices()[:devices])
        made = program(layout=layout)
        found.append(host(made.evaluate(made.init().model, layout.to_device(data))))
    for other in found[1:]:
        assert_close(other, found[0])


# ---- Compilation and donation --------------------------------------------------------------------------------------


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Names of programs compiled from here on."""
    events: list[str] = []

    def listen(name: str, _: float, **facts: object) -> None:
        if "backend_compile" in name:
            events.append(str(facts.get("fun_name", name)))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_step_is_compiled_exactly_once(compilations, one):
    made = program.__wrapped__(Normed, layout=one, ema_decay=0.9)
    state = made.init()
    batches = [one.to_device(batch(seed)) for seed in range(4)]
    compilations.clear()
    state, metrics = made.train(state, batches[0])
    assert len(compilations) == 1
    for data in batches[1:]:
        state, metrics = made.train(state, data)
    jax.block_until_ready(metrics)
    assert len(compilations) == 1
    for data in batches:
        outputs = made.evaluate(state.model, data)
    jax.block_until_ready(outputs)
    assert len(compilations) == 2


@pytest.mark.parametrize("task", [TASK, Multilabel(("a", "b", "c"), (1.0, 1.0, 1.0))], ids=["class", "labels"])
def test_what_is_compiled_ahead_is_what_runs(compilations, one, task):
    made = program.__wrapped__(Normed, layout=one, ema_decay=0.9, task=task)
    made.compile_ahead(B, SIZE)
    state, given = made.init(), batch()
    if task is not TASK:
        given["labels"] = np.eye(K, dtype=np.float32)[given.pop("label")]
    given = one.to_device(given)
    assert {key: (a.shape, a.dtype) for key, a in given.items()} == {
        key: (a.shape, a.dtype) for key, a in made.batch(B, SIZE).items()
    }
    for thread in threading.enumerate():
        if thread.name == "compile-ahead":
            thread.join()
    compilations.clear()
    made.train(state, given)
    assert not compilations


def test_what_fails_to_compile_ahead_fails_when_it_is_called(one):
    made = program.__wrapped__(Flat, layout=one)  # for images of SIZE only
    made.compile_ahead(B, 2 * SIZE)
    state = made.init()
    with pytest.raises(TypeError, match="reshape"):
        made.train(state, one.to_device(batch(size=2 * SIZE)))
    made.train(state, one.to_device(batch()))


@pytest.mark.parametrize(("make_model", "ema_decay"), [(Normed, 0.0), (Dropped, 0.9)])
def test_the_old_state_is_consumed(make_model, ema_decay, one):
    made = program(make_model, layout=one, ema_decay=ema_decay)
    state = made.init()
    # No two leaves share a buffer: donating one twice is an error.
    for seed in range(3):
        before = state
        state, _ = made.train(state, one.to_device(batch(seed)))
        kept = [
            jax.tree_util.keystr(path)
            for path, leaf in jax.tree_util.tree_leaves_with_path(before)
            if not leaf.is_deleted()
        ]
        # The average's random streams are replaced without being read, so they are no input of the program.
        assert [path for path in kept if not path.startswith(".ema.rng")] == []
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


# ---- Accumulation --------------------------------------------------------------------------------------------------


@pytest.mark.devices
@pytest.mark.parametrize(("n", "devices"), [(2, 1), (4, 1), (2, 4)])
def test_micro_batches_sum_to_the_batch_where_images_do_not_see_each_other(n, devices, one):
    batches = [batch(0, n=16), batch(1, n=16)]
    batches[0]["mask"][[1, 6, 8]] = False  # micro-batches of unequal weight
    expected, metrics = train(program(layout=one), one, batches)
    layout = Layout(1, jax.devices()[:devices])
    state, got = train(program(layout=layout, accumulate=n), layout, batches)
    for mine, wanted in zip(got, metrics, strict=True):
        assert mine == pytest.approx(wanted, rel=1e-5)
    assert_close(host(state.model.params), host(expected.model.params))


def test_batch_norm_sees_one_micro_batch_at_a_time(net, one):
    # A batch whose micro-batches (every second image) are the same four images twice has one batch's statistics.
    data = {key: np.repeat(value, 2, axis=0) for key, value in batch(n=4).items()}
    expected, metrics = train(net, one, [data])
    made = program(Normed, layout=one, accumulate=2)
    state, got = train(made, one, [data])
    assert got[0] == pytest.approx(metrics[0], rel=1e-4)
    assert_close(host(state.model.params), host(expected.model.params), rtol=1e-4, atol=1e-5)
    # The running statistics moved twice, by a tenth of the way each: 0.19 instead of 0.1.
    fresh, once, twice = (host(s.model.stats) for s in (net.init(), expected, state))
    jax.tree.map(
        lambda f, o, t: np.testing.assert_allclose(t - f, (o - f) * 1.9, rtol=1e-3, atol=1e-5), fresh, once, twice
    )
    # And of others it has others.
    _, whole = train(net, one, [batch()])
    _, parts = train(made, one, [batch()])
    assert abs(whole[0]["loss"] - parts[0]["loss"]) > 1e-3


# ---- Moving average ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.9, 0.2])
def test_the_moving_average_follows_its_formula(decay, one):
    made = program(Dropped, layout=one, ema_decay=decay)
    state = made.init()
    assert_equal(state.ema, state.model)  # it starts as a copy
    average = host(state.ema.params)
    for t in (1, 2, 3):
        state, _ = made.train(state, one.to_device(batch(t)))
        d = min(decay, (1 + t) / (10 + t))  # 2/11, 3/12, 4/13
        average = jax.tree.map(lambda old, new, d=d: old * d + new * (1 - d), average, host(state.model.params))
        assert_close(host(state.ema.params), average)
    assert np.abs(average["head"]["kernel"] - host(state.model.params)["head"]["kernel"]).max() > 1e-4
    # Random streams are not averaged.
    assert_equal(state.ema.rng, state.model.rng)


def test_the_moving_average_of_statistics_and_without_it_none(net, one):
    made = program(Normed, layout=one, ema_decay=0.9)
    start = host(made.init().ema.stats)
    state, _ = train(made, one, [batch()])
    d = 2 / 11
    expected = jax.tree.map(lambda old, new: old * d + new * (1 - d), start, host(state.model.stats))
    assert_close(host(state.ema.stats), expected)
    plain, _ = train(net, one, [batch()])
    assert plain.ema is None
    assert_close(host(plain.model.params), host(state.model.params))  # it only watches
    evaluated = [made.evaluate(m, one.to_device(batch(1)))["probabilities"] for m in (state.model, state.ema)]
    assert np.abs(evaluated[0] - evaluated[1]).max() > 1e-5


# ---- Mixing --------------------------------------------------------------------------------------------------------

MIXES = {"mixup": {"mixup": 0.8}, "cutmix": {"cutmix": 1.0}, "both": {"mixup": 0.8, "cutmix": 1.0}}


@functools.cache
def mixer(name):
    made = program(**MIXES[name])

    def steps(key, images, targets, steps):
        return jax.vmap(lambda step: made._mix(images, targets, jax.random.fold_in(key, step)))(steps)

    return jax.jit(steps)


def mix(name, images, targets, seed=0):
    """Images and targets as 200 steps would mix them; seed 0 is that of a program."""
    key = jax.random.key(seed + 2)
    return [np.asarray(a) for a in mixer(name)(key, images, targets.astype(np.float32), np.arange(200))]


def colours():
    """Images of one value each, so that a pixel tells which image it is of; and their targets."""
    values = np.arange(B, dtype=np.float32)
    return np.broadcast_to(values[:, None, None, None], (B, SIZE, SIZE, 3)), np.eye(B, dtype=np.float32)


@pytest.mark.parametrize("name", MIXES)
def test_targets_stay_distributions(name):
    _, targets = mix(name, colours()[0], np.random.default_rng(0).dirichlet(np.ones(B), B))
    assert (targets >= 0).all()
    np.testing.assert_allclose(targets.sum(-1), np.ones((200, B)), rtol=1e-5)


@pytest.mark.parametrize("name", MIXES)
def test_identical_images_do_not_change(name):
    image = np.random.default_rng(0).normal(size=(1, SIZE, SIZE, 3)).astype(np.float32).repeat(B, 0)
    target = np.random.default_rng(0).dirichlet(np.ones(B), 1).repeat(B, 0)
    images, targets = mix(name, image, target)
    np.testing.assert_allclose(images, image[None].repeat(200, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(targets, target[None].repeat(200, 0), rtol=1e-5)


def test_mixup_mixes_pixels_as_it_mixes_targets():
    images, targets = mix("mixup", *colours())
    for i in range(B):
        share = targets[:, i, i]
        np.testing.assert_allclose(targets[:, i, B - 1 - i], 1 - share, rtol=1e-4, atol=1e-6)
        expected = share * i + (1 - share) * (B - 1 - i)
        np.testing.assert_allclose(
            images[:, i], np.broadcast_to(expected[:, None, None, None], images[:, i].shape), rtol=1e-4, atol=1e-5
        )
    # Beta(0.8, 0.8): mean 1/2, variance 1/(4·2.6).
    assert abs(targets[:, 0, 0].mean() - 0.5) < 0.1
    assert abs(targets[:, 0, 0].var() - 0.096) < 0.025


def test_cutmix_pastes_a_box_and_its_share_of_pixels_is_the_targets_share():
    images, targets = mix("cutmix", *colours())
    own = images == np.arange(B).reshape(1, B, 1, 1, 1)
    partner = images == np.arange(B)[::-1].reshape(1, B, 1, 1, 1)
    assert (own | partner).all()  # nothing is blended
    share = own.mean((2, 3, 4))
    np.testing.assert_allclose(share, np.diagonal(targets, axis1=1, axis2=2), rtol=1e-5, atol=1e-6)
    for box in partner[:, 0, :, :, 0]:
        # A full rectangle: the rows and the columns that it touches, and all that they have in common.
        np.testing.assert_array_equal(box, box.any(1)[:, None] & box.any(0)[None, :])
        for line in (box.any(1), box.any(0)):
            assert np.abs(np.diff(line.astype(int), prepend=0, append=0)).sum() in (0, 2)
    assert share.min() < 0.3
    assert share.max() > 0.95
    assert len(np.unique(share[:, 0])) > 20


def test_with_both_each_batch_has_one_of_them():
    images, targets = mix("both", *colours())
    blended = (images != np.rint(images)).any((1, 2, 3, 4))
    assert 60 < blended.sum() < 140
    pure = np.isin(images[~blended], np.arange(B))
    assert pure.all()
    own = (images == np.arange(B).reshape(1, B, 1, 1, 1)).mean((2, 3, 4))
    diagonal = np.diagonal(targets, axis1=1, axis2=2)
    np.testing.assert_allclose(own[~blended], diagonal[~blended], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        images[blended][:, 0, 0, 0, 0], (B - 1) * (1 - diagonal[blended][:, 0]), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("name", MIXES)
def test_mixing_is_a_function_of_seed_and_step(name):
    images, targets = mix(name, *colours())
    again, _ = mix(name, *colours())
    np.testing.assert_array_equal(images, again)
    assert len({t.tobytes() for t in targets}) > 10
    other, _ = mix(name, *colours(), seed=1)
    assert (other != images).any()


def test_without_mixing_nothing_is_drawn():
    images, targets = colours()
    made = program()
    assert made._mix(images, targets, None) == (images, targets)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_the_training_step_mixes_by_seed_and_step(name, one):
    made, data = program(layout=one, **MIXES[name]), batch()
    state = made.init()
    head = host(state.model.params)["head"]
    images, shares = mix(name, ((data["image"] / 255 - MEAN) / STD).astype(np.float32), np.eye(B))
    targets = shares @ (np.eye(K)[data["label"]] * 0.9 + 0.1 / 3)
    weights = np.array(TASK.class_weights)
    for step in range(2):
        z = images[step].reshape(B, -1) @ head["kernel"] + head["bias"]
        log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
        expected = -(targets[step] * weights * log_p).sum() / (targets[step] * weights).sum()
        # The same parameters at every step, so that only the mixing differs.
        state, metrics = made.train(dataclasses.replace(made.init(), step=jnp.int32(step)), one.to_device(data))
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)


# ---- Masks ---------------------------------------------------------------------------------------------------------


def test_padding_counts_nowhere_in_evaluation(net, one):
    model = net.init().model
    data = batch(2)
    data["mask"][[2, 3, 7]] = False
    masked = host(net.evaluate(model, one.to_device(data)))
    other = {key: value.copy() for key, value in data.items()}
    other["image"][[2, 3, 7]] = 255
    other["label"][[2, 3, 7]] = 0
    again = host(net.evaluate(model, one.to_device(other)))
    # Without batch statistics, the subset is what the mask leaves.
    subset = host(net.evaluate(model, one.to_device({key: value[data["mask"]] for key, value in data.items()})))
    for key in ("loss_sum", "loss_weight", "confusion"):
        np.testing.assert_array_equal(masked[key], again[key])
        np.testing.assert_allclose(masked[key], subset[key], rtol=1e-5)
    assert masked["confusion"].sum() == 5
    np.testing.assert_allclose(masked["probabilities"][data["mask"]], subset["probabilities"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(masked["probabilities"].sum(-1), np.ones(B), rtol=1e-5)


def test_padding_counts_nowhere_in_training(one):
    data = batch(2)
    data["mask"][[2, 3, 7]] = False
    state, (masked,) = train(program(layout=one), one, [data])
    expected, (subset,) = train(program(layout=one), one, [{key: value[data["mask"]] for key, value in data.items()}])
    assert masked == pytest.approx(subset, rel=1e-5)
    assert_close(host(state.model.params), host(expected.model.params))


# ---- Modes ---------------------------------------------------------------------------------------------------------


def test_evaluation_uses_running_statistics_and_changes_nothing(net, one):
    state, _ = train(net, one, [batch(0)])
    before = host(state.model)
    whole = host(net.evaluate(state.model, one.to_device(batch(1))))
    assert_equal(state.model, before)
    # Running statistics: an image's probabilities do not depend on its neighbours.
    half = {key: value[:4] for key, value in batch(1).items()}
    np.testing.assert_allclose(
        net.evaluate(state.model, one.to_device(half))["probabilities"],
        whole["probabilities"][:4],
        rtol=1e-5,
        atol=1e-6,
    )


def test_training_moves_the_statistics_towards_those_of_the_batch(net, one):
    fresh = host(net.init().model.stats)
    state, _ = train(net, one, [batch(0)])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), fresh, host(state.model.stats))
    assert min(jax.tree.leaves(moved)) > 0


def test_dropout_is_active_in_training_only(one):
    made = program(Dropped, layout=one, optimizer=dataclasses.replace(SGD, learning_rate=0.0))
    state, seen = train(made, one, [batch(0)] * 3)
    # Parameters stand still, so only another draw of what is dropped changes the loss.
    assert len({metrics["loss"] for metrics in seen}) == 3
    evaluated = [made.evaluate(state.model, one.to_device(batch(0))) for _ in range(2)]
    assert_equal(evaluated[0], evaluated[1])
    # And evaluation is that of the model without dropout.
    plain = program(layout=one)
    flat = dataclasses.replace(plain.init().model, params=state.model.params)
    np.testing.assert_array_equal(
        plain.evaluate(flat, one.to_device(batch(0)))["probabilities"], evaluated[0]["probabilities"]
    )


def test_dropout_is_a_function_of_the_seed(one):
    def losses(seed):
        return [m["loss"] for m in train(program(Dropped, layout=one, seed=seed), one, [batch(0), batch(1)])[1]]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_a_bfloat16_model_trains_and_keeps_float32_parameters(one):
    made = program(
        narrow,
        layout=one,
        optimizer=dataclasses.replace(SGD, name="adamw", learning_rate=1e-3),
    )
    state, seen = train(made, one, [batch(0), batch(1)])
    assert all(np.isfinite(list(metrics.values())).all() for metrics in seen)
    # The first loss is the float32 net's, as far as eight bits go, and not to the last digit.
    wide = train(program(Normed, layout=one), one, [batch(0)])[1][0]["loss"]
    assert seen[0]["loss"] == pytest.approx(wide, rel=0.02)
    assert seen[0]["loss"] != wide
    assert {leaf.dtype for leaf in jax.tree.leaves((state.model.params, state.model.stats))} == {jnp.dtype("float32")}
    assert made.evaluate(state.model, one.to_device(batch(0)))["probabilities"].dtype == jnp.float32


# ---- Statistics of each device ---------------------------------------------------------------------------------------


@pytest.mark.devices
@pytest.mark.parametrize(("fsdp", "accumulate"), [(1, 1), (2, 1), (1, 2)])
def test_batch_norm_of_each_device_is_that_of_its_share(fsdp, accumulate, one):
    layout = Layout(fsdp, jax.devices()[:2])
    made = batch(0)
    after, (metrics,) = train(
        program(Normed, layout=layout, batch_norm="device", accumulate=accumulate), layout, [made]
    )
    # The same images as micro-batches see each other as little. Micro-batch i has every n-th image, a device a block:
    parts = 2 * accumulate
    blocks = np.arange(B).reshape(2, -1, accumulate).transpose(0, 2, 1).reshape(parts, -1)
    order = np.argsort(np.concatenate([np.arange(i, B, parts) for i in range(parts)]))
    shuffled = {key: value[blocks.ravel()][order] for key, value in made.items()}
    expected, (wanted,) = train(program(Normed, layout=one, accumulate=parts), one, [shuffled])
    assert metrics == pytest.approx(wanted, rel=1e-5)
    for got, value in zip(
        jax.tree.leaves(host(after.model.params)), jax.tree.leaves(host(expected.model.params)), strict=True
    ):
        np.testing.assert_allclose(got, value, rtol=1e-5, atol=1e-6)
    # Not the running ones: micro-batches move them one after another, devices side by side.
    if accumulate == 1:
        shares = [
            train(program(Normed, layout=one), one, [{k: v[rows] for k, v in made.items()}])[0] for rows in blocks
        ]
        means = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *(host(share.model.stats) for share in shares))
        for got, value in zip(jax.tree.leaves(host(after.model.stats)), jax.tree.leaves(means), strict=True):
            np.testing.assert_allclose(got, value, rtol=1e-5, atol=1e-6)
    _, (other,) = train(program(Normed, layout=layout, accumulate=accumulate), layout, [made])
    assert abs(metrics["loss"] - other["loss"]) > 1e-4  # it does make a difference


@pytest.mark.devices
def test_devices_draw_their_own_dropout_and_go_on_together():
    layout = Layout(1, jax.devices()[:2])
    made = program(Dropped, layout=layout, batch_norm="device")
    same = {key: np.concatenate([value[:4]] * 2) for key, value in batch(0).items()}
    state, (metrics,) = train(made, layout, [same])
    alone, (single_metrics,) = train(program(Dropped, layout=single()), single(), [{k: v[:4] for k, v in same.items()}])
    assert metrics["loss"] != pytest.approx(single_metrics["loss"], rel=1e-3)  # else both devices drew the same
    for got, value in zip(jax.tree.leaves(host(state.model.rng)), jax.tree.leaves(host(alone.model.rng)), strict=True):
        np.testing.assert_array_equal(got, value)


def test_an_unknown_batch_norm_is_refused():
    with pytest.raises(ValueError, match="batch_norm='local' is not one of global, device"):
        StepSpec(MEAN, STD, batch_norm="local")
