"""`seeded` draws the same keys as `nnx.Rngs`, for parameters and for drops."""

import jax
import numpy as np
from flax import nnx

from histojax import models
from histojax.models.rngs import Stream, seeded

QUICKLY = {"xla_backend_optimization_level": 0}
OPTIONS = {"embed_dim": 12, "depths": (2, 1), "heads": (1, 2), "window": 2, "stochastic_depth": 0.5}


def test_keys_equal_those_of_flax() -> None:
    ours, theirs = seeded(params=3, dropout=5), nnx.Rngs(params=3, dropout=5)
    for draw in (lambda r: r.params(), lambda r: r.dropout(), lambda r: r.params(), lambda r: r.dropout.fork()()):
        np.testing.assert_array_equal(jax.random.key_data(draw(ours)), jax.random.key_data(draw(theirs)))
    assert isinstance(ours.dropout.fork(), Stream)


def test_a_model_has_the_same_parameters_and_drops_as_with_flax() -> None:
    def drawn(rngs: nnx.Rngs) -> tuple[jax.Array, ...]:
        model = models.create("swin_tiny_patch4_window7_224", num_classes=2, rngs=rngs, **OPTIONS)
        images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
        return model(images), model(images)  # the second call drops other paths

    ours, theirs = (
        jax.jit(lambda make=make: drawn(make(params=0, dropout=1)), compiler_options=QUICKLY)()
        for make in (seeded, nnx.Rngs)
    )
    for found, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(ours[0] - ours[1])).max() > 1e-3
