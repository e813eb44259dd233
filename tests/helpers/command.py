"""Running the `histojax` command inside the process of a test."""

import contextlib
import gc
import io
import logging
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import pytest

from histojax.cli.main import main

_LOGGERS = ("histojax", "data_pipelines")


@dataclass(frozen=True)
class Finished:
    """Exit code and output of a command; attributes as in the result of `subprocess.run`."""

    returncode: int
    stdout: str
    stderr: str


def histojax(*argv: object) -> Finished:
    """Run `histojax ARGV…` in this process, as a shell would; unexpected exceptions are raised.

    The command gets the tests' four devices, even if it requests another number.
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
    """Keep the tests' devices and compilation cache; restore loggers and garbage collection."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    states = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    interrupt = signal.getsignal(signal.SIGINT)
    thresholds, least_seconds = gc.get_threshold(), jax.config.jax_persistent_cache_min_compile_time_secs
    with pytest.MonkeyPatch.context() as patch:
        # `runtime.prepare` changes neither if the environment sets it.
        patch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count={jax.device_count()}")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
        try:
            yield
        finally:
            for logger, (level, propagate, handlers) in zip(loggers, states, strict=True):
                logger.setLevel(level)
                logger.propagate, logger.handlers[:] = propagate, handlers
            signal.signal(signal.SIGINT, interrupt)
            gc.enable()
            gc.set_threshold(*thresholds)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
