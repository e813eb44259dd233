"""The largest batch that fits into memory: predicted by the compiler, then confirmed by a run."""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from histojax.cli.bench.rounds import WorkerProcess
from histojax.core.errors import RunError

_FREE_FRACTION = 0.9  # of the free memory: the program and its libraries need the rest
_SHRINK = 0.9  # factor after a batch that did not run
_MAX_RUNS = 4
_MAX_COMPILED = 6  # batch sizes
_log = logging.getLogger(__name__)


def largest_batch(
    command: list[str], spec: Mapping[str, Any], environment: Mapping[str, str], limit_gib: float
) -> dict[str, Any]:
    """Find the largest batch by compiling a few sizes, then run it in a new process.

    Args:
      command: command of the histojax worker.
      spec: step or prediction to fit, see `histojax.cli.bench.ours`; its `batch_size` is the smallest size tried.
      environment: additional environment variables of the process.
      limit_gib: memory limit in GiB; 0: the free memory of a device or of this machine.

    Returns:
      `batch_size`, its predicted memory `foretold_bytes`, `limit_bytes`, and the measured `peak_bytes`.

    Raises:
      RunError: the smallest batch does not fit, or no batch ran.
    """
    name = f"histojax {spec['dtype']}"
    with WorkerProcess(name, command, {**spec, "work": "fit", "fits": spec["work"]}, environment) as process:
        device_bytes, devices = process.facts["limit_bytes"], process.facts["devices"]
        limit = int(limit_gib * (1 << 30)) if limit_gib else int((device_bytes or _free_memory()) * _FREE_FRACTION)
        # All virtual devices of a CPU share the machine's memory.
        sharing = 1 if device_bytes else devices

        def predict(batch_size: int) -> int:
            needed = int(process.ask(ask="needs", batch_size=batch_size)["bytes"]) * sharing
            _log.info("batch of %d: %.2f GiB", batch_size, needed / (1 << 30))
            return needed

        batch_size, predicted = _predicted_largest(predict, spec["batch_size"], devices, limit)
    for _ in range(_MAX_RUNS):
        try:
            with WorkerProcess(name, command, {**spec, "batch_size": batch_size}, environment) as process:
                process.ask(ask="run", repeats=2)
                peak = process.ask(ask="memory")["bytes"]
            return {
                "batch_size": batch_size,
                "foretold_bytes": predicted,
                "limit_bytes": limit,
                "peak_bytes": peak,
            }
        except RunError as error:
            _log.info("batch of %d did not run: %s", batch_size, str(error).splitlines()[0])
            batch_size = int(batch_size * _SHRINK) // devices * devices
            if batch_size < spec["batch_size"]:
                break
    raise RunError(
        f"no batch ran within {limit / (1 << 30):.2f} GiB, although the compiler predicted that it fits; last size "
        f"tried: {batch_size}"
    )


def _predicted_largest(predict: Callable[[int], int], smallest: int, devices: int, limit: int) -> tuple[int, int]:
    """Return the largest batch predicted to fit, and its bytes.

    Each size tried is where the line through the memory of the two sizes before it reaches the limit.
    """
    needed = {smallest: predict(smallest)}
    if needed[smallest] > limit:
        gib = needed[smallest] / (1 << 30)
        raise RunError(f"a batch of {smallest} needs {gib:.4f} GiB of {limit / (1 << 30):.4f} GiB")
    previous, size = smallest, 2 * smallest
    for _ in range(_MAX_COMPILED):
        needed[size] = predict(size)
        per_image = max((needed[size] - needed[previous]) / (size - previous), 1.0)
        previous, size = size, int(size + (limit - needed[size]) / per_image) // devices * devices
        largest = max(tried for tried, count in needed.items() if count <= limit)
        if size <= largest or size in needed:
            break
    return largest, needed[largest]


def _free_memory() -> int:
    """Return the free memory of this machine in bytes."""
    if sys.platform == "linux":
        with open("/proc/meminfo") as file:
            kib = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
        return kib << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
