"""Several processes as one run: how they find each other, agree to stop, and end together.

The engine is `jax.distributed`. Who the others are comes from flags, from the environment that `launch/` sets, from
SLURM or from a Cloud TPU. While the run lasts, a thread of each process tells the others that it lives, through the
key-value store that jax's coordinator (process 0) keeps: jax alone would let a process wait for a dead one in a
collective for as long as its own heartbeat allows, and would not say why the other one died.
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
from jax.experimental import multihost_utils

from histojax.core.errors import RunError

EXIT_RESUMABLE = 75  # exit code (EX_TEMPFAIL): stopped from outside, saved; the same command goes on
_BEAT, _LOST = 2.0, 25.0  # seconds: between signs of life; without one, until a process counts as dead
_ALIVE, _FAILED = "histojax/alive/", "histojax/failed/"
_PREFIX = "HISTOJAX_"
_log = logging.getLogger(__name__)
_questions = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Membership:
    """Which process this is of how many; `cluster` instead where jax finds that out by itself.

    Attributes:
      coordinator: `host:port` of process 0.
      count: processes.
      index: of this one.
      cluster: `slurm` or `tpu`; empty: the three fields above say it.
    """

    coordinator: str = ""
    count: int = 1
    index: int = 0
    cluster: str = ""

    @classmethod
    def find(cls, flags: Mapping[str, str], environment: Mapping[str, str]) -> "Membership":
        """From flags, else from HISTOJAX_COORDINATOR, HISTOJAX_NUM_PROCESSES, HISTOJAX_PROCESS_ID, HISTOJAX_CLUSTER,
        else from SLURM.

        Args:
          flags: `coordinator`, `num_processes`, `process_id`; those that are empty were not given.
          environment: of the process.

        Raises:
          RunError: some of the three are there and some are not, or are no numbers.
        """
        names = ("coordinator", "num_processes", "process_id")
        found = {name: flags.get(name) or environment.get(_PREFIX + name.upper(), "") for name in names}
        if any(found.values()):
            if missing := [name for name, value in found.items() if not value]:
                words = ", ".join(f"--{name} (or {_PREFIX}{name.upper()})" for name in missing)
                raise RunError(f"one run of several processes needs also {words}: give all three, or none")
            return cls._explicit(found["coordinator"], found["num_processes"], found["process_id"])
        cluster = environment.get(_PREFIX + "CLUSTER", "")
        if cluster not in ("", "tpu", "slurm"):
            raise RunError(f"{_PREFIX}CLUSTER={cluster} is not one of tpu, slurm")
        # A step of srun; a batch script alone, or salloc's shell, is one process whatever it has been granted.
        in_step = environment.get("SLURM_STEP_NUM_TASKS", "1") != "1" and "SLURM_PROCID" in environment
        return cls(cluster=cluster or ("slurm" if in_step else ""))

    @classmethod
    def _explicit(cls, coordinator: str, count: str, index: str) -> "Membership":
        host, colon, port = coordinator.rpartition(":")
        if not (host and colon and port.isdigit()):
            raise RunError(f"coordinator '{coordinator}' is not HOST:PORT")
        if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
            raise RunError(f"process_id={index} of num_processes={count}: numbers, the first below the second")
        return cls(coordinator, int(count), int(index))


def initialise(flags: Mapping[str, str] | None = None) -> None:
    """Joins the run's other processes, if there are any; to be called before jax computes anything.

    HISTOJAX_START_TIMEOUT says how many seconds to wait for them (default: 300).

    Args:
      flags: as `Membership.find` takes them.

    Raises:
      RunError: process 0 did not come, or a half-told membership.
    """
    member = Membership.find(flags or {}, os.environ)
    if member.count == 1 and not member.cluster:
        return
    timeout = int(os.environ.get(_PREFIX + "START_TIMEOUT", "300"))
    where: dict[str, Any] = {}
    if not member.cluster:
        _meet(member, timeout)
        where = {
            "coordinator_address": member.coordinator,
            "num_processes": member.count,
            "process_id": member.index,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            **where, initialization_timeout=timeout, heartbeat_timeout_seconds=60, shutdown_timeout_seconds=30
        )
    except (RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines() or [""]
        raise RunError(f"the run's processes did not find each other ({lines[0][:200]}): {member}") from error
    if jax.process_count() > 1:
        _Peers.here = _Peers()


def _meet(member: Membership, timeout: int) -> None:
    """Waits for process 0 to listen: jax would wait, too, but abort where it does not come."""
    if member.index == 0:
        _log.info("process 0 of %d waits for the others at %s", member.count, member.coordinator)
        return
    host, _, port = member.coordinator.rpartition(":")
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError(
                    f"process {member.index} of {member.count}: nobody answers at {member.coordinator} within "
                    f"{timeout} s ({error}). Is process 0 started, and can this machine reach that address?"
                ) from error
            time.sleep(0.5)


def count() -> int:
    """Processes of this run; does not start a device where there is one only."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def barrier(name: str) -> None:
    """Waits until every process is here; main thread only, as it is a collective."""
    if count() > 1:
        multihost_utils.sync_global_devices(name)


