"""How long a save holds up training, and how long a restart after a kill takes, on this machine.

    python -m benchmarks.checkpoints --json benchmarks/results/checkpoints.json

The models and their optimizers have full size; images are small, so that steps are short: arrays and files are those of
a real run, which saves once per epoch. What a save costs is the time in `Checkpoints.save` plus what the steps lose
while it is written in the background. The share of an epoch is extrapolated to --epoch_images images at the rate that
`benchmarks/results/speed_cpu.json` states for 224×224. A restart is a run of `histojax.main` that is killed after its
first save and started again.
"""

import argparse
import datetime
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks import record_results
from histojax.core import machine
from histojax.core.files import atomic_write
from histojax.distributed import runtime
from histojax.training import checkpoint, experiments
from histojax.training.checkpoint import Checkpoints
from histojax.training.state import all_trees
from histojax.training.trainer import open_trainer
from tests.helpers.processes import Processes
from tests.helpers.programs import last_logged_step

EXPERIMENTS = {"dala_resnet50": "dala_resnet50_breakhis", "ldcsf": "ldcsf_liver"}
_FIELDS = {
    "data.synthetic": "true", "data.image_size": "64", "train.batch_size": "8", "train.log_every": "1",
    "checkpoint.every_epochs": "1", "evaluation.batch_size": "8", "sharding.cpu_devices": "1",
}  # fmt: skip
_TILES = {"data.tiles.size": "112", "data.tiles.stride": "56"}  # of the synthetic tiles


def fields(model: str) -> dict[str, str]:
    """Return the config fields of a measurement, as text."""
    return _FIELDS | (_TILES if model == "ldcsf" else {})


def saves(model: str, rounds: int, steps: int, folder: pathlib.Path) -> dict[str, Any]:
    """Measure steps without a save, a save, and the steps while it is written; return medians of the rounds."""
    trainer = open_trainer(experiments.read(EXPERIMENTS[model], list(fields(model).items())))
    state, batch = trainer.init(), next(iter(trainer.epoch(0)))

    def step() -> float:
        nonlocal state
        began = time.perf_counter()
        state, metrics = trainer.program.train(state, batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - began

    step()  # compiles
    measured: list[dict[str, float]] = []
    series = checkpoint.series(folder, checkpoint.LAST)
    with Checkpoints(series, keep=2) as checkpoints:
        for number in range(1, rounds + 1):
            plain = statistics.median(step() for _ in range(steps))
            began = time.perf_counter()
            checkpoints.save(number, all_trees(state), {"format": checkpoint.FORMAT})
            blocked = time.perf_counter() - began
            during = []
            while number not in checkpoints.steps():  # until its checksums are on disk
                during.append(step())
            written = time.perf_counter() - began
            lost = blocked + max(0.0, sum(during) - plain * len(during))
            measured.append({"step": plain, "blocked": blocked, "written": written, "lost": lost})
            print(
                f"{model}, save {number}: " + ", ".join(f"{k} {v:.2f} s" for k, v in measured[-1].items()), flush=True
            )
        size = sum(path.stat().st_size for path in (series / str(rounds)).rglob("*") if path.is_file())
    measured = measured[1:]  # orbax prepares itself in the first one
    return {key: _spread([each[key] for each in measured]) for key in measured[0]} | {"bytes": size}


def restart(model: str, folder: pathlib.Path) -> float:
    """Kill a run after its first save and start it again; return the seconds until its first new step is logged."""
    words = [f"--config.{key}={value}" for key, value in fields(model).items()]
    words += ["--config.train.epochs=100", "--config.data.root="]
    run, config = folder / "run", f"configs/{EXPERIMENTS[model]}.py"

    def saved() -> int:
        return max(checkpoint.complete_steps(checkpoint.series(run, checkpoint.LAST)), default=0)

    killed = Processes(run, pathlib.Path(), 1, 1, *words, config=config)
    killed.until(lambda: saved() > 0 and last_logged_step(run) > saved())
    killed.kill()
    began, before = time.perf_counter(), last_logged_step(run)
    again = Processes(run, pathlib.Path(), 1, 1, *words, config=config)
    # A run that resumes drops the lines after its checkpoint; the next line is the first step that it has made.
    again.until(lambda: last_logged_step(run) < before)
    resumed = last_logged_step(run)
    again.until(lambda: last_logged_step(run) > resumed)
    seconds = time.perf_counter() - began
    again.kill()
    print(f"{model}: restarted in {seconds:.1f} s", flush=True)
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="results file to write; it keeps its tables")
    parser.add_argument("--model", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--rounds", type=int, default=4, help="saves per model; the first one does not count")
    parser.add_argument("--steps", type=int, default=10, help="steps without a save per round")
    parser.add_argument("--epoch_images", type=int, default=1250, help="images of the epoch that is extrapolated to")
    args = parser.parse_args(argv)
    runtime.prepare(1)
    rates = json.loads((record_results.FOLDER / "speed_cpu.json").read_text(encoding="utf-8"))["rows"]
    rows = {}
    for model in args.model:
        with tempfile.TemporaryDirectory(prefix="checkpoints-") as name:
            row = {"model": model} | saves(model, args.rounds, args.steps, pathlib.Path(name))
            row["restart"] = restart(model, pathlib.Path(name))
        row["epoch_images"] = args.epoch_images
        row["epoch_seconds"] = args.epoch_images / rates[f"step_{model}"]["ours"]
        row["epoch_share"] = row["lost"]["median"] / row["epoch_seconds"]
        row["epoch_of_2_percent"] = row["lost"]["median"] / 0.02
        rows[model] = row
    if args.json:
        _record(args, rows)


def _record(args: argparse.Namespace, rows: dict[str, Any]) -> None:
    """Write the rows with their provenance."""
    load = os.getloadavg()[0]
    provenance = {
        "command": "python -m benchmarks.checkpoints --json benchmarks/results/checkpoints.json",
        "data": "synthetic images; random weights",
        "protocol": f"float32, batches of 8 × 64×64, {args.steps} steps and a save per round, "
        f"{args.rounds - 1} counted rounds; one restart; load average at the end {load:.1f}",
        "machine": record_results.describe_machine(machine.describe()),
        "commit": record_results.current_commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    content = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {"tables": {}}
    with atomic_write(args.json) as temporary:
        content = {"provenance": provenance, "tables": content["tables"], "rows": rows}
        temporary.write_text(record_results.dump(content), encoding="utf-8")


def _spread(values: list[float]) -> dict[str, float]:
    q25, median, q75 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q25": q25, "q75": q75}


if __name__ == "__main__":
    main()
