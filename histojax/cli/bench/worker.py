"""One side of a benchmark: a process that does what it is asked and otherwise idles.

Both sides use this file, so it imports neither jax nor torch. A question is a line of JSON on standard input,
`{"ask": METHOD, …}`; the answer is a line of JSON on standard output, what that method returns.
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

COPY_BYTES = 1 << 28  # of the array that is copied: more than any cache holds
_ENOUGH = 1.5  # seconds in which the fastest run is looked for


class Side(Protocol):
    """What a contestant can be asked."""

    def facts(self) -> dict[str, Any]:
        """Said once, after the first step: what runs here, and how."""
        ...

    def run(self, repeats: int) -> dict[str, Any]:
        """Does it `repeats` times: `seconds`, `images`."""
        ...

    def memory(self) -> dict[str, Any]:
        """Largest memory since the first step, of the device or of this process: `bytes`, `of`."""
        ...

    def limits(self) -> dict[str, Any]:
        """What the machine gives this side: `matmul_flops` and `copy_bytes`, each a second."""
        ...

    def profile(self, repeats: int, folder: str) -> dict[str, Any]:
        """Writes a trace of `repeats` repeats to `folder`: `table`."""
        ...


def serve(make: Callable[[dict[str, Any]], Side]) -> None:
    """Makes the side that the command line describes and answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(what: dict[str, Any]) -> None:
        answers.write(json.dumps(what) + "\n")

    try:
        side = make(json.loads(sys.argv[1]))
        ready = time.perf_counter()
        facts = side.facts()
        answer(facts | {"facts_seconds": time.perf_counter() - ready})
        forget_memory_peak()
        for line in sys.stdin:
            question = json.loads(line)
            answer(getattr(side, question.pop("ask"))(**question))
    except (RunError, DataError, ModuleNotFoundError) as error:
        answer({"error": str(error)})
        sys.exit(1)


def fastest(compute: Callable[[], Any]) -> float:
    """Seconds of the fastest of several runs, which wait for what they compute; not of the first."""
    compute()
    seconds: list[float] = []
    while len(seconds) < 2 or sum(seconds) < _ENOUGH:
        began = time.perf_counter()
        compute()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def forget_memory_peak() -> None:
    """From here on `memory_peak` counts anew, where the system allows it: compilation needs more than a step does."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def memory_peak() -> int:
    """Largest resident memory of this process in bytes."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
