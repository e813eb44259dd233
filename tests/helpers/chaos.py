"""Kill the processes of a run at bad moments and restart it, also with other numbers of processes and devices."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import time
from collections.abc import Callable, Sequence

from tests.helpers.chaos_program import FOLDER
from tests.helpers.processes import Processes
from tests.helpers.programs import last_logged_step

MOMENTS = ("preparation", "checkpoint", "step", "any", "evaluation")


@dataclasses.dataclass
class Chaos:
    """Record of a run that was killed and restarted.

    Attributes:
      workdir: work directory of the finished run.
      batches: folder of the files in which `chaos_program` recorded the batches given to training.
      kills: moment of each kill, and the last step logged before it.
    """

    workdir: pathlib.Path
    batches: pathlib.Path
    kills: list[tuple[str, int]] = dataclasses.field(default_factory=list)

    def stream(self) -> tuple[list[int], int]:
        """Return the image at each position of the training stream, and the number of training images.

        Raises:
          AssertionError: a position had different images at different times, or none.
        """
        given: dict[int, int] = {}
        images = 0
        for path in self.batches.iterdir():
            for text in path.read_text().splitlines():
                try:
                    line = json.loads(text)
                except json.JSONDecodeError:
                    continue  # the last line of a killed process
                images = line["images"]
                for row, index in zip(line["rows"], line["index"], strict=True):
                    position = line["batch"] * 8 + row
                    assert given.setdefault(position, index) == index, (path, line)
        assert sorted(given) == list(range(len(given)))
        return [given[position] for position in range(len(given))], images


def chaos(
    folder: pathlib.Path,
    images: pathlib.Path,
    moments: Sequence[str],
    topologies: list[tuple[int, int]],
    seed: int,
    *more: str,
    report: Callable[[str], None] = lambda _: None,
) -> Chaos:
    """Run the tiny config until it is finished, killing it at each of the moments.

    Args:
      folder: parent of all files, including prepared data, so that preparation is disturbed as well.
      images: dataset root.
      moments: one of `MOMENTS` per kill.
      topologies: pairs of processes and devices per process. Each start draws one; it differs from the previous one
        if there are several. The last start, which is not killed, takes the first pair.
      seed: seed of topologies and waiting times.
      more: further flags of the run.
      report: called with a line for each kill.
    """
    draw = random.Random(seed)
    result = Chaos(folder / "run", folder / "batches")
    result.batches.mkdir(parents=True)
    environment = {FOLDER: str(result.batches), "HISTOJAX_DATA": str(folder / "data")}

    def start(count: int, devices: int) -> Processes:
        module = "tests.helpers.chaos_program"
        return Processes(result.workdir, images, count, devices, *more, module=module, environment=environment)

    previous: tuple[int, int] | None = None
    for number, moment in enumerate(moments):
        previous = count, devices = draw.choice([pair for pair in topologies if pair != previous] or topologies)
        run = start(count, devices)
        if moment == "preparation" and number:
            _remove_prepared(folder / "data", draw)
        reached = _reached(moment, result.workdir, folder / "data", draw)
        deadline = time.monotonic() + 300
        while run.alive() and not reached():
            assert time.monotonic() < deadline, run.text()
            time.sleep(0.002)
        if not run.alive():
            assert all(process.wait() == 0 for process in run.started), run.text()
            continue  # the run ended before the moment
        result.kills.append((moment, last_logged_step(result.workdir)))
        run.started[draw.randrange(count)].kill()
        if count > 1:
            time.sleep(draw.uniform(0, 2))  # the others may notice, or are killed as well
        run.kill()
        report(f"{number + 1}: {count} × {devices}, {moment}, step {result.kills[-1][1]}")
    start(*topologies[0]).finish()
    return result


def leftovers(workdir: pathlib.Path) -> list[str]:
    """Return the files that a finished run should not leave behind."""
    return [str(path) for path in workdir.rglob("*") if "tmp" in path.name or path.name.startswith(".")]


def _reached(moment: str, workdir: pathlib.Path, data: pathlib.Path, draw: random.Random) -> Callable[[], bool]:
    """Return a function that is true once the moment to kill has come."""
    delay, started = draw.uniform(0, 14), time.monotonic()
    step = last_logged_step(workdir)

    def now() -> bool:
        if moment == "preparation":
            return any(data.rglob("*incomplete*")) or time.monotonic() - started > 12
        if moment == "checkpoint":
            return any((workdir / "checkpoints").glob("*/*tmp*")) and last_logged_step(workdir) > step
        if moment == "step":
            return last_logged_step(workdir) >= step + 2
        if moment == "evaluation":  # the last step of an epoch is logged before it
            return last_logged_step(workdir) >= step + 4
        return time.monotonic() - started > delay

    return now


def _remove_prepared(data: pathlib.Path, draw: random.Random) -> None:
    """Remove the prepared data in most cases, so that the run prepares them again."""
    if draw.random() < 0.7:
        shutil.rmtree(data / "prepared", ignore_errors=True)
    os.makedirs(data, exist_ok=True)
