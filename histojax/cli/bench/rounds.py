"""Rounds of worker processes that take turns: medians, quartiles, ratios. It imports neither jax nor torch."""

import collections
import contextlib
import json
import math
import os
import pathlib
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from histojax.core.errors import RunError

PAUSE = 0.5  # seconds between rounds, so that the other side's threads fall asleep
_ERROR_LINES = 15  # shown of a worker that failed


class WorkerProcess:
    """A started worker process that has finished its first repeat.

    Attributes:
      name: name of the side in tables and messages.
      facts: the worker's description of itself, and `start_seconds`, the time from the start of the process to the end
        of its first repeat.

    Args:
      name: name of the side in tables and messages.
      command: command of the process; `spec` is appended as its last argument.
      spec: the work to do.
      environment: additional environment variables.

    Raises:
      RunError: the process failed before the end of its first repeat; the message is its own.
    """

    def __init__(self, name: str, command: Sequence[str], spec: Mapping[str, Any], environment: Mapping[str, str]):
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed in close)
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [*command, json.dumps(spec)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env=os.environ | environment,
        )  # fmt: skip
        try:
            self.facts = self._answer()
        except BaseException:
            self.close()
            raise
        self.facts["start_seconds"] = time.perf_counter() - began - self.facts.pop("facts_seconds")

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer; `worker.Side` lists the requests.

        Raises:
          RunError: the process failed; the message is its own.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; `_answer` reports how
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def processor_seconds(self) -> tuple[float, float] | None:
        """Return the processor seconds of this process with its children, and of the whole machine; Linux only."""
        proc, tick = pathlib.Path("/proc"), os.sysconf("SC_CLK_TCK")
        try:
            user, nice, system, _, _, irq, soft, *_ = map(int, (proc / "stat").read_text().split(maxsplit=9)[1:9])
        except OSError:
            return None
        family, seconds = {self._process.pid}, 0.0
        for folder in sorted((one for one in proc.iterdir() if one.name.isdigit()), key=lambda one: int(one.name)):
            with contextlib.suppress(OSError):  # the process has just ended
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(folder.name) in family or int(fields[1]) in family:
                    family.add(int(folder.name))
                    seconds += sum(map(int, fields[11:15])) / tick  # its own and that of its ended children
        return seconds, (user + nice + system + irq + soft) / tick

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            if file is not None:
                with contextlib.suppress(BrokenPipeError):
                    file.close()

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            message = "".join(self._errors.readlines()[-_ERROR_LINES:]).strip()
            if code < 0:
                end = f"was killed by signal {-code}; perhaps the machine ran out of memory"
            else:
                end = f"ended with code {code}"
            raise RunError(f"{self.name} {end}\n{message}".rstrip())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RunError(f"{self.name}: {answer['error']}")
        return answer


def measure(
    sides: Sequence[WorkerProcess], rounds: int, seconds: float, report: Callable[[str], None]
) -> dict[str, list[dict[str, Any]]]:
    """Measure rounds of each side in turn.

    Every second turn runs in the opposite order, so that drift favours no side. A round begins with an
    uncounted repeat.

    Args:
      sides: the started worker processes.
      rounds: rounds per side.
      seconds: approximate length of a round; it sets the repeats per round of each side.
      report: called with a line of text after each round.

    Returns:
      The rounds of each side by its name. A round has `images_per_second`, `seconds` per repeat and `repeats`; on Linux
      also `cores`, the cores kept busy by the side and its children, and `others`, those kept busy by other programs.
    """
    repeats: dict[str, int] = {}
    for side in sides:
        for count in (1, 2):  # two warm-ups; the second one gives the length of a repeat
            repeat_seconds = side.ask(ask="run", repeats=count)["seconds"] / count
        repeats[side.name] = max(1, math.ceil(seconds / repeat_seconds))
    done: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for number in range(rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            time.sleep(PAUSE)
            # A virtual machine gives memory back to its host while a side idles; getting it back must not count.
            side.ask(ask="run", repeats=1)
            n = repeats[side.name]
            before, began = side.processor_seconds(), time.perf_counter()
            answer = side.ask(ask="run", repeats=n)
            wall = time.perf_counter() - began
            rate = answer["images"] / answer["seconds"]
            measured = {"images_per_second": rate, "seconds": answer["seconds"] / n, "repeats": n}
            if before and (after := side.processor_seconds()):
                own, machine = ((now - then) / wall for now, then in zip(after, before, strict=True))
                measured |= {"cores": own, "others": max(0.0, machine - own)}
            done[side.name].append(measured)
            report(f"round {number + 1}/{rounds}  {side.name}: {rate:.4g} images/s")
    return dict(done)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles: `median`, `q25`, `q75`."""
    q25, _, q75 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": statistics.median(values), "q25": q25, "q75": q75}


def ratio(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return images/s of ours divided by theirs: of the medians, and of the paired rounds with quartiles."""
    a, b = ([each["images_per_second"] for each in rounds] for rounds in (ours, theirs))
    paired = [x / y for x, y in zip(a, b, strict=True)]
    return {"of_medians": statistics.median(a) / statistics.median(b), "paired": spread(paired), "rounds": paired}


def empty_cache() -> tempfile.TemporaryDirectory[str]:
    """Return a new empty folder for compiled programs."""
    return tempfile.TemporaryDirectory(prefix="histojax-bench-")
