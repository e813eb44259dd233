"""Compiled programs kept on disk: the second start of a run takes seconds instead of a minute."""

import hashlib
import os
import pathlib
import platform

import jax

_WORTH_KEEPING = 0.1  # seconds of compilation; a start has dozens of small programs


def use_cache(directory: pathlib.Path) -> None:
    """Keeps compiled programs below `directory`, unless `JAX_COMPILATION_CACHE_DIR` names another place.

    Programs for CPUs hold instructions of the machine that compiled them, so each kind of processor gets a
    folder of its own: home directories are often shared.
    """
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    processor = hashlib.sha256(f"{platform.machine()} {_cpu_flags()}".encode()).hexdigest()[:8]
    jax.config.update("jax_compilation_cache_dir", str(directory / f"compiled-{processor}"))


def _cpu_flags() -> str:
    """What tells processors apart as far as compilers care."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
