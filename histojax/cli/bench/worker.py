"""The worker process of one side of a benchmark: it answers requests and otherwise idles.

histojax and its peers share this module, so it imports neither jax nor torch. A request is one line of JSON on standard
input, `{"ask": METHOD, …}`; the answer is one line of JSON on standard output: the return value of that method.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from data_pipelines.errors import DataError
from histojax.core.errors import RunError

COPY_BYTES = 1 << 28  # size of the copied array: larger than any cache
_SEARCH_SECONDS = 1.5  # time spent looking for the fastest run


class Side(Protocol):
    """The requests that a worker process answers."""

    def facts(self) -> dict[str, Any]:
        """Describe this side: its program and settings. Called once, after the first step."""
        ...

    def run(self, repeats: int) -> dict[str, Any]:
        """Repeat the work `repeats` times; return `seconds` and `images`."""
        ...

    def memory(self) -> dict[str, Any]:
        """Return the peak memory since the first step: `bytes`, and `of`, which is `device` or `process`."""
        ...

    def limits(self) -> dict[str, Any]:
        """Return the limits of the machine: `matmul_flops` and `copy_bytes`, both per second."""
        ...

    def profile(self, repeats: int, folder: str) -> dict[str, Any]:
        """Write a trace of `repeats` repeats to `folder`; return `table`, its text."""
        ...


def serve(make: Callable[[dict[str, Any]], Any]) -> None:
    """Build the side that the command line describes and answer requests until standard input ends.

    Args:
      make: builds a `Side`, or an object with those methods of it that its work needs.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # output of libraries must not mix with the answers

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")

    try:
        side = make(json.loads(sys.argv[1]))
        ready = time.perf_counter()
        facts = side.facts()
        answer(facts | {"facts_seconds": time.perf_counter() - ready})
        reset_memory_peak()
        for line in sys.stdin:
            request = json.loads(line)
            answer(getattr(side, request.pop("ask"))(**request))
    except (RunError, DataError, ModuleNotFoundError) as error:
        answer({"error": str(error)})
        sys.exit(1)


def fastest(compute: Callable[[], Any]) -> float:
    """Return the seconds of the fastest of several runs, without the first.

    Args:
      compute: starts the computation and waits for its result.
    """
    compute()
    seconds: list[float] = []
    while len(seconds) < 2 or sum(seconds) < _SEARCH_SECONDS:
        began = time.perf_counter()
        compute()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def reset_memory_peak() -> None:
    """Reset `memory_peak` where the system allows it, because compilation needs more memory than a step."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def memory_peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
