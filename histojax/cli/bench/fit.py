"""The largest batch that fits into memory: foretold by the compiler, then run."""

import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

from histojax.cli.bench.rounds import Contestant
from histojax.core.errors import RunError

_SHARE = 0.9  # of the free memory that is asked for: the program itself and its libraries need some
_SMALLER = 0.9  # after a batch that did not run
_TRIES = 4
_COMPILED = 6  # sizes, at most
_log = logging.getLogger(__name__)


def largest_batch(
    command: list[str], spec: Mapping[str, Any], environment: Mapping[str, str], limit_gib: float
) -> dict[str, Any]:
    """Finds it by compiling a few sizes, and starts a process that runs it.

    Each size is where the line through the memory of the two before it reaches the limit.

    Args:
      command: of our side.
      spec: of the step or the prediction, `histojax.cli.bench.ours`; its `batch_size` is the smallest that is tried.
      environment: variables of the process.
      limit_gib: memory that may be taken; 0: what is free, of a device or of this machine.

    Returns:
      `batch_size`, the `foretold_bytes` of it, the `limit_bytes`, and the `peak_bytes` that it took.

    Raises:
      RunError: not even the smallest fits.
    """
    name, smallest = f"histojax {spec['dtype']}", spec["batch_size"]
    with Contestant(name, command, {**spec, "work": "fit", "fits": spec["work"]}, environment) as one:
        on_device, devices = one.facts["limit_bytes"], one.facts["devices"]
        # All virtual devices of a CPU share the machine's memory.
        sharing = 1 if on_device else devices
        free = on_device or _free_memory()
        limit = int(limit_gib * (1 << 30)) if limit_gib else int(free * _SHARE)

        def needs(batch_size: int) -> int:
            found = int(one.ask(ask="needs", batch_size=batch_size)["bytes"]) * sharing
            _log.info("batch of %d: %.2f GiB", batch_size, found / (1 << 30))
            return found

        before, foretold = smallest, needs(smallest)
        if foretold > limit:
            raise RunError(f"a batch of {smallest} needs {foretold / (1 << 30):.4f} GiB of {limit / (1 << 30):.4f} GiB")
        line, n = {smallest: foretold}, 2 * smallest
        for _ in range(_COMPILED):
            line[n] = needs(n)
            each = max((line[n] - line[before]) / (n - before), 1.0)
            before, n = n, int(n + (limit - line[n]) / each) // devices * devices
            largest = max(size for size, found in line.items() if found <= limit)
            if n <= largest or n in line:
                break
    n, foretold = largest, line[largest]
    for _ in range(_TRIES):
        try:
            with Contestant(name, command, {**spec, "batch_size": n}, environment) as one:
                one.ask(ask="run", repeats=2)
                peak = one.ask(ask="memory")["bytes"]
            return {"batch_size": n, "foretold_bytes": foretold, "limit_bytes": limit, "peak_bytes": peak}
        except RunError as error:
            _log.info("batch of %d did not run: %s", n, str(error).splitlines()[0])
            n = int(n * _SMALLER) // devices * devices
            if n < smallest:
                break
    raise RunError(f"no batch ran that should fit into {limit / (1 << 30):.2f} GiB; the last one tried was of {n}")


def _free_memory() -> int:
    """Bytes that this machine can give."""
    if sys.platform == "linux":
        with open("/proc/meminfo") as file:
            kib = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
        return kib << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
