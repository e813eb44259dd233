"""Batch normalisation per device: the statistics of each device's images, and its random numbers."""

import jax
import numpy as np
import pytest

from histojax.training.program import StepSpec
from tests.helpers.step_models import (
    MEAN,
    STD,
    B,
    Dropped,
    Normed,
    assert_close,
    assert_equal,
    cached_program,
    devices,
    make_batch,
    rows_of,
    to_host,
    train,
)


@pytest.mark.devices
@pytest.mark.parametrize(("fsdp", "accumulate"), [(1, 1), (2, 1), (1, 2)])
def test_each_device_normalises_with_the_statistics_of_its_images(fsdp, accumulate, single):
    layout, batch = devices(2, fsdp), make_batch(0)
    program = cached_program(Normed, layout=layout, batch_norm="device", accumulate=accumulate)
    after, (metrics,) = train(program, layout, [batch])
    # The same groups of images as micro-batches on a single device give the same step. A micro-batch has every n-th
    # image, a device a contiguous block, so the images are reordered:
    parts = 2 * accumulate
    groups = np.arange(B).reshape(2, -1, accumulate).transpose(0, 2, 1).reshape(parts, -1)
    order = np.argsort(np.concatenate([np.arange(i, B, parts) for i in range(parts)]))
    reordered = rows_of(batch, groups.ravel()[order])
    expected, (desired,) = train(cached_program(Normed, layout=single, accumulate=parts), single, [reordered])
    assert metrics == pytest.approx(desired, rel=1e-5)
    assert_close(after.model.params, expected.model.params)
    # The running statistics differ: micro-batches move them one after another, devices in parallel.
    if accumulate == 1:
        states = [train(cached_program(Normed, layout=single), single, [rows_of(batch, rows)])[0] for rows in groups]
        means = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *(to_host(s.model.stats) for s in states))
        assert_close(after.model.stats, means)
    _, (of_global_batch,) = train(cached_program(Normed, layout=layout, accumulate=accumulate), layout, [batch])
    assert abs(metrics["loss"] - of_global_batch["loss"]) > 1e-4


@pytest.mark.devices
def test_devices_draw_their_own_dropout_but_their_random_streams_stay_the_same(single):
    layout = devices(2)
    program = cached_program(Dropped, layout=layout, batch_norm="device")
    half = rows_of(make_batch(0), slice(4))
    state, (metrics,) = train(program, layout, [{key: np.concatenate([value] * 2) for key, value in half.items()}])
    on_one, (metrics_of_one,) = train(cached_program(Dropped, layout=single), single, [half])
    assert metrics["loss"] != pytest.approx(metrics_of_one["loss"], rel=1e-3)  # else both devices drew the same
    assert_equal(state.model.rng, on_one.model.rng)


def test_an_unknown_batch_norm_is_refused():
    with pytest.raises(ValueError, match="batch_norm='local' is not one of global, device"):
        StepSpec(MEAN, STD, batch_norm="local")
