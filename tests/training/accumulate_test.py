"""Gradient accumulation: the sums of micro-batches, and what BatchNorm sees of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from histojax.training.accumulate import StepSums, accumulate
from histojax.training.state import ModelState
from tests.helpers.step_models import Normed, assert_close, cached_program, devices, make_batch, to_host, train


def test_micro_batches_are_strided_and_run_one_after_another():
    def micro_step(model, values, mask):
        # The state becomes a number whose digits are the values of all micro-batches in their order.
        digits = model.stats["digits"]
        for value in values:
            digits = digits * 10 + value
        sums = StepSums({"w": values.sum() * model.params["w"]}, values.sum(), mask.sum(dtype=jnp.float32))
        return ModelState(model.params, {"digits": digits}, model.rng), sums

    model = ModelState({"w": jnp.float32(2)}, {"digits": jnp.float32(0)}, {})
    arrays = (jnp.arange(1.0, 7.0), jnp.array([True] * 5 + [False]))
    for count, digits in ((1, 123456), (2, 135246), (3, 142536)):
        after, sums = accumulate(micro_step, model, arrays, count)
        assert float(after.stats["digits"]) == digits
        assert [float(leaf) for leaf in jax.tree.leaves(sums)] == [42, 21, 5]


@pytest.mark.devices
@pytest.mark.parametrize(("count", "num_devices"), [(2, 1), (4, 1), (2, 4)])
def test_micro_batches_sum_to_the_batch_if_images_do_not_affect_each_other(count, num_devices, single):
    batches = [make_batch(0, n=16), make_batch(1, n=16)]
    batches[0]["mask"][[1, 6, 8]] = False  # micro-batches of unequal weight
    expected, expected_metrics = train(cached_program(layout=single), single, batches)
    layout = devices(num_devices)
    state, history = train(cached_program(layout=layout, accumulate=count), layout, batches)
    for actual, desired in zip(history, expected_metrics, strict=True):
        assert actual == pytest.approx(desired, rel=1e-5)
    assert_close(state.model.params, expected.model.params)


def test_batch_norm_sees_one_micro_batch_at_a_time(normed, single):
    # Here both micro-batches (every second image) hold the same four images, so they have the whole batch's statistics.
    data = {key: np.repeat(value, 2, axis=0) for key, value in make_batch(n=4).items()}
    expected, metrics = train(normed, single, [data])
    program = cached_program(Normed, layout=single, accumulate=2)
    state, history = train(program, single, [data])
    assert history[0] == pytest.approx(metrics[0], rel=1e-4)
    assert_close(state.model.params, expected.model.params, rtol=1e-4, atol=1e-5)
    # The running statistics moved twice, by a tenth of the way each: 0.19 instead of 0.1.
    fresh, once, twice = (to_host(s.model.stats) for s in (normed.init(), expected, state))
    jax.tree.map(
        lambda f, o, t: np.testing.assert_allclose(t - f, (o - f) * 1.9, rtol=1e-3, atol=1e-5), fresh, once, twice
    )
    # Micro-batches of different images have different statistics.
    _, whole = train(normed, single, [make_batch()])
    _, parts = train(program, single, [make_batch()])
    assert abs(whole[0]["loss"] - parts[0]["loss"]) > 1e-3
