"""Where arrays live. The only file that names mesh axes.

Two axes, both of which divide the batch: `data`, over which parameters are replicated, and `fsdp`, over which
parameters and optimizer are sharded. Axes are `Auto`: the compiler inserts the collectives, and BatchNorm's
statistics are those of the global batch.
"""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Format
from jax.experimental.layout import Layout as MemoryLayout
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from histojax.core.errors import RunError

_DATA, _FSDP = "data", "fsdp"
_OUTPUTS_FIRST = MemoryLayout(major_to_minor=(3, 0, 1, 2))  # of HWIO


def use_cpu_devices(count: int) -> None:
    """Divides the CPU into virtual devices; to be called before jax computes anything.

    On two cores, two devices train faster than one, because convolutions with few channels run on one core
    only. An environment that already asks for a number of devices is left alone.
    """
    if count > 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", count)


class Layout:
    """A mesh over devices, and the shardings of batch and state.

    Args:
      fsdp: devices over which parameters are sharded; 1: pure data parallelism.
      devices: of the mesh; None: all of them.
      rules: exceptions from how a state is sharded, see `state`.

    Attributes:
      mesh: the devices, by axis.
      batch: sharding of a batch's arrays.
      replicated: sharding of what all devices hold.
      outputs_first: whether kernels of convolutions lie in memory as cuDNN reads them, see `formats`; on GPUs.

    Raises:
      RunError: `fsdp` does not divide the number of devices; a rule that is none.
    """

    def __init__(self, fsdp: int = 1, devices: Sequence[jax.Device] | None = None, rules: Sequence[str] = ()):
        count = jax.device_count() if devices is None else len(devices)
        if fsdp < 1 or count % fsdp:
            raise RunError(f"sharding.fsdp={fsdp} does not divide the {count} devices")
        self.mesh: Mesh = jax.make_mesh(
            (count // fsdp, fsdp), (_DATA, _FSDP), axis_types=(AxisType.Auto,) * 2, devices=devices
        )
        self.batch = NamedSharding(self.mesh, PartitionSpec((_DATA, _FSDP)))
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.outputs_first = self.mesh.devices.flat[0].platform == "gpu"
        self._rules = [_rule(text) for text in rules]

    def check_batch(self, field: str, size: int, parts: int = 1) -> None:
        """Verifies that a global batch divides among the devices.

        Raises:
          RunError: it does not; names the field and the nearest sizes that do.
        """
        unit = self.mesh.size * parts
        if size % unit or size < unit:
            near = " or ".join(str(n) for n in (size // unit * unit, max(size // unit + 1, 1) * unit) if n > 0)
            among = f"{self.mesh.size} devices" + (f" × {parts} micro-batches" if parts > 1 else "")
            raise RunError(f"{field}={size} does not divide among {among}; use {near}")

    def rows(self, size: int) -> tuple[int, ...] | None:
        """Positions in a global batch of `size` images that this process's devices hold; None: all."""
        if all(device.process_index == jax.process_index() for device in self.mesh.devices.flat):
            return None
        shards = self.batch.addressable_devices_indices_map((size,)).values()
        held = {shard[0].indices(size)[:2] for shard in shards if shard is not None}
        return tuple(row for start, stop in sorted(held) for row in range(start, stop))

    def state(self, abstract: Any) -> Any:
        """Shardings of a state: each array along its largest axis that `fsdp` divides, else replicated.

        Rules "REGEX=AXIS" and "REGEX=none" are exceptions: the first whose expression is found in an array's path
        (as `path_of` has it; those of optimizer and moving average end as the parameter's) names its axis.

        Raises:
          RunError: a rule for an axis that the array does not have or `fsdp` does not divide.
        """
        fsdp = self.mesh.shape[_FSDP]

        def sharding(path: Any, leaf: Any) -> NamedSharding:
            axes = [axis for axis, size in enumerate(leaf.shape) if size % fsdp == 0]
            if fsdp == 1 or not axes or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return self.replicated
            largest = max(axes, key=lambda axis: leaf.shape[axis])
            for expression, wanted in self._rules:
                if expression.search(path_of(path)):
                    if wanted is None:
                        return self.replicated
                    if wanted not in axes:
                        raise RunError(
                            f"sharding.rules: '{expression.pattern}={wanted}' meets {path_of(path)} of shape "
                            f"{leaf.shape}, of which sharding.fsdp={fsdp} divides the axes {axes}"
                        )
                    largest = wanted
                    break
            return NamedSharding(self.mesh, PartitionSpec(*(None,) * largest, _FSDP))

        return jax.tree_util.tree_map_with_path(sharding, abstract)

    def formats(self, abstract: Any) -> Any:
        """Shardings as `state`, and how arrays lie in memory: shapes and values are the same, whatever it is.

        Kernels of convolutions, `[h, w, in, out]`, lie with the output channels first on GPUs, and what the optimizer
        keeps of them, too: otherwise each step transposes all of them three times, 2.5 % of a ResNet50's on an H200.
        """
        shardings = self.state(abstract)
        if not self.outputs_first:
            return shardings
        return jax.tree.map(
            lambda leaf, sharding: Format(_OUTPUTS_FIRST, sharding) if leaf.ndim == 4 else sharding, abstract, shardings
        )

    def gathered(self, tree: Any) -> Any:
        """Parameters that FSDP has divided, whole on each device: for the time that the program needs them.

        Left alone, the compiler sends images' activations instead, which are many times larger.
        """
        if self.mesh.shape[_FSDP] == 1:
            return tree
        return jax.lax.with_sharding_constraint(tree, self.replicated)

    def map_over_devices(self, function: Callable[..., tuple[Any, Any, Any]]) -> Callable[..., tuple[Any, Any, Any]]:
        """`function(device, state, arrays)` for each device's rows alone, as one function of all of them.

        `device` is the device's number, `i32 []`; `state` is the same on all, `arrays` a pytree of a batch's arrays.
        Of what it returns, the first tree comes out as the mean over devices, the second as their sum; the third must
        be the same on all.
        """
        axes = (_DATA, _FSDP)

        def local(state: Any, arrays: Any) -> tuple[Any, Any, Any]:
            means, sums, same = function(jax.lax.axis_index(axes), state, arrays)
            return jax.lax.pmean(means, axes), jax.lax.psum(sums, axes), same

        specs = (PartitionSpec(), PartitionSpec(axes))
        return jax.shard_map(local, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)

    def shard_map_batch(self, function: Callable[..., Any], divided: tuple[bool, ...]) -> Callable[..., Any]:
        """`function` of each device's share of the arguments that are `divided`, for `division.sharded_calls`."""
        if self.mesh.size == 1:
            return function
        rows = self.batch.spec
        specs = tuple(rows if one else PartitionSpec() for one in divided)
        return jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=rows, check_vma=False)

    def to_device(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's share of a batch -> global arrays on the devices; returns before the copy is done."""
        return {
            key: jax.make_array_from_process_local_data(self.batch, value)
            for key, value in batch.items()
            if key != "index"  # for hosts only; jax would cut it to 32 bits
        }


def in_memory_as(abstract: Any, tree: Any) -> Any:
    """Arrays (which are consumed) in the memory layouts that `abstract` gives, see `Layout.formats`."""
    formats = jax.tree.map(lambda leaf: leaf.format, abstract)
    if all(form.layout is None for form in jax.tree.leaves(formats)):
        return tree
    return jax.jit(lambda arrays: arrays, out_shardings=formats, donate_argnums=0)(tree)


def path_of(path: Any) -> str:
    """An array's path in a state, such as `model/params/layer1/0/conv1/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _rule(text: str) -> tuple[re.Pattern[str], int | None]:
    expression, equals, axis = text.rpartition("=")
    if not equals or not expression or not (axis == "none" or axis.isdigit()):
        raise RunError(f"sharding.rules: '{text}' is not REGEX=AXIS or REGEX=none")
    try:
        return re.compile(expression), None if axis == "none" else int(axis)
    except re.error as error:
        raise RunError(f"sharding.rules: '{expression}' is no regular expression: {error}") from error
