"""How the state of an experiment is sharded across devices, as a table."""

import math
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from histojax.core.text_table import text_table
from histojax.distributed.sharding import Layout, path_of
from histojax.training import build
from histojax.training.tasks import Multiclass, Multilabel, Task


def table(config: ConfigDict, num_classes: int) -> str:
    """Lay out one row per parameter and statistic (shape, spec, bytes per device), and the totals with the optimizer.

    Nothing is computed and no data is read, so it works for any number of virtual devices.

    Args:
      config: the experiment.
      num_classes: classes or labels of the model.

    Raises:
      RunError: an unknown model or option; sizes or rules that do not fit.
    """
    layout = Layout(config.sharding.fsdp, rules=config.sharding.rules)
    classes = tuple(f"class_{i}" for i in range(num_classes))
    weights = (1.0,) * num_classes
    task: Task = Multilabel(classes, weights) if config.data.task == "multilabel" else Multiclass(classes, weights)
    state = build.program(config, task, layout, build.optimizer(config, 1)).abstract
    rows = [("parameter or statistic", "shape", "spec", "bytes per device")]
    rows += [(name, str(shape), spec, f"{local:,}") for name, shape, spec, local, _ in _leaves(state.model)]
    mesh = ", ".join(f"{axis} {size}" for axis, size in layout.mesh.shape.items())
    lines = [*text_table(rows, right=(3,)), "", f"{config.model.name} on {layout.mesh.size} devices ({mesh}):"]
    local_sum = total_sum = 0
    for name, part in (("model", state.model), ("optimizer", state.opt), ("moving average", state.ema)):
        sizes = [(local, total) for *_, local, total in _leaves(part)]
        if sizes:
            local, total = (sum(column) for column in zip(*sizes, strict=True))
            local_sum, total_sum = local_sum + local, total_sum + total
            lines.append(f"  {name:<15} {local / 1e6:10.2f} MB per device of {total / 1e6:10.2f} MB")
    fsdp = config.sharding.fsdp
    fraction = f"; {local_sum / (total_sum / fsdp):.3f} × total / {fsdp}" if fsdp > 1 else ""
    lines.append(f"  {'together':<15} {local_sum / 1e6:10.2f} MB per device of {total_sum / 1e6:10.2f} MB{fraction}")
    return "\n".join(lines)


def _leaves(tree: Any) -> Iterator[tuple[str, tuple[int, ...], str, int, int]]:
    """Yield path, shape, spec, bytes on one device and bytes in all of each array; random keys are left out."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        itemsize = leaf.dtype.itemsize
        spec = ", ".join("·" if axis is None else str(axis) for axis in leaf.sharding.spec) or "replicated"
        local = math.prod(leaf.sharding.shard_shape(leaf.shape)) * itemsize
        yield path_of(path), tuple(leaf.shape), spec, local, math.prod(leaf.shape) * itemsize
