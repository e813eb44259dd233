"""The state of training, and its trees in a checkpoint."""

import dataclasses
import pathlib
from typing import Any

import jax
import optax
from flax import nnx

from histojax.training import checkpoint

# No catch-all: a Variable of another kind in a model raises instead of being lost.
_KINDS = (nnx.Param, nnx.BatchStat, nnx.RngState)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class ModelState:
    """A model as pure arrays: parameters, batch statistics, state of its random streams."""

    params: nnx.State
    stats: nnx.State
    rng: nnx.State

    def as_dict(self) -> dict[str, nnx.State]:
        """Return the parts by name, for a checkpoint."""
        return {"params": self.params, "stats": self.stats, "rng": self.rng}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Everything that a step changes; only pure arrays, so that dispatch is cheap.

    Attributes:
      step: updates done, `i32 []`.
      model: the model's state.
      opt: the optimizer's state.
      key: random key of mixup and cutmix; constant, folded with the step.
      ema: exponential moving averages of parameters and statistics; None without EMA.
    """

    step: jax.Array
    model: ModelState
    opt: optax.OptState
    key: jax.Array
    ema: ModelState | None


def split_module(module: nnx.Module) -> ModelState:
    """Return a module's Variables by kind, as pure arrays."""
    _, *parts = nnx.split(module, *_KINDS)
    return ModelState(*(nnx.as_pure(part) for part in parts))


def model_trees(state: TrainState) -> dict[str, Any]:
    """Return the trees that inference needs, by name: the model and, with EMA, its average."""
    trees = {"model": state.model.as_dict()}
    return trees if state.ema is None else trees | {"ema": state.ema.as_dict()}


def all_trees(state: TrainState) -> dict[str, Any]:
    """Return all trees of a checkpoint by name: the model, its average and the state of training."""
    return model_trees(state) | {"train": {"step": state.step, "opt": state.opt, "key": state.key}}


def restore(path: pathlib.Path, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Read the state of a checkpoint, and its metadata.

    Args:
      path: folder of the checkpoint.
      abstract: shapes, types, shardings and memory layouts, as `Program.abstract` has them.

    Raises:
      CheckpointError: the checkpoint is damaged, or holds another model.
    """
    trees = checkpoint.restore(path, all_trees(abstract))
    state = TrainState(
        step=trees["train"]["step"],
        model=ModelState(**trees["model"]),
        opt=trees["train"]["opt"],
        key=trees["train"]["key"],
        ema=ModelState(**trees["ema"]) if "ema" in trees else None,
    )
    return state, checkpoint.read_meta(path)


def restore_model(path: pathlib.Path, abstract: TrainState) -> ModelState:
    """Read the model of a checkpoint, its moving average where it has one; no optimizer state is read."""
    name = "ema" if abstract.ema is not None else "model"
    model = abstract.ema or abstract.model
    return ModelState(**checkpoint.restore(path, {name: model.as_dict()})[name])
