"""The processes of a run that share a host, and what each of them may use of it.

Settings such as `data.workers` count per host. A host with eight GPUs often has eight processes, and each takes its
part. A host is what has one name since one start: containers with host names of their own count as different hosts.
"""

import dataclasses
import fractions
import hashlib
import os
from collections.abc import Iterable
from typing import Any

from histojax.core import machine

_HOSTS = "histojax/host/"


@dataclasses.dataclass(frozen=True)
class Host:
    """This process's part of its host.

    Attributes:
      processes: number of processes of this run on this host.
      cores: number of cores for this process; processes that may use the same cores divide them.
    """

    processes: int
    cores: int

    def part(self, count: int) -> int:
        """Return this process's part of a number that counts per host, rounded down, at least 1.

        All processes of a host get the same, because the slowest one decides the speed of a step.
        """
        return max(1, count // self.processes)


_here: Host | None = None  # None: the run has a single process


def here() -> Host:
    """Return this process's part of its host."""
    return _here or Host(1, machine.cores())


def meet(store: Any, index: int, timeout: int) -> None:
    """Find out which processes of the run share this host. All processes of the run must call it.

    Args:
      store: the client of the key-value store that all processes share.
      index: index of this process.
      timeout: seconds to wait for the others.
    """
    global _here
    # Each process reads the entries of its own host only: those of thousands of processes would take long.
    folder = f"{_HOSTS}{hashlib.sha256(machine.host_id().encode()).hexdigest()[:16]}/"
    store.key_value_set(f"{folder}{index}", " ".join(map(str, _usable_cores())))
    store.wait_at_barrier("histojax/hosts", 1000 * timeout)
    others = [map(int, cores.split()) for _, cores in store.key_value_dir_get(folder)]
    _here = share(_usable_cores(), others)


def share(own: Iterable[int], processes: Iterable[Iterable[int]]) -> Host:
    """Divide each core by the number of processes that may use it.

    Args:
      own: numbers of the cores that this process may use.
      processes: those of every process of the host, with this one.

    Returns:
      This process's part, rounded down, at least one core.
    """
    everyone = [set(cores) for cores in processes]
    part = sum(fractions.Fraction(1, sum(core in cores for cores in everyone)) for core in own)
    return Host(len(everyone), max(1, int(part)))


def _usable_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(machine.cores()))
