"""Steps and predictions of ResNet50 and Swin-T beside compiled PyTorch, where a GPU is at hand for minutes only.

    python -m benchmarks.accelerator --batch_size 256 --json accelerator.json

The sides are those of `histojax bench`; here all are started at once, because compiling takes most of the time, and the
rounds are measured when everything is compiled. Exact figures of one model take `histojax bench step|infer`.
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

from histojax.cli.bench import rounds
from histojax.cli.bench.rounds import Contestant
from histojax.core.errors import RunError
from histojax.core.files import atomic_write

MODELS = ("resnet50", "swin_tiny_patch4_window7_224")
WORKS = ("step", "infer")
_log = logging.getLogger("accelerator")


def main() -> None:
    """Starts, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5, help="of each side")
    parser.add_argument("--round_seconds", type=float, default=1.0)
    parser.add_argument("--patience", type=float, default=600.0, help="seconds after which nothing more is started")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)7d ms  %(message)s", stream=sys.stdout)
    began, sides = time.perf_counter(), {}
    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(rounds.repository()), os.environ.get("PYTHONPATH", "")])),
    }

    def start(who: str, work: str, model: str) -> None:
        if time.perf_counter() - began > given.patience:
            return _log.info("not started: %s %s %s", who, work, model)
        common: dict[str, Any] = {
            "work": work,
            "model": model,
            "options": {},
            "dtype": "bfloat16",
            "optimizer": "adamw",
        }
        common |= {"batch_size": given.batch_size, "image_size": given.image_size}
        if who == "ours":
            spec, module = common | {"remat": False, "cpu_devices": 1}, "histojax.cli.bench.ours"
        else:
            cores = os.cpu_count() or 1
            spec, module = common | {"compile": True, "device": "cuda", "cores": cores}, "benchmarks.torch_peer"
        try:
            side = Contestant(f"{who} {work} {model}", [sys.executable, "-m", module], spec, environment)
        except RunError as error:
            return _log.error("%s", error)
        sides[who, work, model] = side
        _log.info("%s: first repeat after %.0f s", side.name, side.facts["start_seconds"])

    def one_after_another(who: str, model: str, works: tuple[str, ...]) -> None:
        for work in works:
            start(who, work, model)

    # Ours of a model one after the other: convolutions and products that are tried should not wait for each other.
    chains = [("ours", model, WORKS) for model in MODELS] + [("torch", m, (w,)) for m in MODELS for w in WORKS]
    threads = [threading.Thread(target=one_after_another, args=chain) for chain in chains]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results: list[dict[str, Any]] = []
    for model in MODELS:
        for work in WORKS:
            pair = [sides[who, work, model] for who in ("ours", "torch") if (who, work, model) in sides]
            found = rounds.measure(pair, given.rounds, given.round_seconds, lambda line: None)
            result: dict[str, Any] = {"work": work, "model": model, "rounds": found}
            for one in pair:
                rate = rounds.spread([each["images_per_second"] for each in found[one.name]])
                result[one.name] = {"facts": one.facts, "memory": one.ask(ask="memory"), "images_per_second": rate}
                _log.info("%-50s %8.0f images/s (%.0f … %.0f)", one.name, rate["median"], rate["q25"], rate["q75"])
            if len(pair) == 2:
                result["ratio"] = rounds.ratio(*(found[one.name] for one in pair))
                _log.info("ours / torch, %s of %s: %.3f", work, model, result["ratio"]["paired"]["median"])
            results.append(result)
    for side in sides.values():
        if side.name.startswith("ours step"):
            results.append({"limits": (limits := side.ask(ask="limits"))})
            _log.info("%s", limits)
            break
    for side in sides.values():
        side.close()
    if given.json:
        with atomic_write(given.json) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
