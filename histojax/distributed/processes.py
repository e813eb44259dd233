"""Several processes as one run: find each other, agree to stop, and end together.

The engine is `jax.distributed`. The membership comes from flags, from the environment that `launch/` sets, from SLURM
or from a Cloud TPU. While the run lasts, a thread in each process writes heartbeats to the key-value store that jax's
coordinator (process 0) keeps, and reads those of the others. With jax alone, a process would wait in a collective for
a dead one as long as jax's own heartbeat allows, and would not say why the other one died.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from histojax.core.errors import EXIT_INTERRUPTED, EXIT_RESUMABLE, RunError
from histojax.distributed import addresses, compat, hosts

_BEAT, _LOST = 2.0, 25.0  # seconds: between two heartbeats; without one, until a process counts as dead
_ALIVE, _FAILED = "histojax/alive/", "histojax/failed/"
_PREFIX = "HISTOJAX_"
_log = logging.getLogger(__name__)
_sync_points = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Membership:
    """The index of this process and the number of processes, or the cluster from which jax reads both.

    Attributes:
      coordinator: `host:port` of process 0.
      count: number of processes.
      index: index of this process.
      cluster: `slurm` or `tpu`; empty if the three fields above are used.
    """

    coordinator: str = ""
    count: int = 1
    index: int = 0
    cluster: str = ""

    @classmethod
    def find(cls, flags: Mapping[str, str], environment: Mapping[str, str]) -> "Membership":
        """Read the membership: flags first, then the environment, then SLURM.

        The environment variables are HISTOJAX_COORDINATOR, HISTOJAX_NUM_PROCESSES, HISTOJAX_PROCESS_ID and
        HISTOJAX_CLUSTER.

        Args:
          flags: `coordinator`, `num_processes`, `process_id`; an empty one counts as absent.
          environment: environment variables of the process.

        Raises:
          RunError: only some of the three are given, a value is invalid, or the cluster is unknown.
        """
        names = ("coordinator", "num_processes", "process_id")
        values = {name: flags.get(name) or environment.get(_PREFIX + name.upper(), "") for name in names}
        if any(values.values()):
            if missing := [name for name, value in values.items() if not value]:
                flag_list = ", ".join(f"--{name} (or {_PREFIX}{name.upper()})" for name in missing)
                raise RunError(f"a run of several processes also needs {flag_list}: give all three, or none")
            return cls._explicit(values["coordinator"], values["num_processes"], values["process_id"])
        cluster = environment.get(_PREFIX + "CLUSTER", "")
        if cluster not in ("", "tpu", "slurm"):
            raise RunError(f"{_PREFIX}CLUSTER={cluster} is not one of tpu, slurm")
        # Only a step of srun is one of several processes. A batch script or salloc's shell is a single process, however
        # many tasks it has been granted.
        in_step = environment.get("SLURM_STEP_NUM_TASKS", "1") != "1" and "SLURM_PROCID" in environment
        return cls(cluster=cluster or ("slurm" if in_step else ""))

    @classmethod
    def _explicit(cls, coordinator: str, count: str, index: str) -> "Membership":
        addresses.split(coordinator)
        if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
            raise RunError(
                f"process_id={index} of num_processes={count}: both must be whole numbers, the first below the second"
            )
        return cls(coordinator, int(count), int(index))


def initialise(flags: Mapping[str, str] | None = None) -> None:
    """Join the run's other processes, if there are any. Call it before jax computes anything.

    The environment variable HISTOJAX_START_TIMEOUT is the number of seconds to wait for them (default: 300).

    Args:
      flags: as in `Membership.find`.

    Raises:
      RunError: process 0 does not answer, or the membership is incomplete.
    """
    member = Membership.find(flags or {}, os.environ)
    if member.count == 1 and not member.cluster:
        return
    addresses.given(os.environ)  # a wrong one is reported before the others wait for this process
    timeout = int(os.environ.get(_PREFIX + "START_TIMEOUT", "300"))
    explicit: dict[str, Any] = {}
    if not member.cluster:
        _wait_for_coordinator(member, timeout)
        explicit = {
            "coordinator_address": member.coordinator,
            "num_processes": member.count,
            "process_id": member.index,
            "cluster_detection_method": "deactivate",
        }
    try:
        with _time_to_join(timeout):
            jax.distributed.initialize(
                **explicit,
                initialization_timeout=2 * timeout,
                heartbeat_timeout_seconds=60,
                shutdown_timeout_seconds=30,
            )
    except (RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines() or [""]
        raise RunError(f"the run's processes could not connect to each other ({lines[0][:200]}): {member}") from error
    found = Membership(*compat.membership())
    if found.count > 1:
        _Peers.current = _Peers(found)
        address = _choose_address(found)
        if jax.default_backend() == "cpu":  # this starts the devices
            addresses.check_connections(address, found.index, found.count, compat.key_value_store())
            _drop_output_of_libraries()
            compat.cache_in_every_process()
        hosts.meet(compat.key_value_store(), found.index, timeout)


def _choose_address(member: Membership) -> str:
    """Let the CPUs of the other processes connect to the address at which they reach this host; return it."""
    coordinator, number, index = member.coordinator, member.count, member.index
    try:
        address = addresses.advertised(coordinator, index, number, compat.key_value_store())
    except (OSError, jax.errors.JaxRuntimeError) as error:
        raise RunError(
            f"process {index} of {number}: the address of this host towards {coordinator} was not found ({error}); "
            f"set {addresses.VARIABLE} to the IP address at which the other hosts reach it"
        ) from error
    _log.info("process %d of %d is reached by the others at %s", index, number, address)
    compat.advertise(address)
    return address


@contextlib.contextmanager
def _time_to_join(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer: jax would abort it, and not say that a process is missing."""

    def end() -> None:
        print(
            f"error: not all processes of this run joined it within {seconds:.0f} s. Check that each one runs, "
            "with the same coordinator and number of processes. HISTOJAX_START_TIMEOUT sets the seconds to wait.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _drop_output_of_libraries() -> None:
    """Keep standard output for Python: Gloo prints lines there, from each process, whenever devices first connect."""
    sys.stdout.flush()
    own = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    sys.stdout = open(own, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)  # noqa: SIM115 (until the end)


def _wait_for_coordinator(member: Membership, timeout: int) -> None:
    """Wait until process 0 listens. jax would also wait, but aborts the process if process 0 does not start."""
    if member.index == 0:
        _log.info("process 0 of %d waits for the others at %s", member.count, member.coordinator)
        return
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection(addresses.split(member.coordinator), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError(
                    f"process {member.index} of {member.count}: no answer from {member.coordinator} within "
                    f"{timeout} s ({error}). Is process 0 running, and can this machine reach that address?"
                ) from error
            time.sleep(0.5)


def count() -> int:
    """Return the number of processes of this run; a single process starts no device for it."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def barrier(name: str) -> None:
    """Wait until every process has called this. It is a collective: call it on the main thread only."""
    if count() > 1:
        multihost_utils.sync_global_devices(name)


def of_first(numbers: np.ndarray) -> np.ndarray:
    """Return the numbers of process 0, bit for bit; all processes must call this, with arrays of one shape and type."""
    if count() == 1:
        return numbers
    # As bytes, because jax would round doubles to 32 bits.
    received = multihost_utils.broadcast_one_to_all(np.ascontiguousarray(numbers).view(np.uint8))
    return np.asarray(received).view(numbers.dtype)


def stop_requested() -> bool:
    """Return whether any process has received SIGTERM.

    All processes must call this equally often, and all get the same answer. jax's own preemption service catches the
    signal and lets all processes agree on the call at which they all see it. It counts these calls, so nothing else may
    ask it.
    """
    return multihost_utils.reached_preemption_sync_point(next(_sync_points))


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """End all processes of a run within a minute of each other; each names the process that failed.

    A run of one process is not affected. A process that fails reports the reason to the others. A process that waits
    for a killed one stops waiting. Each then ends at once, because jax's orderly shutdown would wait for dead ones.
    """
    try:
        yield
        code, cause = 0, ""
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        cause = error.code if isinstance(error.code, str) else ""
        if _Peers.current is None or code in (0, EXIT_RESUMABLE):
            _leave()
            raise
    except BaseException as error:
        if _Peers.current is None:
            raise
        if isinstance(error, KeyboardInterrupt):
            code, cause = EXIT_INTERRUPTED, "interrupted; rerun the same command to resume from the last checkpoint"
        else:
            # jax raises a ValueError if the connection between CPUs breaks before the first step.
            if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
                _Peers.current.wait()  # most likely another process is gone; the watch names it and ends this one
            import traceback

            traceback.print_exc()
            code, cause = 1, f"{type(error).__name__}: {error}"
    if code:
        assert _Peers.current is not None
        print(cause, file=sys.stderr, flush=True)
        _Peers.current.fail(cause)
        sys.stdout.flush()
        os._exit(code)
    _leave()


def _leave() -> None:
    peers = _Peers.current
    if peers is not None:
        peers.finish()
        _Peers.current = None
        jax.distributed.shutdown()


class _Peers:
    """The thread that writes this process's heartbeats and watches those of the others.

    Attributes:
      current: the instance of this process while it is one of several, else None.
    """

    current: "_Peers | None" = None

    def __init__(self, member: Membership) -> None:
        self._store = compat.key_value_store()
        self._coordinator, self._count, self._index = member.coordinator, member.count, member.index
        self._ended = threading.Event()
        self._seen: dict[int, tuple[str, float]] = {}
        self._names: dict[int, str] = {}
        self._answers = 0  # number of rounds in which the key-value store has answered
        for watch in (self._watch, self._watch_coordinator):
            threading.Thread(target=watch, name=watch.__name__.strip("_"), daemon=True).start()

    def fail(self, cause: str) -> None:
        """Report to the others why this process ends; process 0 stays until they have had time to read it."""
        self._ended.set()
        with contextlib.suppress(Exception):
            self._store.key_value_set(f"{_FAILED}{self._index}", cause.strip()[:1000] or "no reason given")
        if self._index == 0:
            time.sleep(3 * _BEAT)

    def wait(self) -> None:
        """Block for as long as the watch may need to notice that another process is gone."""
        self._ended.wait(_LOST + 2 * _BEAT)

    def finish(self) -> None:
        """Wait until every process has finished its part, then stop watching."""
        self._store.wait_at_barrier("histojax/finished", 24 * 3600 * 1000)
        self._ended.set()

    def _watch(self) -> None:
        beats = 0
        own_name = f"{socket.gethostname()}, pid {os.getpid()}"
        while not self._ended.is_set():
            beats += 1
            try:
                self._store.key_value_set(f"{_ALIVE}{self._index}", f"{beats} {own_name}", allow_overwrite=True)
                alive = self._read(_ALIVE)
                failed = self._read(_FAILED)
            except Exception:  # process 0 is gone or ending; jax's own client ends this process with its own message
                self._ended.wait(_BEAT)
                continue
            self._answers += 1
            now = time.monotonic()
            for index, heartbeat in alive.items():
                if self._seen.get(index, ("", 0.0))[0] != heartbeat:
                    self._seen[index] = (heartbeat, now)
                    self._names[index] = heartbeat.partition(" ")[2]
            for index, cause in failed.items():
                self._end(f"{self._describe(index)} failed: {cause.removeprefix('error: ')}", 1)
            for index, (_, since) in self._seen.items():
                if now - since > _LOST:
                    self._end(
                        f"{self._describe(index)} has not answered for {_LOST:.0f} s: it was killed, or its machine is "
                        "gone. Checkpoints are intact: rerun the same command to resume from the last one",
                        EXIT_RESUMABLE,
                    )
            self._ended.wait(_BEAT)

    def _watch_coordinator(self) -> None:
        """End this process if process 0 is silent: the calls of `_watch` wait for as long as the network is gone."""
        answers, silent = 0, 0.0
        while not self._ended.wait(_BEAT):  # counted, because a machine that was suspended has missed nothing
            answers, silent = self._answers, silent + _BEAT if self._answers == answers else 0.0
            if silent > _LOST:
                self._end(
                    f"process 0 of {self._count} ({self._coordinator}) has not answered for {_LOST:.0f} s: its machine "
                    "or the network is gone. Checkpoints are intact: rerun the same command to resume from the last",
                    EXIT_RESUMABLE,
                )

    def _read(self, folder: str) -> dict[int, str]:
        """Return what the other processes wrote below a key, by index."""
        values = {int(key.rpartition("/")[2]): value for key, value in self._store.key_value_dir_get(folder)}
        return {index: value for index, value in values.items() if index != self._index}

    def _describe(self, index: int) -> str:
        return f"process {index} of {self._count} ({self._names.get(index, '?')})"

    def _end(self, message: str, code: int) -> None:
        """End this process at once, unless it is ending already."""
        if self._ended.is_set():
            return
        print(f"error: {message}.", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(code)
