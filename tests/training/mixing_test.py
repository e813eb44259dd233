"""Mixup and cutmix by their formulas, as functions and in the training step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from histojax.training import mixing
from tests.helpers.step_models import MEAN, SIZE, STD, TASK, B, K, cached_program, make_batch, to_host

METHODS = {
    "mixup": {"mixup": 0.8, "cutmix": 0.0},
    "cutmix": {"mixup": 0.0, "cutmix": 1.0},
    "both": {"mixup": 0.8, "cutmix": 1.0},
}
STEPS = 200


@functools.cache
def compiled_mix(method):
    def mix_steps(key, images, targets, steps):
        def mix_step(step):
            return mixing.mix(images, targets, jax.random.fold_in(key, step), **METHODS[method])

        return jax.vmap(mix_step)(steps)

    return jax.jit(mix_steps)


def mix(method, images, targets, seed=0):
    """Images and targets as 200 training steps would mix them; seed 0 is a program's default."""
    key = jax.random.key(seed + 2)
    return [np.asarray(a) for a in compiled_mix(method)(key, images, targets.astype(np.float32), np.arange(STEPS))]


def colours():
    """Images of one value each, so that a pixel identifies its image; and one-hot targets."""
    values = np.arange(B, dtype=np.float32)
    return np.broadcast_to(values[:, None, None, None], (B, SIZE, SIZE, 3)), np.eye(B, dtype=np.float32)


@pytest.mark.parametrize("method", METHODS)
def test_targets_stay_distributions(method):
    _, targets = mix(method, colours()[0], np.random.default_rng(0).dirichlet(np.ones(B), B))
    assert (targets >= 0).all()
    np.testing.assert_allclose(targets.sum(-1), np.ones((STEPS, B)), rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_identical_images_do_not_change(method):
    image = np.random.default_rng(0).normal(size=(1, SIZE, SIZE, 3)).astype(np.float32).repeat(B, 0)
    target = np.random.default_rng(0).dirichlet(np.ones(B), 1).repeat(B, 0)
    images, targets = mix(method, image, target)
    np.testing.assert_allclose(images, image[None].repeat(STEPS, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(targets, target[None].repeat(STEPS, 0), rtol=1e-5)


def test_mixup_mixes_pixels_and_targets_with_the_same_weight():
    images, targets = mix("mixup", *colours())
    for i in range(B):
        own = targets[:, i, i]
        np.testing.assert_allclose(targets[:, i, B - 1 - i], 1 - own, rtol=1e-4, atol=1e-6)
        expected = own * i + (1 - own) * (B - 1 - i)
        np.testing.assert_allclose(
            images[:, i], np.broadcast_to(expected[:, None, None, None], images[:, i].shape), rtol=1e-4, atol=1e-5
        )
    # Beta(0.8, 0.8): mean 1/2, variance 1/(4·2.6).
    assert abs(targets[:, 0, 0].mean() - 0.5) < 0.1
    assert abs(targets[:, 0, 0].var() - 0.096) < 0.025


def test_cutmix_pastes_a_box_whose_fraction_of_the_pixels_is_the_weight_of_the_targets():
    images, targets = mix("cutmix", *colours())
    own = images == np.arange(B).reshape(1, B, 1, 1, 1)
    partner = images == np.arange(B)[::-1].reshape(1, B, 1, 1, 1)
    assert (own | partner).all()  # nothing is blended
    fraction = own.mean((2, 3, 4))
    np.testing.assert_allclose(fraction, np.diagonal(targets, axis1=1, axis2=2), rtol=1e-5, atol=1e-6)
    for box in partner[:, 0, :, :, 0]:
        # A full rectangle: every pixel where a row that it touches meets a column that it touches.
        np.testing.assert_array_equal(box, box.any(1)[:, None] & box.any(0)[None, :])
        for line in (box.any(1), box.any(0)):
            assert np.abs(np.diff(line.astype(int), prepend=0, append=0)).sum() in (0, 2)
    assert fraction.min() < 0.3
    assert fraction.max() > 0.95
    assert len(np.unique(fraction[:, 0])) > 20


def test_with_both_each_batch_gets_one_of_them():
    images, targets = mix("both", *colours())
    blended = (images != np.rint(images)).any((1, 2, 3, 4))
    assert 60 < blended.sum() < 140
    assert np.isin(images[~blended], np.arange(B)).all()
    own = (images == np.arange(B).reshape(1, B, 1, 1, 1)).mean((2, 3, 4))
    diagonal = np.diagonal(targets, axis1=1, axis2=2)
    np.testing.assert_allclose(own[~blended], diagonal[~blended], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        images[blended][:, 0, 0, 0, 0], (B - 1) * (1 - diagonal[blended][:, 0]), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("method", METHODS)
def test_mixing_is_a_function_of_seed_and_step(method):
    images, targets = mix(method, *colours())
    again, _ = mix(method, *colours())
    np.testing.assert_array_equal(images, again)
    assert len({t.tobytes() for t in targets}) > 10
    other, _ = mix(method, *colours(), seed=1)
    assert (other != images).any()


def test_without_mixing_nothing_is_drawn():
    images, targets = (jnp.asarray(a) for a in colours())
    key = jax.random.key(0)
    mixed = mixing.mix(images, targets, key, mixup=0.0, cutmix=0.0)
    assert mixed[0] is images
    assert mixed[1] is targets
    assert not jax.make_jaxpr(lambda *args: mixing.mix(*args, mixup=0.0, cutmix=0.0))(images, targets, key).eqns


@pytest.mark.parametrize("method", ["mixup", "cutmix"])
def test_the_training_step_mixes_by_seed_and_step(method, single):
    program, data = cached_program(layout=single, **METHODS[method]), make_batch()
    head = to_host(program.init().model.params)["head"]
    images, weights = mix(method, ((data["image"] / 255 - MEAN) / STD).astype(np.float32), np.eye(B))
    targets = weights @ (np.eye(K)[data["label"]] * 0.9 + 0.1 / 3)
    class_weights = np.array(TASK.class_weights)
    for step in range(2):
        z = images[step].reshape(B, -1) @ head["kernel"] + head["bias"]
        log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
        expected = -(targets[step] * class_weights * log_p).sum() / (targets[step] * class_weights).sum()
        # The same parameters at every step, so that only the mixing differs.
        state = dataclasses.replace(program.init(), step=jnp.int32(step))
        _, metrics = program.train(state, single.to_device(data))
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
