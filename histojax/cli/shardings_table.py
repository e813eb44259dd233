"""`histojax shardings`: how a config's state lies on devices, as a table."""

import math
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from histojax.distributed.sharding import Layout, path_of
from histojax.training import build
from histojax.training.tasks import Multiclass, Multilabel, Task


def table(config: ConfigDict, num_classes: int) -> str:
    """A line for each parameter and statistic (shape, spec, bytes on each device), and the sums with the optimizer.

    Nothing is computed and no data is read, so that it works for as many virtual devices as one likes.

    Raises:
      RunError: an unknown model or option; sizes or rules that do not fit.
    """
    layout = Layout(config.sharding.fsdp, rules=config.sharding.rules)
    classes = tuple(f"class_{i}" for i in range(num_classes))
    weights = (1.0,) * num_classes
    task: Task = Multilabel(classes, weights) if config.data.task == "multilabel" else Multiclass(classes, weights)
    transform, _ = build.optimizer(config, 1)
    state = build.program(config, task, layout, transform).abstract
    rows = [(name, str(shape), spec, f"{size:,}") for name, shape, spec, size, _ in _leaves(state.model)]
    head = ("parameter or statistic", "shape", "spec", "bytes a device")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(4)]
    lines = [
        f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {spec:<{widths[2]}}  {size:>{widths[3]}}"
        for name, shape, spec, size in [head, *rows]
    ]
    mesh = ", ".join(f"{axis} {size}" for axis, size in layout.mesh.shape.items())
    lines += ["", f"{config.model.name} on {layout.mesh.size} devices ({mesh}):"]
    held = total = 0
    for name, part in (("model", state.model), ("optimizer", state.opt), ("moving average", state.ema)):
        sizes = [(size, whole) for *_, size, whole in _leaves(part)]
        if sizes:
            here, whole = (sum(column) for column in zip(*sizes, strict=True))
            held, total = held + here, total + whole
            lines.append(f"  {name:<15} {here / 1e6:10.2f} MB a device of {whole / 1e6:10.2f} MB")
    fsdp = config.sharding.fsdp
    share = f"; {held / (total / fsdp):.3f} × total / {fsdp}" if fsdp > 1 else ""
    lines.append(f"  {'together':<15} {held / 1e6:10.2f} MB a device of {total / 1e6:10.2f} MB{share}")
    return "\n".join(lines)


def _leaves(tree: Any) -> Iterator[tuple[str, tuple[int, ...], str, int, int]]:
    """Path, shape, spec, bytes on a device and bytes together of each array; random keys are left out."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        itemsize = leaf.dtype.itemsize
        spec = ", ".join("·" if axis is None else str(axis) for axis in leaf.sharding.spec) or "replicated"
        here = math.prod(leaf.sharding.shard_shape(leaf.shape)) * itemsize
        yield path_of(path), tuple(leaf.shape), spec, here, math.prod(leaf.shape) * itemsize
