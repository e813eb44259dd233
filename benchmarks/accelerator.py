"""Compare steps and predictions with compiled PyTorch when a GPU is available for minutes only.

    python -m benchmarks.accelerator --batch_size 256 --json accelerator.json

The sides are those of `histojax bench`. Here all of them start at once, because compilation takes most of the time, and
the rounds are measured when everything is compiled. For exact figures of one model use `histojax bench step|infer`.
"""

import argparse
import json
import logging
import os
import pathlib
import sys
import threading
import time
from typing import Any

from histojax.cli import flags
from histojax.cli.bench import peers, rounds
from histojax.cli.bench.rounds import WorkerProcess
from histojax.core.errors import RunError
from histojax.core.files import atomic_write

MODELS = ("resnet50", "swin_tiny_patch4_window7_224")
WORKS = ("step", "infer")
_log = logging.getLogger("accelerator")

_Sides = dict[tuple[str, str, str], WorkerProcess]  # by side, work and model


def main() -> None:
    """Start all sides, measure their rounds, print and write the results."""
    args = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)7d ms  %(message)s", stream=sys.stdout)
    peers.require("torch")
    sides = _start_all(args)
    results = [_measure(sides, work, model, args) for model in args.models for work in args.works]
    for (who, work, _), side in sides.items():
        if (who, work) == ("ours", "step"):
            results.append({"limits": (limits := side.ask(ask="limits"))})
            _log.info("%s", limits)
            break
    for side in sides.values():
        side.close()
    if args.json:
        with atomic_write(args.json) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", type=flags.comma_list, default=MODELS, metavar="A,B,…", help=f"default: {','.join(MODELS)}"
    )
    parser.add_argument(
        "--works", type=flags.comma_list, default=WORKS, metavar="A,B", help=f"default: {','.join(WORKS)}"
    )
    parser.add_argument("--batch_size", type=int, default=256, help="images per batch (default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=224, help="image side in pixels (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per side (default: %(default)s)")
    parser.add_argument("--round_seconds", type=float, default=1.0, help="seconds per round (default: %(default)s)")
    parser.add_argument(
        "--patience", type=float, default=600.0, help="start nothing new after this many seconds (default: %(default)s)"
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all measurements to FILE")
    return parser


def _start_all(args: argparse.Namespace) -> _Sides:
    """Start all sides in parallel; one that fails is reported and left out."""
    began, sides = time.perf_counter(), _Sides()

    def start_in_order(who: str, model: str, works: tuple[str, ...]) -> None:
        for work in works:
            if time.perf_counter() - began > args.patience:
                _log.info("not started: %s %s %s", who, work, model)
                continue
            try:
                side = _start(who, work, model, args)
            except RunError as error:
                _log.error("%s", error)
                continue
            sides[who, work, model] = side
            _log.info("%s: first repeat after %.0f s", side.name, side.facts["start_seconds"])

    # The works of one of our models start one after the other, so that their autotuning does not compete for the GPU.
    chains = [("ours", model, tuple(args.works)) for model in args.models]
    chains += [("torch", model, (work,)) for model in args.models for work in args.works]
    threads = [threading.Thread(target=start_in_order, args=chain) for chain in chains]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sides


def _start(who: str, work: str, model: str, args: argparse.Namespace) -> WorkerProcess:
    name = f"{who} {work} {model}"
    spec = {"work": work, "model": model, "options": {}, "dtype": "bfloat16", "optimizer": "adamw"}
    spec |= {"batch_size": args.batch_size, "image_size": args.image_size}
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if who == "torch":
        return peers.start_torch(
            name, spec | {"compile": True, "device": "cuda", "cores": os.cpu_count() or 1}, environment
        )
    command = [sys.executable, "-m", "histojax.cli.bench.ours"]
    return WorkerProcess(name, command, spec | {"remat": False, "cpu_devices": 1}, environment)


def _measure(sides: _Sides, work: str, model: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure rounds of both sides of one work and model, as far as they started."""
    pair = [sides[who, work, model] for who in ("ours", "torch") if (who, work, model) in sides]
    measured = rounds.measure(pair, args.rounds, args.round_seconds, lambda line: None)
    result: dict[str, Any] = {"work": work, "model": model, "rounds": measured}
    for side in pair:
        rate = rounds.spread([each["images_per_second"] for each in measured[side.name]])
        result[side.name] = {"facts": side.facts, "memory": side.ask(ask="memory"), "images_per_second": rate}
        _log.info("%-50s %8.0f images/s (%.0f … %.0f)", side.name, rate["median"], rate["q25"], rate["q75"])
    if len(pair) == 2:
        result["ratio"] = rounds.ratio(*(measured[side.name] for side in pair))
        _log.info("ours / torch, %s of %s: %.3f", work, model, result["ratio"]["paired"]["median"])
    return result


if __name__ == "__main__":
    main()
