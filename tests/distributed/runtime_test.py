"""Process-wide set-up, each test in a new process."""

import os
import pathlib
import subprocess
import sys

PROGRAM = """
import gc
gc.disable()
import jax
from histojax.distributed import runtime
runtime.prepare(3)
print(gc.isenabled(), gc.get_threshold()[0], gc.get_freeze_count() > 1000)
print(jax.config.jax_compilation_cache_dir, jax.device_count())
"""


def prepared(**environment: str) -> list[str]:
    base = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=base | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_prepare_sets_garbage_collection_cache_and_devices(tmp_path: pathlib.Path) -> None:
    collection, rest = prepared(HISTOJAX_DATA=str(tmp_path))
    assert collection == "True 100000 True"
    cache, devices = rest.split()
    assert pathlib.Path(cache).parent == tmp_path
    assert pathlib.Path(cache).name.startswith("compiled-")
    assert devices == "3"


def test_prepare_respects_the_environment(tmp_path: pathlib.Path) -> None:
    flags = "--xla_force_host_platform_device_count=2"
    _, rest = prepared(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"), XLA_FLAGS=flags)
    assert rest == f"{tmp_path / 'own'} 2"
