"""Contestants in turn, and what their rounds say: medians, spread, ratios. It imports neither jax nor torch."""

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

PAUSE = 0.5  # seconds between rounds, in which the other side's threads go to sleep
_LAST_WORDS = 15  # lines of a contestant that failed


class Contestant:
    """A process that was started and has done its first repeat.

    Attributes:
      facts: what it says of itself, and `start_seconds`: from the start of the process to the end of its first repeat.

    Args:
      name: for people.
      command: of the process; `spec` is its last argument.
      spec: what it is to do.
      environment: variables of its own.

    Raises:
      RunError: it did not get that far, in its own words.
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

    def ask(self, **question: Any) -> dict[str, Any]:
        """What `contestant.Side` answers.

        Raises:
          RunError: it failed, in its own words.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended before; `_answer` says how
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def processor_seconds(self) -> tuple[float, float] | None:
        """What this process with those it started, and what the whole machine has computed so far; Linux only."""
        proc, tick = pathlib.Path("/proc"), os.sysconf("SC_CLK_TCK")
        try:
            user, nice, system, _, _, irq, soft, *_ = map(int, (proc / "stat").read_text().split(maxsplit=9)[1:9])
        except OSError:
            return None
        family, seconds = {self._process.pid}, 0.0
        for folder in sorted((one for one in proc.iterdir() if one.name.isdigit()), key=lambda one: int(one.name)):
            with contextlib.suppress(OSError):  # it has just ended
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(folder.name) in family or int(fields[1]) in family:
                    family.add(int(folder.name))
                    seconds += sum(map(int, fields[11:15])) / tick  # its own, and that of its children that ended
        return seconds, (user + nice + system + irq + soft) / tick

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            if file is not None:
                with contextlib.suppress(BrokenPipeError):
                    file.close()

    def __enter__(self) -> "Contestant":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            words = "".join(self._errors.readlines()[-_LAST_WORDS:]).strip()
            killed = f"was killed by signal {-code}: is the memory enough?" if code < 0 else f"ended with code {code}"
            raise RunError(f"{self.name} {killed}\n{words}".rstrip())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RunError(f"{self.name}: {answer['error']}")
        return answer


def measure(
    contestants: Sequence[Contestant], rounds: int, seconds: float, say: Callable[[str], None]
) -> dict[str, list[dict[str, Any]]]:
    """Rounds of each contestant, in turn; every second time in the opposite order, so that no drift favours one.

    A round begins with a repeat that does not count.

    Args:
      contestants: started.
      rounds: of each.
      seconds: about how long a round takes; each side repeats as often as that needs.
      say: told of each round.

    Returns:
      Of each contestant by name: `images_per_second`, `seconds` of a repeat, `repeats`; on Linux also `cores`, which it
      and processes of its own kept busy, and `others`, which the rest of the machine did meanwhile.
    """
    repeats: dict[str, int] = {}
    for one in contestants:
        for count in (1, 2):  # two warm-ups; the second one tells how long a repeat takes
            took = one.ask(ask="run", repeats=count)["seconds"] / count
        repeats[one.name] = max(1, math.ceil(seconds / took))
    done: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for number in range(rounds):
        for one in contestants if number % 2 == 0 else contestants[::-1]:
            time.sleep(PAUSE)
            # Virtual machines give memory back to their host while a side idles; taking it again is not of the round.
            one.ask(ask="run", repeats=1)
            n = repeats[one.name]
            before, began = one.processor_seconds(), time.perf_counter()
            answer = one.ask(ask="run", repeats=n)
            wall = time.perf_counter() - began
            rate = answer["images"] / answer["seconds"]
            found = {"images_per_second": rate, "seconds": answer["seconds"] / n, "repeats": n}
            if before and (after := one.processor_seconds()):
                own, all_of_it = ((now - then) / wall for now, then in zip(after, before, strict=True))
                found |= {"cores": own, "others": max(0.0, all_of_it - own)}
            done[one.name].append(found)
            say(f"round {number + 1}/{rounds}  {one.name}: {rate:.4g} images/s")
    return dict(done)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    q25, _, q75 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": statistics.median(values), "q25": q25, "q75": q75}


def ratio(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Images/s of ours over theirs: of the medians, and of the rounds that followed each other, with its quartiles."""
    a, b = ([one["images_per_second"] for one in rounds] for rounds in (ours, theirs))
    paired = [x / y for x, y in zip(a, b, strict=True)]
    return {"of_medians": statistics.median(a) / statistics.median(b), "paired": spread(paired), "rounds": paired}


def empty_cache() -> tempfile.TemporaryDirectory[str]:
    """A folder for compiled programs that holds none."""
    return tempfile.TemporaryDirectory(prefix="histojax-bench-")


def repository() -> pathlib.Path:
    """The folder that holds `benchmarks/torch_peer.py`.

    Raises:
      RunError: this is an installed package without it.
    """
    folder = pathlib.Path(__file__).parents[3]
    if not (folder / "benchmarks" / "torch_peer.py").is_file():
        raise RunError(
            "--against torch: PyTorch's side is benchmarks/torch_peer.py of the repository, not of the installed "
            "package. Clone it, pip install -e '.[test]' there, and run again; without --against ours runs alone"
        )
    return folder
