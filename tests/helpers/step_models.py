"""Small models, batches and programs for tests of the training step."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from histojax.distributed.sharding import Layout
from histojax.models.ops.layers import Conv, Linear, global_avg_pool
from histojax.models.ops.norms import BatchNorm
from histojax.training.optimizer import OptimizerSpec
from histojax.training.program import MakeModel, Program, StepSpec
from histojax.training.state import TrainState
from histojax.training.tasks import Multiclass, Task
from tests.helpers.modules import drawn

SIZE, B, K = 8, 8, 3  # pixels per side, images per batch, classes
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
TASK = Multiclass(("a", "b", "c"), (1.0, 0.5, 1.5), label_smoothing=0.1)
SGD = OptimizerSpec("sgd", 0.05, 100, schedule="constant")


class Flat(nnx.Module):
    """Logits linear in the pixels: no batch statistics, so images do not affect each other."""

    def __init__(self, rngs: nnx.Rngs):
        self.head = Linear(SIZE * SIZE * 3, K, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(x.reshape(x.shape[0], -1))


class Dropped(nnx.Module):
    """`Flat` behind dropout."""

    def __init__(self, rngs: nnx.Rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = Linear(SIZE * SIZE * 3, K, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.dropout(x.reshape(x.shape[0], -1)))


class Normed(nnx.Module):
    """Convolution, BatchNorm and pooling: compiles in a second, where the smallest ResNet takes ten."""

    def __init__(self, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32):
        self.conv = Conv(3, 8, (3, 3), padding=((1, 1), (1, 1)), dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(8, dtype=dtype, rngs=rngs)
        self.head = Linear(8, K, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(global_avg_pool(jax.nn.relu(self.bn(self.conv(x)))))


@functools.cache
def devices(count: int, fsdp: int = 1) -> Layout:
    """The layout of the first devices."""
    return Layout(fsdp, jax.devices()[:count])


def build_program(
    make_model: MakeModel = Flat,
    *,
    task: Task = TASK,
    optimizer: OptimizerSpec = SGD,
    layout: Layout | None = None,
    **fields: Any,
) -> Program:
    """A new program, on a single device unless a layout is given; `fields` are those of `StepSpec`."""
    return Program(make_model, task, optimizer, StepSpec(MEAN, STD, **fields), layout or devices(1))


# Shared, because compilation takes most of the time of these tests.
cached_program = functools.cache(build_program)


def random_state(program: Program) -> TrainState:
    """A fresh state with random parameters and statistics, drawn by NumPy: `Program.init` takes seconds to compile."""
    abstract = program.abstract
    model = jax.tree_util.tree_map_with_path(drawn, abstract.model)
    opt = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract.opt)
    state = TrainState(np.zeros((), np.int32), model, opt, jax.random.key(0), None if abstract.ema is None else model)
    return jax.tree.map(lambda value, form: jax.device_put(value, form.sharding), state, abstract)


def make_batch(seed: int = 0, n: int = B, size: int = SIZE) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
        "label": rng.integers(0, K, n).astype(np.int32),
        "mask": np.ones(n, bool),
    }


def rows_of(batch: dict[str, np.ndarray], rows: slice | Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    return {key: value[rows] for key, value in batch.items()}


def train(
    program: Program, layout: Layout, batches: Iterable[dict[str, np.ndarray]]
) -> tuple[TrainState, list[dict[str, float]]]:
    """The state after these batches, and the metrics of each step."""
    state, history = program.init(), []
    for batch in batches:
        state, metrics = program.train(state, layout.to_device(batch))
        history.append({key: float(value) for key, value in metrics.items()})
    return state, history


def to_host(tree: Any) -> Any:
    """Copies of the arrays, random keys as integers."""

    def fetch(leaf: jax.Array) -> np.ndarray:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.array(leaf)

    return jax.tree.map(fetch, tree)


def assert_equal(actual: Any, desired: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, to_host(actual), to_host(desired))


def assert_close(actual: Any, desired: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), to_host(actual), to_host(desired))
