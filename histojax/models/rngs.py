"""Random keys of models: those of `nnx.Rngs`, without what flax's cost where a program is traced."""

import jax
from flax import nnx


class Stream(nnx.RngStream):
    """A stream with the keys of `nnx.RngStream`, which its own streams, such as those of dropouts, are, too.

    Flax counts by `count[...] += 1`, which compares the shardings of the old and the new value. Under tracing they
    have none, and jax says so in an error of many words, for which it searches all that was traced so far: three
    quarters of the time in which a ResNet50 or a Swin-T is built.
    """

    def __call__(self) -> jax.Array:
        """The next key."""
        key = jax.random.fold_in(self.key[...], self.count[...])
        self.count.set_value(self.count[...] + 1)
        return key


def seeded(**seeds: int) -> nnx.Rngs:
    """`nnx.Rngs` with a stream for each seed, by name: `seeded(params=0, dropout=1)`."""
    rngs = nnx.Rngs(**seeds)
    for name, seed in seeds.items():
        setattr(rngs, name, Stream(seed, tag=name))
    return rngs
