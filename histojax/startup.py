"""What every program does before jax computes anything."""

from data_pipelines.prepare import default_directory
from histojax import compilation, sharding


def prepare(cpu_devices: int = 2) -> None:
    """Compiled programs are kept on disk, and a CPU is divided into virtual devices."""
    compilation.use_cache(default_directory())
    sharding.use_cpu_devices(cpu_devices)
