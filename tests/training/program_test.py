"""The program of a run: one step by hand and pinned, on any devices, its compilation, masks and modes."""

import dataclasses
import functools
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from histojax.core.errors import RunError
from histojax.models.resnet import ResNet, ResNetConfig
from histojax.training.optimizer import OptimizerSpec
from histojax.training.tasks import Multilabel
from tests.helpers.step_models import (
    MEAN,
    SGD,
    SIZE,
    STD,
    TASK,
    B,
    Dropped,
    Flat,
    K,
    Normed,
    assert_close,
    assert_equal,
    build_program,
    cached_program,
    devices,
    make_batch,
    rows_of,
    to_host,
    train,
)

TINY = ResNetConfig(stage_sizes=(1, 1, 1, 1), width=4)


def tiny_resnet(rngs: nnx.Rngs) -> ResNet:
    return ResNet(TINY, num_classes=K, rngs=rngs)


def test_a_step_of_a_linear_model_by_hand(single):
    program = cached_program(layout=single)
    state, data = program.init(), make_batch()
    head = to_host(state.model.params)["head"]
    after, metrics = program.train(state, single.to_device(data))

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
    now = to_host(after.model.params)["head"]
    np.testing.assert_allclose(now["kernel"], head["kernel"] - 0.05 * kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(now["bias"], head["bias"] - 0.05 * bias, rtol=1e-5, atol=1e-6)
    assert int(after.step) == 1


# Metrics of two steps of the tiny ResNet on one CPU device when this test was written (jax 0.10.2, flax 0.12.8).
# They are the same with and without the compiler's optimizations. No formula backs these numbers: they only show that
# training is as it was. A change that moves them changes training, and must be intended.
PINNED = [
    {"loss": 1.095062, "accuracy": 0.375, "grad_norm": 6.151962},
    {"loss": 0.934438, "accuracy": 0.5, "grad_norm": 5.287454},
]


def test_steps_are_pinned(single):
    batches = [make_batch(seed, size=32) for seed in range(2)]
    _, history = train(cached_program(tiny_resnet, layout=single), single, batches)
    for actual, desired in zip(history, PINNED, strict=True):
        assert actual == pytest.approx(desired, rel=1e-4)


def test_init_is_a_function_of_the_seed(single):
    def state(seed):
        return to_host(build_program(Dropped, layout=single, seed=seed).init())

    a, again, b = state(0), state(0), state(1)
    assert_equal(a, again)
    assert (a.model.params["head"]["kernel"] != b.model.params["head"]["kernel"]).all()
    assert (a.key != b.key).any()
    assert (a.model.rng["dropout"]["rngs"]["key"] != b.model.rng["dropout"]["rngs"]["key"]).any()


@pytest.mark.devices
def test_loss_and_parameters_do_not_depend_on_the_devices(normed, single):
    batches = [make_batch(0), make_batch(1)]
    expected, expected_metrics = train(normed, single, batches)
    for count, fsdp in ((2, 1), (4, 1), (4, 2)):
        layout = devices(count, fsdp)
        state, history = train(cached_program(Normed, layout=layout), layout, batches)
        for actual, desired in zip(history, expected_metrics, strict=True):
            assert actual == pytest.approx(desired, rel=2e-5, abs=1e-6), (count, fsdp)
        # Batch statistics included: they are those of the global batch, not of one device's images.
        assert_close(state.model.params, expected.model.params, rtol=1e-4, atol=1e-5)
        assert_close(state.model.stats, expected.model.stats, rtol=1e-4, atol=1e-5)
        # The state keeps its initial sharding; without `out_shardings`, the compiler would re-shard parameters.
        unchanged = jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, state, layout.state(state))
        assert all(jax.tree.leaves(unchanged))
        specs = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(state)}
        assert any("fsdp" in spec for spec in specs) == (fsdp == 2)


@pytest.mark.devices
def test_evaluation_does_not_depend_on_the_devices():
    data, outputs = make_batch(3), []
    data["mask"][5:] = False
    for count, fsdp in ((1, 1), (4, 1), (2, 2)):
        layout = devices(count, fsdp)
        program = cached_program(layout=layout)
        outputs.append(program.evaluate(program.init().model, layout.to_device(data)))
    for other in outputs[1:]:
        assert_close(other, outputs[0])


def test_a_step_is_compiled_exactly_once(compilations, single):
    program = build_program(Normed, layout=single, ema_decay=0.9)
    state = program.init()
    batches = [single.to_device(make_batch(seed)) for seed in range(4)]
    compilations.clear()
    state, metrics = program.train(state, batches[0])
    assert len(compilations) == 1
    for data in batches[1:]:
        state, metrics = program.train(state, data)
    jax.block_until_ready(metrics)
    assert len(compilations) == 1
    for data in batches:
        outputs = program.evaluate(state.model, data)
    jax.block_until_ready(outputs)
    assert len(compilations) == 2


