"""How long a run in a slow bucket takes from SIGTERM to its end, when its checkpoint is in the bucket.

    python -m benchmarks.buckets --json benchmarks/results/buckets.json

The models and their optimizers have full size; images are small, so that steps are short: arrays and files are those of
a real run. The server is moto's S3 on this machine, behind a proxy through which MB_PER_S pass in both directions.
"""

import argparse
import json
import pathlib
import signal
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import record_results
from benchmarks.checkpoints import EXPERIMENTS, fields
from tests.helpers import buckets
from tests.helpers.processes import Processes
from tests.helpers.programs import last_logged_step


def stop(model: str, megabytes: float, folder: pathlib.Path) -> dict[str, Any]:
    """Train a model in a bucket, send SIGTERM after a few steps, and return the seconds until the run has ended."""
    flags = [f"--config.{name}={value}" for name, value in fields(model).items()]
    with buckets.running("s3") as server, buckets.through_proxy(server) as proxy:
        place = proxy.server.address(model)
        environment = proxy.server.environment | {"HISTOJAX_DATA": str(folder / "data")}
        run = Processes(
            folder / model, pathlib.Path(), 1, 1, *flags, "--config.data.root=", config=EXPERIMENTS[model],
            environment=environment, place=place,
        )  # fmt: skip
        run.until(lambda: any(last_logged_step(path) > 2 for path in (folder / "data/buckets").glob("*/*/*")))
        proxy.bytes_per_second = megabytes * 1e6
        proxy.requests.clear()
        began = time.perf_counter()
        run.started[0].send_signal(signal.SIGTERM)
        (code,) = run.codes()
        seconds = time.perf_counter() - began
        seals = [path for method, path in proxy.requests if method == "PUT" and "/last/" in path and "sha256" in path]
    assert code == 75, run.text()
    assert seals, run.text()
    sizes = [path.stat().st_size for path in (folder / "data/buckets").glob("*/*/*/checkpoints/**/*") if path.is_file()]
    return {"model": model, "mb": sum(sizes) / 1e6, "mb_per_s": megabytes, "seconds": seconds}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both models, and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, required=True, help="results file to write")
    parser.add_argument("--mb_per_s", type=float, default=20.0, help="speed of the bucket (default: 20)")
    args = parser.parse_args(argv)
    rows = {}
    for model in EXPERIMENTS:
        with tempfile.TemporaryDirectory() as folder:
            rows[model] = stop(model, args.mb_per_s, pathlib.Path(folder))
        print(json.dumps(rows[model]), flush=True)
    columns = {"model": "{model}", "checkpoint": "{mb:.0f} MB", "SIGTERM to the end": "{seconds:.1f} s"}
    command = f"python -m benchmarks.buckets --mb_per_s {args.mb_per_s:g} --json {args.json}"
    protocol = f"full-size models at 64×64; S3 on loopback behind a proxy of {args.mb_per_s:g} MB/s; one run each"
    record_results.record_here(args.json, command, "synthetic images", protocol, columns, rows)


if __name__ == "__main__":
    main()
