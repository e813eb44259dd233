"""Running the `histojax` command inside the process of a test."""

import contextlib
import gc
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import pytest

from histojax.cli.main import main

_LOGGERS = ("histojax", "data_pipelines")


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit code and what it wrote, with the names that `subprocess.run` uses."""

    returncode: int
    stdout: str
    stderr: str


def histojax(*argv: object) -> Finished:
    """Run `histojax ARGV…` in this process, as a shell would; an unexpected exception is passed on.

    The command has the tests' four devices, whatever number it asks for.
    """
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), _restored():
        try:
            main([str(word) for word in argv])
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=stderr)
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Finished(code, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Keep jax's devices and cache as the tests have them; put back loggers and garbage collection."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    states = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    thresholds, least_seconds = gc.get_threshold(), jax.config.jax_persistent_cache_min_compile_time_secs
    with pytest.MonkeyPatch.context() as patch:
        # `runtime.prepare` leaves both alone where the environment has chosen.
        patch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count={jax.device_count()}")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
        try:
            yield
        finally:
            for logger, (level, propagate, handlers) in zip(loggers, states, strict=True):
                logger.setLevel(level)
                logger.propagate, logger.handlers[:] = propagate, handlers
            gc.enable()
            gc.set_threshold(*thresholds)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
