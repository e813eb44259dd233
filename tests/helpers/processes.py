"""A run of several processes on this machine, or on the hosts of a network within it."""

import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from tests.conftest import ROOT
from tests.helpers import warm_start
from tests.helpers.network import Host

CONFIG = "tests/helpers/tiny_config.py:mini"
# Without decay the program does not depend on the number of epochs, so that more runs share what one has compiled.
_NO_DECAY = "--config.optimizer.schedule=constant"


class Processes:
    """A run in `count` processes with `devices` CPU devices each. Every process writes its own log file.

    With `hosts` process i runs on host i of a network, and `coordinator` is `HOST:PORT` of the first one. `before` has
    words to put before the command of a process, by its index.

    In a bucket the run has the address `place`, and `workdir` only names the logs. `machines` has further environment
    variables of each process.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        root: pathlib.Path,
        count: int,
        devices: int,
        *more: str,
        config: str = CONFIG,
        only: Mapping[int, list[str]] | None = None,
        module: str = "histojax.main",
        environment: Mapping[str, str] | None = None,
        hosts: Sequence[Host] = (),
        coordinator: str = "",
        before: Mapping[int, list[str]] | None = None,
        place: str = "",
        machines: Sequence[Mapping[str, str]] = (),
    ):
        workdir.mkdir(parents=True, exist_ok=True)
        self.count = count
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        fields = [f"--config={config}", f"--workdir={place or workdir}", f"--config.data.root={root}"]
        fields += [f"--config.sharding.cpu_devices={devices}", _NO_DECAY]
        environment = os.environ | (environment or {})
        self.logs = [workdir.with_name(f"{workdir.name}.{port}.{i}.log") for i in range(count)]
        self.started: list[warm_start.Process | subprocess.Popen[bytes]] = []
        for i, log in enumerate(self.logs):
            membership = []
            if count > 1:
                membership = [
                    f"--coordinator={coordinator or f'localhost:{port}'}",
                    f"--num_processes={count}",
                    f"--process_id={i}",
                ]
            words = [sys.executable, "-m", module, *fields, *membership, *more, *(only or {}).get(i, [])]
            words = [*(before or {}).get(i, []), *words]
            words = hosts[i].words(*words) if hosts else words
            own = environment | (machines[i] if machines else {})
            with open(log, "w") as file:
                if hosts or before:
                    self.started.append(subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=file, env=own))
                else:
                    self.started.append(warm_start.Process(words, file, file, own))

    def until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 200
        while not reached():
            assert self.alive(), self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.01)

    def codes(self, timeout: float = 300) -> list[int]:
        """Wait for the exit codes; kill processes that do not end in time."""
        deadline = time.monotonic() + timeout
        try:
            return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.started]
        finally:
            self.kill()

    def alive(self) -> bool:
        return all(process.poll() is None for process in self.started)

    def kill(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()

    def text(self) -> str:
        return "\n".join(f"---- process {i}\n{log.read_text()[-4000:]}" for i, log in enumerate(self.logs))

    def finish(self) -> None:
        assert self.codes() == [0] * self.count, self.text()