@pytest.mark.parametrize("task", [TASK, Multilabel(("a", "b", "c"), (1.0, 1.0, 1.0))], ids=["class", "labels"])
def test_train_runs_the_program_that_was_compiled_ahead(compilations, single, task):
    program = build_program(Normed, layout=single, ema_decay=0.9, task=task)
    program.compile_ahead(B, SIZE)
    state, batch = program.init(), make_batch()
    if task is not TASK:
        batch["labels"] = np.eye(K, dtype=np.float32)[batch.pop("label")]
    arrays = single.to_device(batch)
    assert {key: (a.shape, a.dtype) for key, a in arrays.items()} == {
        key: (a.shape, a.dtype) for key, a in program.batch(B, SIZE).items()
    }
    for thread in threading.enumerate():
        if thread.name == "compile-ahead":
            thread.join()
    compilations.clear()
    program.train(state, arrays)
    assert not compilations


def test_a_compilation_that_fails_ahead_fails_again_in_train(single):
    program = build_program(Flat, layout=single)  # accepts images of SIZE only
    program.compile_ahead(B, 2 * SIZE)
    state = program.init()
    with pytest.raises(TypeError, match="reshape"):
        program.train(state, single.to_device(make_batch(size=2 * SIZE)))
    program.train(state, single.to_device(make_batch()))


@pytest.mark.parametrize(("make_model", "ema_decay"), [(Normed, 0.0), (Dropped, 0.9)])
def test_the_old_state_is_consumed(make_model, ema_decay, single):
    program = cached_program(make_model, layout=single, ema_decay=ema_decay)
    state = program.init()
    # No two leaves share a buffer: donating one twice is an error.
    for seed in range(3):
        before = state
        state, _ = program.train(state, single.to_device(make_batch(seed)))
        alive = [
            jax.tree_util.keystr(path)
            for path, leaf in jax.tree_util.tree_leaves_with_path(before)
            if not leaf.is_deleted()
        ]
        # The average's random streams are replaced without being read, so they are no input of the program.
        assert [path for path in alive if not path.startswith(".ema.rng")] == []
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_padding_does_not_affect_evaluation(normed, single):
    model = normed.init().model
    data = make_batch(2)
    data["mask"][[2, 3, 7]] = False
    masked = to_host(normed.evaluate(model, single.to_device(data)))
    other = {key: value.copy() for key, value in data.items()}
    other["image"][[2, 3, 7]] = 255
    other["label"][[2, 3, 7]] = 0
    again = to_host(normed.evaluate(model, single.to_device(other)))
    # With running statistics, masking images is the same as leaving them out.
    subset = to_host(normed.evaluate(model, single.to_device(rows_of(data, data["mask"]))))
    for key in ("loss_sum", "loss_weight", "confusion"):
        np.testing.assert_array_equal(masked[key], again[key])
        np.testing.assert_allclose(masked[key], subset[key], rtol=1e-5)
    assert masked["confusion"].sum() == 5
    np.testing.assert_allclose(masked["probabilities"][data["mask"]], subset["probabilities"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(masked["probabilities"].sum(-1), np.ones(B), rtol=1e-5)


def test_padding_does_not_affect_training(single):
    data, program = make_batch(2), cached_program(layout=single)
    data["mask"][[2, 3, 7]] = False
    state, (masked,) = train(program, single, [data])
    expected, (subset,) = train(program, single, [rows_of(data, data["mask"])])
    assert masked == pytest.approx(subset, rel=1e-5)
    assert_close(state.model.params, expected.model.params)


def test_evaluation_uses_running_statistics_and_changes_nothing(normed, single):
    state, _ = train(normed, single, [make_batch(0)])
    before = to_host(state.model)
    whole = normed.evaluate(state.model, single.to_device(make_batch(1)))
    assert_equal(state.model, before)
    # Running statistics: an image's probabilities do not depend on its neighbours.
    half = normed.evaluate(state.model, single.to_device(rows_of(make_batch(1), slice(4))))
    assert_close(half["probabilities"], whole["probabilities"][:4])


def test_training_moves_all_batch_statistics(normed, single):
    fresh = to_host(normed.init().model.stats)
    state, _ = train(normed, single, [make_batch(0)])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), fresh, to_host(state.model.stats))
    assert min(jax.tree.leaves(moved)) > 0


def test_dropout_is_active_in_training_only(single):
    program = cached_program(Dropped, layout=single, optimizer=dataclasses.replace(SGD, learning_rate=0.0))
    state, history = train(program, single, [make_batch(0)] * 3)
    # The parameters do not change, so only a new dropout mask changes the loss.
    assert len({metrics["loss"] for metrics in history}) == 3
    batch = single.to_device(make_batch(0))
    first, second = (program.evaluate(state.model, batch) for _ in range(2))
    assert_equal(first, second)
    # Evaluation gives what the model without dropout gives.
    plain = cached_program(layout=single)
    flat = dataclasses.replace(plain.init().model, params=state.model.params)
    assert_equal(plain.evaluate(flat, batch)["probabilities"], first["probabilities"])


