"""What every program does before jax computes anything."""

import gc

from histojax.core.directories import default_directory
from histojax.distributed import compilation, sharding


def prepare(cpu_devices: int = 2) -> None:
    """Compiled programs are kept on disk, a CPU is divided into virtual devices, garbage is searched for rarely."""
    # Tracing makes objects by the hundred thousand, nearly all of which stay: looking through them and all that was
    # imported, again and again, is a fifth of its time.
    gc.freeze()
    gc.enable()
    gc.set_threshold(100_000, 20, 20)
    compilation.use_cache(default_directory())
    sharding.use_cpu_devices(cpu_devices)
