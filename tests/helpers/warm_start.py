"""Processes of the program that find its imports done, for tests that start it many times.

A cold start spends more than two CPU-seconds on imports, a third to half of what a tiny run takes. One server per test
worker imports the program once. It forks for each start, before jax has looked for devices or started a thread. What
it forks is a process like any other: with an environment, files, signals and an exit code of its own, and it ends as
the interpreter does. Tests of the start itself use `subprocess`; so do `.ci/run` and the tests of `histojax bench`.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import pathlib
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

ROOT = pathlib.Path(__file__).parents[2]
_MOST = 1 << 17  # bytes of a request: words and environment
# What training imports; the names are not those of programs, which have to be run as `__main__`.
_IMPORTED = (
    "configs.ldcsf_liver",
    "data_pipelines.breakhis.breakhis_dataset_builder",
    "histojax.cli.main",
    "histojax.distributed.runtime",
    "histojax.training.loop",
    "tensorboardX",
)
# Libraries read these while they are imported, or once the process has started.
_READ_AT_START = ("JAX_", "PYTHON", "OMP_", "OPENBLAS_", "MKL_", "ARROW_", "TF_", "LD_", "MALLOC_")


class Process:
    """A process of the program; the methods are those of `subprocess.Popen`.

    Args:
      words: `[sys.executable, "-m", MODULE, …]`.
      stdout: an open file.
      stderr: an open file.
      environment: all variables of the process, by default those of this one.
    """

    def __init__(
        self,
        words: list[str],
        stdout: IO[str],
        stderr: IO[str],
        environment: Mapping[str, str] | None = None,
    ):
        assert words[:2] == [sys.executable, "-m"], words
        self.args = words
        self.returncode: int | None = None
        self._reply, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = dict(os.environ if environment is None else environment)
        request = json.dumps({"words": words[2:], "environment": environment}).encode()
        with theirs:
            fds = [stdout.fileno(), stderr.fileno(), theirs.fileno()]
            socket.send_fds(_server(_at_start(environment)), [request], fds)
        self.pid = self._receive()

    def _receive(self) -> int:
        text = self._reply.recv(100)
        if not text:
            raise RuntimeError("the server of warm starts has ended; its error is on the standard error of the tests")
        return int(text)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._reply.settimeout(timeout)
            try:
                self.returncode = self._receive()
            except (TimeoutError, BlockingIOError):  # the latter for a timeout of 0
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._reply.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):  # it still runs
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    words: list[str], timeout: float = 600, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, as `subprocess.run` with captured output."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = Process(words, stdout, stderr, environment)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
            process.wait()
        return subprocess.CompletedProcess(words, code, *(_written(file) for file in (stdout, stderr)))


def run_until(words: list[str], reached: Callable[[], bool], how: signal.Signals) -> tuple[int, str]:
    """Start a program, send it a signal once `reached` is true, and return exit code and standard error."""
    with tempfile.TemporaryFile("w+") as stderr, open(os.devnull, "w") as stdout:
        process = Process(words, stdout, stderr)
        try:
            deadline = time.monotonic() + 300
            while not reached():
                assert process.poll() is None, _written(stderr)
                assert time.monotonic() < deadline, "the moment to interrupt never came"
                time.sleep(0.002)
            process.send_signal(how)
            return process.wait(120), _written(stderr)
        finally:
            process.kill()
            process.wait()


def _written(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _at_start(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in environment.items() if name.startswith(_READ_AT_START)))


@functools.cache
def _server(at_start: tuple[tuple[str, str], ...]) -> socket.socket:
    """Start a server with these variables, of which the others are set per request; return its socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_READ_AT_START)}
    with theirs:
        words = [sys.executable, "-m", "tests.helpers.warm_start", str(theirs.fileno())]
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=environment | dict(at_start),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    atexit.register(process.wait)
    atexit.register(ours.close)  # the server ends with the connection
    return ours


def _serve(requests: socket.socket) -> dict[str, Any]:
    """Fork for each request. Returns in the forked processes only: the request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests and the running programs
    while True:
        text, descriptors, _, _ = socket.recv_fds(requests, _MOST, 3)
        with contextlib.suppress(ChildProcessError):  # no watcher is left
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not text:
            sys.exit()
        stdout, stderr, reply = descriptors
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    requests.close()
    _watch(reply, (stdout, stderr))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor, place in ((stdout, 1), (stderr, 2)):
        os.dup2(descriptor, place)
        os.close(descriptor)
    return json.loads(text)


def _watch(reply: int, files: tuple[int, int]) -> None:
    """Fork the program, and report its process and its exit code. Returns in the program only."""
    process = os.fork()
    if process == 0:
        os.close(reply)
        return
    for descriptor in files:
        os.close(descriptor)  # a reader sees their end only once every process has closed them
    with socket.socket(fileno=reply) as answer, contextlib.suppress(BrokenPipeError):  # the test has given up
        answer.send(str(process).encode())
        _, status = os.waitpid(process, 0)
        answer.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


if __name__ == "__main__":
    for name in _IMPORTED:
        importlib.import_module(name)
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    os.environ.clear()
    os.environ.update(request["environment"])
    module, *sys.argv[1:] = request["words"]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
