"""Optimizers and schedules (optax).

Groups of parameters are found by path components, which a model's `ModelSpec` lists: the parts that a paper adds to a
backbone form the head's group; all others form the backbone's, which pretrained weights fill.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """The fields of `config.optimizer`, with steps for the config's epochs, and the model's groups of parameters.

    Attributes:
      name: `adamw` or `sgd`.
      learning_rate: peak learning rate of the backbone.
      total_steps: length of the run.
      head_multiplier: learning rate of the head relative to the backbone's.
      schedule: `cosine` (to 0 at `total_steps`) or `constant`, after a linear warm-up from 0.
      warmup_steps: length of the warm-up.
      weight_decay: strength of the decay, decoupled from the gradient for adamw and, times the learning rate, for sgd
        as well. It acts on arrays with two or more axes, so neither on biases nor on norms, and not on
        `without_weight_decay`.
      momentum: momentum of sgd.
      beta1: decay of adamw's first moment.
      beta2: decay of adamw's second moment.
      clip_norm: largest global norm of the gradient; 0: no clipping.
      freeze_backbone_steps: number of steps for which the backbone's updates are 0. Its moments and BatchNorm
        statistics are kept up to date meanwhile, so that it starts smoothly.
      head_parts: path components of the head's group.
      without_weight_decay: path components of arrays that weight decay must not shrink, such as position tables.
      frozen: beginnings of the paths of arrays that are never updated, and for which no moments are kept.
    """

    name: str
    learning_rate: float
    total_steps: int
    head_multiplier: float = 1.0
    schedule: str = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 0.0
    freeze_backbone_steps: int = 0
    head_parts: tuple[str, ...] = ("head",)
    without_weight_decay: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()


class Plan(NamedTuple):
    """The numbers of an `OptimizerSpec` that depend on a run's length.

    They are arguments of the compiled step and not a part of it, so that the folds of a study, runs of other lengths
    and other learning rates share one compilation.

    Attributes:
      peak: peak learning rate of the backbone, `f32 []`.
      warmup: steps of the warm-up, `f32 []`.
      total: steps of the run, `f32 []`.
      frozen: steps for which the backbone's updates are 0, `i32 []`.
    """

    peak: Any
    warmup: Any
    total: Any
    frozen: Any


def plan(spec: OptimizerSpec) -> Plan:
    """Return the numbers of a specification that depend on a run's length."""
    warmup = min(spec.warmup_steps, spec.total_steps)
    return Plan(
        peak=np.float32(spec.learning_rate),
        warmup=np.float32(warmup),
        total=np.float32(spec.total_steps),
        frozen=np.int32(spec.freeze_backbone_steps),
    )


def learning_rate(spec: OptimizerSpec) -> Callable[[int], jax.Array]:
    """Return the schedule: step -> learning rate of the backbone.

    Raises:
      ValueError: unknown schedule.
    """
    return functools.partial(_rate(spec.schedule), plan=plan(spec))


def _rate(schedule: str) -> Callable[..., jax.Array]:
    """Return the function of a step and a plan that computes the learning rate, `f32 []`."""
    if schedule not in ("cosine", "constant"):
        raise ValueError(f"optimizer.schedule='{schedule}' is neither 'cosine' nor 'constant'")

    def rate(step: Any, plan: Plan) -> jax.Array:
        # The ramp starts one step up, because a first step with learning rate 0 would be wasted.
        ramp = (step + 1) / jnp.maximum(plan.warmup, 1)
        progress = jnp.clip((step - plan.warmup) / jnp.maximum(plan.total - plan.warmup, 1), 0, 1)
        after = (1 + jnp.cos(jnp.pi * progress)) / 2 if schedule == "cosine" else 1.0
        return plan.peak * jnp.where(step < plan.warmup, ramp, after)

    return rate


