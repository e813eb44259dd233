"""Optimizers and schedules (optax). Knows parameters by their path, and no model.

A parameter below a component named `head`, `attention`, `ldc`, `fr` or `resnet` is what a paper adds to a backbone: it
belongs to the head's group; every other one to the backbone's, which pretrained weights fill.
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

_POSITION = re.compile(r"position|registers")
_HEAD = re.compile(r"(^|/)(head|attention|ldc|fr|resnet)(/|$)")


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """The fields of `config.optimizer`, in steps where the config has epochs.

    Attributes:
      name: `adamw` or `sgd`.
      learning_rate: greatest, of the backbone.
      head_multiplier: of the head's learning rate.
      schedule: `cosine` (to 0 at `total_steps`) or `constant`, after a linear warm-up from 0.
      warmup_steps: length of the warm-up.
      total_steps: length of the run.
      weight_decay: decoupled from the gradient for adamw and, times the learning rate, for sgd as well;
        of arrays with two or more axes only, so neither biases nor norms, and not of position tables.
      momentum: of sgd.
      beta1: of adamw.
      beta2: of adamw.
      clip_norm: greatest global norm of the gradient; 0: off.
      freeze_backbone_steps: the backbone's updates are 0 that long. Its moments and its BatchNorm statistics
        are kept up to date meanwhile, so it starts smoothly.
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


def learning_rate(spec: OptimizerSpec) -> optax.Schedule:
    """Steps -> learning rate of the backbone.

    Raises:
      ValueError: unknown schedule.
    """
    warmup = min(spec.warmup_steps, spec.total_steps)
    if spec.schedule == "cosine":
        after = optax.cosine_decay_schedule(spec.learning_rate, max(spec.total_steps - warmup, 1))
    elif spec.schedule == "constant":
        after = optax.constant_schedule(spec.learning_rate)
    else:
        raise ValueError(f"optimizer.schedule='{spec.schedule}' is neither 'cosine' nor 'constant'")
    if not warmup:
        return after
    # The first step is already one step up: a step of 0 would be wasted.
    ramp = optax.linear_schedule(spec.learning_rate / warmup, spec.learning_rate, max(warmup - 1, 1))
    return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(spec: OptimizerSpec) -> optax.GradientTransformation:
    """Clip, precondition, decay, scale by group, scale by the schedule.

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
        steps.append(optax.add_decayed_weights(spec.weight_decay, mask=decayed))
    steps += [_scale_groups(spec), optax.scale_by_learning_rate(learning_rate(spec))]
    return optax.chain(*steps)


def decayed(params: Any) -> Any:
    """True for the arrays that weight decay shrinks: kernels, not biases, norms or tables of positions."""
    return jax.tree_util.tree_map_with_path(lambda path, p: p.ndim > 1 and not _POSITION.search(_name(path)), params)


def in_head(params: Any) -> Any:
    """True for the arrays of the head's group."""
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(_HEAD.search(_name(path))), params)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _scale_groups(spec: OptimizerSpec) -> optax.GradientTransformation:
    """Updates times the head's multiplier, or times 0 for a backbone that is still frozen."""
    if spec.head_multiplier == 1 and not spec.freeze_backbone_steps:
        return optax.identity()

    def init(params: Any) -> Any:
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        backbone = jnp.where(state.count < spec.freeze_backbone_steps, 0.0, 1.0)
        scaled = jax.tree.map(
            lambda u, head: u * (spec.head_multiplier if head else backbone.astype(u.dtype)),
            updates,
            in_head(updates),
        )
        return scaled, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)
