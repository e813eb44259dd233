"""Process-wide state: what every program sets, once, before jax computes anything.

The order matters. A program goes through these steps from top to bottom:

1. `gc.disable()`, in `histojax.cli.train` and `histojax.cli.evaluate`, before the slow imports. Imports create no
   garbage, so collections would only take time.
2. The platform: `jax_platforms=cpu`, in `histojax.cli.shardings` and `histojax.cli.export`, which compute on no
   accelerator. jax reads it when it first looks for devices.
3. XLA's flags: `histojax.training.profiling.disable_command_buffers`, only where a trace is taken. XLA reads
   the environment when jax first looks for devices.
4. `prepare`, in this module: garbage collection, then the compilation cache, then the virtual devices of a CPU.
5. `histojax.distributed.processes.initialise`, which joins the run's other processes. jax can do so only before it
   looks for devices, and the devices are then those of all processes. On CPUs it also keeps libraries off the standard
   output.

OpenCV's threads are switched off where `histojax.data.transforms` is imported, not here: grain's worker processes need
that as well, and they import that module but never this one, because it imports jax.
"""

import gc
import logging
import os

import jax

from histojax.core import machine
from histojax.core.directories import default_directory
from histojax.core.errors import RunError
from histojax.distributed import sharding

_log = logging.getLogger(__name__)
_MIN_COMPILE_SECONDS = 0.1  # programs that compile faster are not cached; a start has dozens of small ones


def prepare(cpu_devices: int = 2) -> None:
    """Set up garbage collection, the compilation cache and the CPU's virtual devices, in this order.

    Args:
      cpu_devices: number of virtual devices that a CPU is divided into.
    """
    # Tracing creates objects by the hundred thousand, nearly all of which stay. Scanning them and everything that was
    # imported, again and again, takes a fifth of the time of tracing.
    gc.freeze()
    gc.enable()
    gc.set_threshold(100_000, 20, 20)
    use_compilation_cache()
    sharding.use_cpu_devices(cpu_devices)


def use_compilation_cache() -> None:
    """Keep compiled programs on disk: the second start of a run takes seconds instead of a minute.

    They lie in the default directory, unless the environment names another folder as `JAX_COMPILATION_CACHE_DIR`.
    Programs for CPUs hold instructions of the machine that compiled them. Home directories are often shared between
    machines, so each kind of processor gets a folder of its own.
    """
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    try:
        directory = default_directory()
    except RunError as error:
        _log.warning("compiled programs are not kept for the next start: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(directory / f"compiled-{machine.instruction_sets()}"))