def test_dropout_is_a_function_of_the_seed(single):
    def losses(seed):
        program = cached_program(Dropped, layout=single, seed=seed)
        return [metrics["loss"] for metrics in train(program, single, [make_batch(0), make_batch(1)])[1]]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_a_bfloat16_model_trains_and_keeps_float32_parameters(normed, single):
    adamw = dataclasses.replace(SGD, name="adamw", learning_rate=1e-3)
    program = cached_program(functools.partial(Normed, dtype=jnp.bfloat16), layout=single, optimizer=adamw)
    state, history = train(program, single, [make_batch(0), make_batch(1)])
    assert all(np.isfinite(list(metrics.values())).all() for metrics in history)
    # The first loss is that of the float32 model to within the eight bits of bfloat16, but not to the last digit.
    float32_loss = train(normed, single, [make_batch(0)])[1][0]["loss"]
    assert history[0]["loss"] == pytest.approx(float32_loss, rel=0.02)
    assert history[0]["loss"] != float32_loss
    assert {leaf.dtype for leaf in jax.tree.leaves((state.model.params, state.model.stats))} == {jnp.dtype("float32")}
    assert program.evaluate(state.model, single.to_device(make_batch(0)))["probabilities"].dtype == jnp.float32


# ---- Frozen parts --------------------------------------------------------------------------------------------------

FROZEN = ("conv", "bn")


def frozen_program(frozen=FROZEN, **fields):
    optimizer = OptimizerSpec("adamw", 0.05, 100, schedule="constant", weight_decay=0.5, frozen=frozen)
    return build_program(Normed, optimizer=optimizer, frozen=frozen, **fields)


def test_frozen_parts_keep_their_parameters_and_statistics(single):
    program = frozen_program(ema_decay=0.9)
    before = to_host(program.init())
    after, history = train(program, single, [make_batch(0), make_batch(1)])
    for name in FROZEN:
        assert_equal(after.model.params[name], before.model.params[name])
    assert_equal(after.model.stats, before.model.stats)
    assert np.all(to_host(after.model.params)["head"]["kernel"] != before.model.params["head"]["kernel"])
    # The frozen norm uses its running statistics, so the loss of the first step is that of evaluation.
    data = make_batch(0)
    logits = np.asarray(program.logits(before.model, jnp.asarray(data["image"])))
    targets = np.eye(K)[data["label"]] * 0.9 + 0.1 / K
    weighted = targets * TASK.class_weights
    expected = -(weighted * np.asarray(jax.nn.log_softmax(logits))).sum() / weighted.sum()
    assert history[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_runs_of_other_lengths_rates_weights_and_seeds_share_a_compilation(single):
    cosine = dataclasses.replace(SGD, schedule="cosine", freeze_backbone_steps=1)
    other = dataclasses.replace(cosine, learning_rate=0.5, total_steps=99, warmup_steps=7, freeze_backbone_steps=2)
    reweighted = dataclasses.replace(TASK, class_weights=(0.1, 0.2, 2.7))
    texts, losses = [], []
    for optimizer, task, seed in ((cosine, TASK, 0), (other, reweighted, 5)):
        program = build_program(Normed, optimizer=optimizer, task=task, layout=single, seed=seed)
        text = program.compiled_train(program.abstract, program.batch(B, SIZE)).as_text()
        # The operations, without the tables of where in the source they come from; the compilation cache ignores those.
        operations = [re.sub(r", metadata=\{[^}]*\}", "", line) for line in text.splitlines() if " = " in line]
        texts.append(operations)
        losses.append(train(program, single, [make_batch()])[1][0]["loss"])
    assert len(texts[0]) > 20
    assert texts[0] == texts[1]
    assert losses[0] != losses[1]


def test_nothing_is_computed_or_kept_for_the_update_of_frozen_parts(single):
    def cost(frozen):
        program = frozen_program(frozen)
        compiled = program.compiled_train(program.abstract, program.batch(B, SIZE))
        return compiled.cost_analysis()["flops"], len(jax.tree.leaves(program.abstract.opt))

    (flops, arrays), (all_flops, all_arrays) = cost(FROZEN), cost(())
    assert flops < 0.6 * all_flops  # two of the three products of the convolution are gone
    assert all_arrays - arrays == 2 * 3  # two moments each of the kernel, the scale and the bias


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (("bn", "con"), r"train\.frozen: 'con' is no part of the model \(did you mean 'conv'\?\)"),
        (("layer9",), r"train\.frozen: 'layer9' is no part of the model: its parts are bn, conv, head"),
        (("bn", "conv", "head"), r"leaves nothing to train"),
    ],
)
def test_frozen_parts_are_checked(frozen, message):
    with pytest.raises(RunError, match=message):
        frozen_program(frozen)
