"""The long form of tests/distributed/chaos_test.py: kill -9 at bad moments, many times, of everything that resumes.

    python -m benchmarks.chaos --json benchmarks/results/kills_long.json

kills training runs on 1 to 4 processes and changing devices, runs in a bucket whose every start is on a machine without
its files, predictions, features and cohorts of slides. One part stops runs with SIGTERM, as clusters do. `--only NAME`
runs one part, and the file keeps the others.

Prints each kill. For a run it counts images that were lost or seen twice, what was left behind and, on the same
devices, which final arrays differ from those of the undisturbed run; of other commands the output must have the same
bytes. Exit code 1 if anything is wrong.
"""

import argparse
import collections
import json
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import record_results
from histojax.core.errors import EXIT_RESUMABLE
from histojax.storage.bucket import Bucket
from histojax.storage.mirror import SEAL, Mirror
from tests.conftest import ROOT
from tests.helpers import buckets, planted, quick_run, warm_start
from tests.helpers.chaos import MOMENTS, Chaos, chaos, leftovers
from tests.helpers.chaos_program import FOLDER
from tests.helpers.processes import Processes
from tests.helpers.programs import arrays, last_logged_step, small_ldcsf_run

TOPOLOGIES = [(1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (4, 1)]  # processes, and devices of each
BUCKET_MOMENTS = ("publishing", "sealing", "any")
VIT_RUN = ROOT / "tests" / "fixtures" / "runs_of_0_1" / "vit"
_EPOCHS = 4  # between two kills, at most
COLUMNS = {
    "what was killed": "{what}",
    "kills": "{kills}",
    "moments": "{moments}",
    "result": "{result}",
    "left behind": "{left}",
}
Row = dict[str, Any]


def main() -> None:
    """Run the parts and write their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts (default: all)")
    parser.add_argument("--kills", type=int, help="kills of each part (default: 50 to 160)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="results file to write")
    given = parser.parse_args()
    rows: dict[str, Row] = {}
    if given.json is not None and given.json.exists():
        rows = json.loads(given.json.read_text())["rows"]
    for name in given.only:
        part, kills = PARTS[name]
        with tempfile.TemporaryDirectory(prefix=f"chaos-{name}-") as place:
            row = part(pathlib.Path(place), given.kills or kills, random.Random(given.seed))
            rows[name] = row | {"commit": record_results.current_commit()}  # the file's is that of its last part
        print(name, rows[name], flush=True)
        if given.json is not None:
            record_results.record_here(
                given.json,
                "python -m benchmarks.chaos --json benchmarks/results/kills_long.json",
                "computer-made images and slides",
                "kill -9, or SIGTERM where it says so, then the same command again; tiny models; hosts are "
                "processes of one machine",
                COLUMNS,
                rows,
            )
    sys.exit(not all(row["as_expected"] for row in rows.values()))


def _say(line: str) -> None:
    print(line, flush=True)


# ---- Training runs --------------------------------------------------------------------------------------------------


def runs(folder: pathlib.Path, kills: int, draw: random.Random) -> Row:
    """Kill training runs on the same devices: the final arrays are those of the undisturbed run, bit for bit."""
    undisturbed, result = _killed(folder, kills, draw, [(1, 2)])
    return _of_run("training, one process with two devices", result, undisturbed, leftovers(result.workdir))


def runs_on_changing_devices(folder: pathlib.Path, kills: int, draw: random.Random) -> Row:
    """Kill training runs that change their devices and processes at each start.

    Other devices sum in another order, and over many steps that grows as in any two runs. What must hold is that each
    epoch has each image once.
    """
    undisturbed, result = _killed(folder, kills, draw, TOPOLOGIES)
    what = "training, each start on other devices: 1 to 4, of 1 to 4 processes"
    return _of_run(what, result, undisturbed, leftovers(result.workdir), bitwise=False)


def _undisturbed(folder: pathlib.Path, least: int, topology: tuple[int, int]) -> tuple[pathlib.Path, str, pathlib.Path]:
    """Train a little more than the least number of epochs; return images, the flag for the epochs, work directory."""
    images = quick_run.images(folder / "images", 5)
    flag = f"--config.train.epochs={least + 10}"
    workdir = folder / "undisturbed" / "run"
    Processes(workdir, images, *topology, flag).finish()
    return images, flag, workdir


def _killed(
    folder: pathlib.Path, kills: int, draw: random.Random, topologies: list[tuple[int, int]]
) -> tuple[pathlib.Path, Chaos]:
    images, epochs, undisturbed = _undisturbed(folder, _EPOCHS * kills, topologies[0])
    moments = [MOMENTS[i % len(MOMENTS)] for i in range(kills)]
    result = chaos(folder / "chaos", images, moments, topologies, draw.randrange(1000), epochs, report=_say)
    return undisturbed, result


def stopped_runs(folder: pathlib.Path, kills: int, draw: random.Random) -> Row:
    """Stop training runs by SIGTERM to all their processes at once: each time they save and end with exit code 75."""
    images, epochs, undisturbed = _undisturbed(folder, 3 * _EPOCHS * kills, (2, 1))
    result = Chaos(folder / "chaos" / "run", folder / "batches")
    result.batches.mkdir()

    def start() -> Processes:
        return Processes(
            result.workdir, images, 2, 1, epochs, module="tests.helpers.chaos_program",
            environment={FOLDER: str(result.batches)},
        )  # fmt: skip

    others = 0
    for number in range(kills):
        run, step = start(), last_logged_step(result.workdir)
        run.until(lambda step=step: last_logged_step(result.workdir) >= step + 2)
        time.sleep(draw.uniform(0, 0.5))
        for process in run.started:
            process.send_signal(signal.SIGTERM)
        result.kills.append(("SIGTERM in training", last_logged_step(result.workdir)))
        codes = run.codes()
        others += codes != [EXIT_RESUMABLE] * 2
        _say(f"{number + 1}: step {result.kills[-1][1]}, exit codes {codes}")
        if codes == [0, 0]:
            break
    start().finish()
    row = _of_run("training, two processes, stopped and not killed", result, undisturbed, leftovers(result.workdir))
    row["result"] += f"; {others} stops without a save and exit code {EXIT_RESUMABLE}"
    return row | {"as_expected": row["as_expected"] and not others}


def runs_in_a_bucket(folder: pathlib.Path, kills: int, draw: random.Random) -> Row:
    """Kill runs in a bucket; each start is on machines that have none of its files."""
    images, epochs, undisturbed = _undisturbed(folder, _EPOCHS * kills, (2, 1))
    result = Chaos(folder / "fetched" / "run", folder / "batches")
    result.batches.mkdir()
    with buckets.running("s3") as server, buckets.through_proxy(server) as proxy:
        place = proxy.server.address("chaos/run")
        environment = proxy.server.environment | {FOLDER: str(result.batches)}
        with pytest.MonkeyPatch.context() as patch, proxy.server.used(patch):

            def start(number: int) -> Processes:
                machines = [{"HISTOJAX_DATA": str(folder / f"machine-{number}-{i}")} for i in range(2)]
                return Processes(
                    folder / "run", images, 2, 1, epochs, module="tests.helpers.chaos_program",
                    environment=environment, place=place, machines=machines,
                )  # fmt: skip

            for number in range(kills):
                moment = BUCKET_MOMENTS[number % len(BUCKET_MOMENTS)]
                seen, began, delay = len(proxy.requests), time.monotonic(), draw.uniform(2, 10)
                run = start(number)

                def reached(moment: str = moment, seen: int = seen, began: float = began, delay: float = delay) -> bool:
                    if moment == "any":
                        return time.monotonic() - began > delay
                    written = [path for method, path in proxy.requests[seen:] if method == "PUT"]
                    return any("/checkpoints/" in path and (moment != "sealing" or SEAL in path) for path in written)

                while run.alive() and not reached():
                    time.sleep(0.002)
                if not run.alive():
                    assert all(process.wait() == 0 for process in run.started), run.text()
                    break  # it has ended
                run.kill()
                steps = [int(key.split("/")[2]) for key in Bucket(place).list("checkpoints/last/") if SEAL in key]
                result.kills.append((moment, max(steps, default=0)))
                _say(f"{number + 1}: {moment}, step {result.kills[-1][1]}")
                for machine in folder.glob("machine-*"):
                    shutil.rmtree(machine)
            start(kills).finish()
            keys = Bucket(place).list()
            Mirror(place, result.workdir, folder / "fetched" / "index.json").pull()
    sealed = {key.removesuffix(SEAL) for key in keys if key.endswith(SEAL)}
    left = [key for key in keys if "tmp" in key or ".owner" in key]
    left += [key for key in keys if key.startswith("checkpoints/") and "/".join(key.split("/")[:3]) + "/" not in sealed]
    return _of_run("training in a bucket, each start on two new machines", result, undisturbed, left)


def _of_run(what: str, result: Chaos, undisturbed: pathlib.Path, left: list[str], *, bitwise: bool = True) -> Row:
    stream, count = result.stream()
    epochs = [stream[i : i + count] for i in range(0, len(stream) - count + 1, count)]
    broken = sum(sorted(epoch) != sorted(epochs[0]) or len(set(epoch)) != count for epoch in epochs)
    found = f"{len(epochs)} epochs of {count} images, {broken} with an image lost or seen twice"
    theirs, ours = arrays(undisturbed, "last"), arrays(result.workdir, "last")
    assert theirs.keys() == ours.keys()
    differing = sum(value.tobytes() != ours[key].tobytes() for key, value in theirs.items())
    if bitwise:
        found += f"; {differing} of {len(ours)} final arrays differ from the undisturbed run's"
    return {
        "what": what,
        "kills": len(result.kills),
        "moments": _counted(moment for moment, _ in result.kills),
        "result": found,
        "left": ", ".join(left) or "nothing",
        "as_expected": not (broken or left or (bitwise and differing)),
    }


def _counted(moments: Any) -> str:
    return ", ".join(f"{n} × {moment}" for moment, n in collections.Counter(moments).items())


# ---- Other commands -------------------------------------------------------------------------------------------------


def predictions(folder: pathlib.Path, kills: int, draw: random.Random) -> Row:
    """Kill `histojax predict` on a list of many images."""
    words = ["predict", str(VIT_RUN), str(_list_of_images(folder, 6000))]
    return _of_command("histojax predict", words, "out.csv", folder, kills, draw)


def features(folder: pathlib.Path, kills: int, draw: random.Random) -> Row:
    """Kill `histojax embed` on a list of many images."""
    words = ["embed", str(VIT_RUN), str(_list_of_images(folder, 6000))]
    return _of_command("histojax embed", words, "out.parquet", folder, kills, draw)


def cohorts(folder: pathlib.Path, kills: int, draw: random.Random) -> Row:
    """Kill `histojax slide` on a cohort."""
    run = small_ldcsf_run(folder / "model")
    (folder / "slides").mkdir()
    for i in range(6):
        planted.write_slide(folder / "slides" / f"{i}.tif", i / 6, i)
    small = ["--min_tumor_mm2=0", "--min_tissue_mm2=0.01", "--block_um=80", "--hot_spot_um=120", "--resamples=200"]
    return _of_command(
        "histojax slide", ["slide", str(run), str(folder / "slides"), *small], "out", folder, kills, draw
    )


def _list_of_images(folder: pathlib.Path, count: int) -> pathlib.Path:
    pictures = sorted(quick_run.images(folder / "images", 5).rglob("*.png"))
    rows = "".join(f"{pictures[i % len(pictures)]},{i}\n" for i in range(count))
    (folder / "list.csv").write_text(f"path,image_id\n{rows}")
    return folder / "list.csv"


def _of_command(what: str, words: list[str], output: str, folder: pathlib.Path, kills: int, draw: random.Random) -> Row:
    """Kill a command at random moments until its output is there, compare that, and begin again."""

    def start(place: pathlib.Path) -> warm_start.Process:
        with open(folder / "log", "w") as log:
            return warm_start.Process(
                [sys.executable, "-m", "histojax", *words, "--output", str(place / output)], log, log
            )

    def content(place: pathlib.Path) -> dict[str, bytes]:
        # Of a slide, `slide.json` and `slides.csv` hold the seconds that it took.
        paths = (path for path in place.rglob("*") if path.is_file() and path.name not in ("slide.json", "slides.csv"))
        return {str(path.relative_to(place)): path.read_bytes() for path in paths}

    for name in ("first", "undisturbed"):  # the first one also compiles
        (folder / name).mkdir()
        began = time.monotonic()
        assert start(folder / name).wait() == 0, (folder / "log").read_text()
        seconds = time.monotonic() - began
    expected = content(folder / "undisturbed")
    done = rounds = 0
    different: list[str] = []
    while done < kills:
        place = folder / f"round-{rounds}"
        place.mkdir()
        while True:
            process, until = start(place), time.monotonic() + draw.uniform(0.3, 0.9) * seconds
            # The last start of a round is not killed.
            while process.poll() is None and (done == kills or time.monotonic() < until):
                time.sleep(0.005)
            if process.poll() is not None:
                assert process.wait() == 0, (folder / "log").read_text()
                break
            process.kill()
            process.wait()
            done += 1
            if (place / output).is_file():
                break  # it was complete, and the command would say so
        rounds += 1
        found = content(place)
        different += [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
        _say(f"{what}: {done} kills, {rounds} outputs, files that differ: {', '.join(different) or 'none'}")
        shutil.rmtree(place)
    if different:
        raise RuntimeError(f"{what}: files that differ or should not be there: {', '.join(different)}")
    return {
        "what": what,
        "kills": done,
        "moments": "any",
        "result": f"{rounds} outputs, all with the bytes of the undisturbed one",
        "left": "nothing",
        "as_expected": True,
    }


PARTS: dict[str, tuple[Callable[[pathlib.Path, int, random.Random], Row], int]] = {
    "runs": (runs, 100),
    "devices": (runs_on_changing_devices, 100),
    "stops": (stopped_runs, 50),
    "bucket": (runs_in_a_bucket, 75),
    "predict": (predictions, 160),
    "embed": (features, 75),
    "slides": (cohorts, 50),
}


if __name__ == "__main__":
    main()
