"""A run whose processes are killed at bad moments and started again, here and there in another number of them."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import time
from collections.abc import Callable

from tests.helpers.chaos_program import FOLDER
from tests.helpers.processes import Processes
from tests.helpers.programs import last_logged_step

MOMENTS = ("preparation", "checkpoint", "step", "any", "evaluation")


@dataclasses.dataclass
class Chaos:
    """What happened to a run.

    Attributes:
      workdir: of the run, which is finished.
      kills: at which moment each kill came, with the step that was logged last.
      batches: what training was given: a folder of `chaos_program`'s files.
    """

    workdir: pathlib.Path
    batches: pathlib.Path
    kills: list[tuple[str, int]] = dataclasses.field(default_factory=list)

    def stream(self) -> tuple[list[int], int]:
        """Image of each position of the training stream, and the number of training images.

        Raises:
          AssertionError: a position was given different images at different times, or none.
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
    kills: int,
    topologies: list[tuple[int, int]],
    seed: int,
    *more: str,
    say: Callable[[str], None] = lambda _: None,
) -> Chaos:
    """Runs the tiny config until it is finished, killing it `kills` times.

    Args:
      folder: for all files; prepared data, too, so that preparing is disturbed as well.
      images: the root of the data.
      kills: how many.
      topologies: (processes, devices of each) to draw from for each start.
      seed: of moments and topologies.
      more: flags of the run.
      say: is told each kill.
    """
    draw = random.Random(seed)
    there = Chaos(folder / "run", folder / "batches")
    there.batches.mkdir(parents=True)
    environment = {FOLDER: str(there.batches), "HISTOJAX_DATA": str(folder / "data")}
    for number in range(kills):
        moment = MOMENTS[number % len(MOMENTS)]
        count, devices = draw.choice(topologies)
        run = Processes(
            there.workdir, images, count, devices, *more, module="tests.helpers.chaos_program", environment=environment
        )
        if moment == "preparation":
            _let_it_prepare_again(folder / "data", draw)
        reached = _reached(moment, there.workdir, folder / "data", draw)
        deadline = time.monotonic() + 300
        while run.alive() and not reached():
            assert time.monotonic() < deadline, run.text()
            time.sleep(0.002)
        if not run.alive():
            assert all(process.wait() == 0 for process in run.started), run.text()  # it got to its end before
        there.kills.append((moment, last_logged_step(there.workdir)))
        run.started[draw.randrange(count)].kill()
        time.sleep(draw.uniform(0, 2))  # the others may notice, or be taken away as well
        run.kill()
        say(f"{number + 1}: {count} × {devices}, {moment}, step {there.kills[-1][1]}")
    count, devices = topologies[0]
    Processes(
        there.workdir, images, count, devices, *more, module="tests.helpers.chaos_program", environment=environment
    ).finish()
    return there


def leftovers(workdir: pathlib.Path) -> list[str]:
    """What a finished run should not leave behind."""
    return [str(path) for path in workdir.rglob("*") if "tmp" in path.name or path.name.startswith(".")]


def _reached(moment: str, workdir: pathlib.Path, data: pathlib.Path, draw: random.Random) -> Callable[[], bool]:
    at, begun = draw.uniform(0, 14), time.monotonic()
    step = last_logged_step(workdir)

    def now() -> bool:
        if moment == "preparation":
            return any(data.rglob("*incomplete*")) or time.monotonic() - begun > 12
        if moment == "checkpoint":
            return any((workdir / "checkpoints").glob("*/*tmp*")) and last_logged_step(workdir) > step
        if moment == "step":
            return last_logged_step(workdir) >= step + 2
        if moment == "evaluation":  # the last step of an epoch is logged before it
            return last_logged_step(workdir) >= step + 4
        return time.monotonic() - begun > at

    return now


def _let_it_prepare_again(data: pathlib.Path, draw: random.Random) -> None:
    if draw.random() < 0.7:
        shutil.rmtree(data / "prepared", ignore_errors=True)
    os.makedirs(data, exist_ok=True)
