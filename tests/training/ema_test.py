"""The exponential moving average by its formula, as functions and in the training step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from histojax.training.ema import decay_at, update_average
from histojax.training.state import ModelState
from tests.helpers.step_models import (
    Dropped,
    Normed,
    assert_close,
    assert_equal,
    cached_program,
    make_batch,
    to_host,
    train,
)


def test_the_decay_warms_up_to_its_limit():
    decays = [float(decay_at(jnp.int32(step), 0.99)) for step in (0, 1, 2, 889, 890, 10_000)]
    assert decays == pytest.approx([2 / 11, 3 / 12, 4 / 13, 891 / 900, 0.99, 0.99])
    assert float(decay_at(jnp.int32(0), 0.1)) == pytest.approx(0.1)


def test_one_update_by_hand():
    def model(value: float, seed: int) -> ModelState:
        return ModelState(
            {"w": jnp.full((2,), value)}, {"m": jnp.full((3,), 10 * value)}, {"key": jax.random.key(seed)}
        )

    average = update_average(model(1.0, seed=0), model(2.0, seed=1), jnp.int32(0), 0.9)
    # The first decay is 2/11: 1 · 2/11 + 2 · 9/11 = 20/11.
    np.testing.assert_allclose(average.params["w"], [20 / 11] * 2, rtol=1e-6)
    np.testing.assert_allclose(average.stats["m"], [200 / 11] * 3, rtol=1e-6)
    assert_equal(average.rng["key"], jax.random.key(1))  # random streams are not averaged


@pytest.mark.parametrize("decay", [0.9, 0.2])
def test_the_training_step_updates_the_average_by_the_formula(decay, single):
    program = cached_program(Dropped, layout=single, ema_decay=decay)
    state = program.init()
    assert_equal(state.ema, state.model)  # it starts as a copy
    average = to_host(state.ema.params)
    for t in (1, 2, 3):
        state, _ = program.train(state, single.to_device(make_batch(t)))
        d = min(decay, (1 + t) / (10 + t))  # 2/11, 3/12, 4/13
        average = jax.tree.map(lambda old, new, d=d: old * d + new * (1 - d), average, to_host(state.model.params))
        assert_close(state.ema.params, average)
    assert np.abs(average["head"]["kernel"] - to_host(state.model.params)["head"]["kernel"]).max() > 1e-4
    assert_equal(state.ema.rng, state.model.rng)


def test_batch_statistics_are_averaged_and_training_itself_does_not_change(normed, single):
    program = cached_program(Normed, layout=single, ema_decay=0.9)
    start = to_host(program.init().ema.stats)
    state, _ = train(program, single, [make_batch()])
    d = 2 / 11
    expected = jax.tree.map(lambda old, new: old * d + new * (1 - d), start, to_host(state.model.stats))
    assert_close(state.ema.stats, expected)
    plain, _ = train(normed, single, [make_batch()])
    assert plain.ema is None
    assert_close(plain.model.params, state.model.params)
    evaluated = [
        program.evaluate(model, single.to_device(make_batch(1)))["probabilities"] for model in (state.model, state.ema)
    ]
    assert np.abs(evaluated[0] - evaluated[1]).max() > 1e-5