def stop_requested() -> bool:
    """Whether SIGTERM has come to any process; all must ask equally often, and get the same answer.

    jax's own preemption service catches the signal, and lets all processes agree on the next question at which all
    of them hear of it.
    """
    return multihost_utils.reached_preemption_sync_point(next(_questions))


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Of several processes, none outlives another by more than a minute, and each says whose failure it was.

    Without others it does nothing. Whoever fails tells the others why; who waits for a process that was killed stops
    waiting. Then the process ends at once, because jax's orderly end would wait for those that are gone.
    """
    try:
        yield
        code, cause = 0, ""
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        cause = error.code if isinstance(error.code, str) else ""
        if _Peers.here is None or code in (0, EXIT_RESUMABLE):
            _leave()
            raise
    except BaseException as error:
        if _Peers.here is None:
            raise
        if isinstance(error, jax.errors.JaxRuntimeError):
            _Peers.here.wait()  # most likely another one is gone, and the watch will end this process saying so
        import traceback

        traceback.print_exc()
        code, cause = 1, f"{type(error).__name__}: {error}"
    if code:
        assert _Peers.here is not None
        print(cause, file=sys.stderr, flush=True)
        _Peers.here.fail(cause)
        sys.stdout.flush()
        os._exit(code)
    _leave()


def _leave() -> None:
    peers = _Peers.here
    if peers is not None:
        peers.finish()
        _Peers.here = None
        jax.distributed.shutdown()


class _Peers:
    """The thread that tells the others of this process, and watches them.

    Attributes:
      here: of this process, while it is one of several.
    """

    here: "_Peers | None" = None

    def __init__(self) -> None:
        # jax has no public door to its key-value store; orbax uses this one, too.
        from jax._src import distributed

        self._store: Any = distributed.global_state.client
        self._index, self._count = jax.process_index(), jax.process_count()
        self._ended = threading.Event()
        self._seen: dict[int, tuple[str, float]] = {}
        self._names: dict[int, str] = {}
        threading.Thread(target=self._watch, name="watch-processes", daemon=True).start()

    def fail(self, cause: str) -> None:
        """Tells the others why this process ends; process 0 stays until they have had time to read it."""
        self._ended.set()
        with contextlib.suppress(Exception):
            self._store.key_value_set(f"{_FAILED}{self._index}", cause.strip()[:1000] or "no reason given")
        if self._index == 0:
            time.sleep(3 * _BEAT)

    def wait(self) -> None:
        """Blocks for as long as the watch may need to find out that another process is gone."""
        self._ended.wait(_LOST + 2 * _BEAT)

    def finish(self) -> None:
        """Waits until all processes are done, each with its own part; then nobody is watched any more."""
        self._store.wait_at_barrier("histojax/finished", 24 * 3600 * 1000)
        self._ended.set()

    def _watch(self) -> None:
        beats = 0
        mine = f"{socket.gethostname()}, pid {os.getpid()}"
        while not self._ended.is_set():
            beats += 1
            try:
                self._store.key_value_set(f"{_ALIVE}{self._index}", f"{beats} {mine}", allow_overwrite=True)
                alive = self._read(_ALIVE)
                failed = self._read(_FAILED)
            except Exception:  # process 0 is gone or going; jax's own client ends this process in words of its own
                self._ended.wait(_BEAT)
                continue
            now = time.monotonic()
            for index, sign in alive.items():
                if self._seen.get(index, ("", 0.0))[0] != sign:
                    self._seen[index] = (sign, now)
                    self._names[index] = sign.partition(" ")[2]
            for index, cause in failed.items():
                self._end(f"{self._who(index)} failed: {cause.removeprefix('error: ')}", 1)
            for index, (_, since) in self._seen.items():
                if now - since > _LOST:
                    words = f"{self._who(index)} has not answered for {_LOST:.0f} s: killed, or its machine is gone"
                    self._end(
                        f"{words}. Checkpoints are whole: the same command goes on from the last one", EXIT_RESUMABLE
                    )
            self._ended.wait(_BEAT)

    def _read(self, folder: str) -> dict[int, str]:
        found = {int(key.rpartition("/")[2]): value for key, value in self._store.key_value_dir_get(folder)}
        return {index: value for index, value in found.items() if index != self._index}

    def _who(self, index: int) -> str:
        return f"process {index} of {self._count} ({self._names.get(index, '?')})"

    def _end(self, words: str, code: int) -> None:
        if self._ended.is_set():
            return
        print(f"error: {words}.", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(code)
