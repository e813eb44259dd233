"""The device mesh and the sharding of every array. The only file that names mesh axes.

The mesh has two axes, both of which divide the batch. Parameters are replicated over `data`; parameters and optimizer
state are sharded over `fsdp`. Axes are `Auto`: the compiler inserts the collectives, and BatchNorm's statistics are
those of the global batch.
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
_OUTPUTS_FIRST = MemoryLayout(major_to_minor=(3, 0, 1, 2))  # axes of a kernel stored as HWIO


def use_cpu_devices(count: int) -> None:
    """Divide the CPU into virtual devices. Call it before jax computes anything.

    On two cores, two devices train faster than one, because convolutions with few channels run on a single core.
    A number of devices that is set in `XLA_FLAGS` takes precedence.

    Args:
      count: number of virtual devices.
    """
    if count > 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", count)


class Layout:
    """A mesh over devices, and the shardings of batch and state.

    Args:
      fsdp: number of devices over which parameters are sharded; 1 is pure data parallelism.
      devices: devices of the mesh; None: all of them.
      rules: exceptions to the default sharding of a state, see `state`.

    Attributes:
      mesh: the devices, by axis.
      batch: sharding of a batch's arrays.
      replicated: sharding of arrays that all devices hold in full.
      outputs_first: whether convolution kernels are stored in the order that cuDNN reads, see `formats`; True on GPUs.

    Raises:
      RunError: `fsdp` does not divide the number of devices, or a rule is malformed.
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
        """Verify that a global batch divides among the devices.

        Args:
          field: name of the setting, for the error message.
          size: images per global batch.
          parts: micro-batches per batch.

        Raises:
          RunError: it does not divide; the message names the field and the nearest valid sizes.
        """
        unit = self.mesh.size * parts
        if size % unit or size < unit:
            near = " or ".join(str(n) for n in (size // unit * unit, max(size // unit + 1, 1) * unit) if n > 0)
            among = f"{self.mesh.size} devices" + (f" × {parts} micro-batches" if parts > 1 else "")
            raise RunError(f"{field}={size} does not divide among {among}; use {near}")

    def rows(self, size: int) -> tuple[int, ...] | None:
        """Return the positions in a global batch of `size` images that this process's devices hold; None: all."""
        if all(device.process_index == jax.process_index() for device in self.mesh.devices.flat):
            return None
        shards = self.batch.addressable_devices_indices_map((size,)).values()
        held = {shard[0].indices(size)[:2] for shard in shards if shard is not None}
        return tuple(row for start, stop in sorted(held) for row in range(start, stop))

    def state(self, abstract: Any) -> Any:
        """Return the shardings of a state: each array along its largest axis that `fsdp` divides, else replicated.

        Rules "REGEX=AXIS" and "REGEX=none" are exceptions. The first rule whose expression matches part of an array's
        path (see `path_of`) names the axis. Paths in the optimizer and the moving average end as the parameter's do.

        Args:
          abstract: pytree of arrays or of their shapes.

        Raises:
          RunError: a rule names an axis that the array does not have or that `fsdp` does not divide.
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
                            f"sharding.rules: '{expression.pattern}={wanted}' matches {path_of(path)} of shape "
                            f"{leaf.shape}, but sharding.fsdp={fsdp} divides only its axes {axes}"
                        )
                    largest = wanted
                    break
            return NamedSharding(self.mesh, PartitionSpec(*(None,) * largest, _FSDP))

        return jax.tree_util.tree_map_with_path(sharding, abstract)

    def formats(self, abstract: Any) -> Any:
        """Return the shardings of `state` with the arrays' memory layouts, which change neither shapes nor values.

        On GPUs, convolution kernels, `[h, w, in, out]`, and their optimizer state are stored with the output channels
        first. Otherwise each step transposes all of them three times: 2.5 % of a ResNet50's step on an H200.
        """
        shardings = self.state(abstract)
        if not self.outputs_first:
            return shardings
        return jax.tree.map(
            lambda leaf, sharding: Format(_OUTPUTS_FIRST, sharding) if leaf.ndim == 4 else sharding, abstract, shardings
        )

    def gathered(self, tree: Any) -> Any:
        """Gather parameters that FSDP has divided, so that each device holds them in full while it needs them.

        Without this, the compiler sends the images' activations instead, which are many times larger.
        """
        if self.mesh.shape[_FSDP] == 1:
            return tree
        return jax.lax.with_sharding_constraint(tree, self.replicated)

    def map_over_devices(self, function: Callable[..., tuple[Any, Any, Any]]) -> Callable[..., tuple[Any, Any, Any]]:
        """Run a function on each device's rows separately and combine the results.

        Args:
          function: called as `function(device, state, arrays)` on each device. `device` is its number, `i32 []`;
            `state` is the same on all devices; `arrays` is a pytree of the device's rows of a batch. It returns three
            trees.

        Returns:
          A function of `state` and the global `arrays`. It returns the mean over devices of the first tree, the sum
          of the second, and the third, which must be the same on all devices.
        """
        axes = (_DATA, _FSDP)

        def local(state: Any, arrays: Any) -> tuple[Any, Any, Any]:
            means, sums, same = function(jax.lax.axis_index(axes), state, arrays)
            return jax.lax.pmean(means, axes), jax.lax.psum(sums, axes), same

        specs = (PartitionSpec(), PartitionSpec(axes))
        return jax.shard_map(local, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)

    def shard_map_batch(self, function: Callable[..., Any], divided: tuple[bool, ...]) -> Callable[..., Any]:
        """Run a function on each device's part of the arguments, for `histojax.models.ops.sharded_call`.

        Args:
          function: called on each device with its rows of the divided arguments and all of the others.
          divided: per argument, whether it is divided along its first axis.
        """
        if self.mesh.size == 1:
            return function
        rows = self.batch.spec
        specs = tuple(rows if one else PartitionSpec() for one in divided)
        return jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=rows, check_vma=False)

    def to_device(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Copy this process's rows of a batch to global arrays on the devices; returns before the copy is done."""
        return {
            key: jax.make_array_from_process_local_data(self.batch, value)
            for key, value in batch.items()
            if key != "index"  # used on the host only; jax would cut it to 32 bits
        }


def in_memory_as(abstract: Any, tree: Any) -> Any:
    """Move arrays into the memory layouts of `abstract`, see `Layout.formats`. The given arrays are consumed."""
    formats = jax.tree.map(lambda leaf: leaf.format, abstract)
    if all(form.layout is None for form in jax.tree.leaves(formats)):
        return tree
    return jax.jit(lambda arrays: arrays, out_shardings=formats, donate_argnums=0)(tree)


def replicated(tree: Any) -> Any:
    """Return the arrays with each whole on every device; all processes must call this."""

    def whole(array: Any) -> Any:
        if not isinstance(array, jax.Array) or array.is_fully_replicated:
            return array
        assert isinstance(array.sharding, NamedSharding)
        return jax.jit(lambda x: x, out_shardings=NamedSharding(array.sharding.mesh, PartitionSpec()))(array)

    return jax.tree.map(whole, tree)


def path_of(path: Any) -> str:
    """Return an array's path in a state, such as `model/params/layer1/0/conv1/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _rule(text: str) -> tuple[re.Pattern[str], int | None]:
    """Parse a rule; the axis is None for `none`."""
    expression, equals, axis = text.rpartition("=")
    if not equals or not expression or not (axis == "none" or axis.isdigit()):
        raise RunError(f"sharding.rules: '{text}' is not REGEX=AXIS or REGEX=none")
    try:
        return re.compile(expression), None if axis == "none" else int(axis)
    except re.error as error:
        raise RunError(f"sharding.rules: '{expression}' is not a regular expression: {error}") from error