def make_optimizer(spec: OptimizerSpec) -> optax.GradientTransformationExtraArgs:
    """Build the optimizer: clip, precondition, decay, scale by group, scale by the schedule.

    Its `update` takes a `Plan` as `plan`; without one, it follows that of the specification.

    Raises:
      ValueError: unknown name or schedule.
    """
    if spec.name == "adamw":
        precondition = optax.scale_by_adam(spec.beta1, spec.beta2)
    elif spec.name == "sgd":
        precondition = optax.trace(spec.momentum)
    else:
        raise ValueError(f"optimizer.name='{spec.name}' is neither 'adamw' nor 'sgd'")
    steps = [optax.clip_by_global_norm(spec.clip_norm)] if spec.clip_norm else []
    steps.append(precondition)
    if spec.weight_decay:
        mask = functools.partial(decayed, without=spec.without_weight_decay)
        steps.append(optax.add_decayed_weights(spec.weight_decay, mask=mask))
    steps += [_scale_groups(spec), _scale_by_schedule(spec)]
    chain = optax.chain(*steps)
    if not spec.frozen:
        return optax.with_extra_args_support(chain)

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda frozen: "frozen" if frozen else "trained", begins_with(params, spec.frozen))

    return optax.partition({"frozen": optax.set_to_zero(), "trained": chain}, labels)


def decayed(params: Any, without: Collection[str] = ()) -> Any:
    """Return a tree of bools: True for arrays that weight decay shrinks.

    Args:
      params: the parameters.
      without: path components of arrays that it must not shrink. Biases and norms, with one axis, are never decayed.
    """
    return jax.tree_util.tree_map_with_path(lambda path, p: p.ndim > 1 and not _lies_in(path, without), params)


def in_head(params: Any, parts: Collection[str]) -> Any:
    """Return a tree of bools: True for the arrays whose path has one of the components `parts`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _lies_in(path, parts), params)


def begins_with(params: Any, beginnings: Collection[str]) -> Any:
    """Return a tree of bools: True for the arrays whose path begins with one of `beginnings`, such as `layer3/0`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_begins(_keys(path), beginnings), params)


def path_begins(keys: Sequence[Any], beginnings: Collection[str]) -> bool:
    """Return whether a path, such as `("layer3", 0, "conv1")`, begins with one of `beginnings`, such as `layer3/0`."""
    starts = [start.split("/") for start in beginnings]
    return any([str(key) for key in keys[: len(start)]] == start for start in starts)


def _lies_in(path: Any, parts: Collection[str]) -> bool:
    return not set(_keys(path)).isdisjoint(parts)


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/").split("/"))


def _scale_groups(spec: OptimizerSpec) -> optax.GradientTransformation:
    """Multiply the head's updates by its multiplier, and the backbone's by 0 while it is frozen."""
    if spec.head_multiplier == 1 and not spec.freeze_backbone_steps:
        return optax.identity()

    def scale(updates: Any, step: jax.Array, plan: Plan) -> Any:
        backbone = jnp.where(step < plan.frozen, 0.0, 1.0)
        return jax.tree.map(
            lambda u, head: u * (spec.head_multiplier if head else backbone.astype(u.dtype)),
            updates,
            in_head(updates, spec.head_parts),
        )

    return _by_step(spec, scale)


def _scale_by_schedule(spec: OptimizerSpec) -> optax.GradientTransformation:
    """Multiply all updates by the negative learning rate."""
    rate = _rate(spec.schedule)

    def scale(updates: Any, step: jax.Array, plan: Plan) -> Any:
        factor = -rate(step, plan)
        return jax.tree.map(lambda u: factor.astype(u.dtype) * u, updates)

    return _by_step(spec, scale)


def _by_step(
    spec: OptimizerSpec, scale: Callable[[Any, jax.Array, Plan], Any]
) -> optax.GradientTransformationExtraArgs:
    """Return a transformation that counts steps: `scale(updates, step, plan)`."""
    own = plan(spec)

    def init(params: Any) -> Any:
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, *, plan: Plan = own, **_: Any) -> tuple[Any, Any]:
        del params
        counted = optax.ScaleByScheduleState(count=optax.safe_increment(state.count))
        return scale(updates, state.count, plan), counted

    return optax.GradientTransformationExtraArgs(init, update)
