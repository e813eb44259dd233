"""`histojax bench input --processes N`: what a host with N processes reads, each its share of every batch."""

import argparse
import concurrent.futures
import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from histojax.cli.bench import benchmarks, rounds
from histojax.cli.bench.rounds import WorkerProcess
from histojax.core.errors import RunError
from histojax.core.machine import cores
from histojax.distributed.hosts import Host

NAME = "histojax"
_LEAD = 0.5  # seconds in which all processes are busy before a round begins


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Start the processes, measure rounds and return JSON, as `benchmarks.images` does.

    Raises:
      RunError: the processes cannot divide the batch, or one of them failed.
    """
    count = args.processes
    if args.against:
        raise RunError("--processes measures this host alone: drop --against, or measure without --processes")
    if args.batch_size % count:
        raise RunError(f"--batch_size={args.batch_size} does not divide among {count} processes: use a multiple")
    host = Host(count, max(1, cores() // count))
    threads = host.part(args.threads) if args.threads else host.cores
    workers = host.part(args.workers) if args.workers else 0
    spec = benchmarks.input_spec(args) | {"threads": threads, "workers": workers}
    command = [sys.executable, "-m", "histojax.cli.bench.ours"]
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(WorkerProcess(f"process {i}", command, spec | {"share": [i, count]}, {}))
            for i in range(count)
        ]
        measured = [_round(started, args.round_seconds) for _ in range(args.rounds)]
    result = {"root": spec["root"], "images": started[0].facts["images"], "processes": count, "host_cores": cores()}
    row: dict[str, Any] = {
        key: rounds.spread([each[key] for each in measured]) for key in measured[0] if key != "per_process"
    }
    row["per_process"] = rounds.spread([rate for each in measured for rate in each["per_process"]])
    row |= {"threads": threads, "workers": workers, "rounds": measured}
    step = _step(args, row["images_per_second"]["median"]) if args.step else None
    return result | {"contestants": {NAME: row}, "ratios": {}, "step": step}


def _round(started: Sequence[WorkerProcess], seconds: float) -> dict[str, Any]:
    """Let all processes read at the same time; return images/s in total, per process and per processor second."""
    begin = time.monotonic() + _LEAD  # the same clock in all processes
    with concurrent.futures.ThreadPoolExecutor(len(started)) as pool:
        asked = [pool.submit(one.ask, ask="run_between", begin=begin, end=begin + seconds) for one in started]
        time.sleep(max(0.0, begin - time.monotonic()))
        before, since = [one.processor_seconds() for one in started], time.monotonic()
        answers = [one.result() for one in asked]
        after, wall = [one.processor_seconds() for one in started], time.monotonic() - since
    rates = [answer["images"] / answer["seconds"] for answer in answers]
    measured: dict[str, Any] = {"images_per_second": sum(rates), "per_process": rates}
    measured["per_core"] = sum(rates) / cores()
    if None not in before and None not in after:
        own = sum(now[0] - then[0] for now, then in zip(after, before, strict=True) if now and then) / wall
        machine = (after[0][1] - before[0][1]) / wall if after[0] and before[0] else own
        measured |= {"per_processor_second": sum(rates) / own, "cores": own, "others": max(0.0, machine - own)}
    return measured


def _step(args: argparse.Namespace, rate: float) -> dict[str, Any]:
    """Compare the rate with what a training step needs."""
    needed = args.batch_size / (args.step / 1000)
    return {"milliseconds": args.step, "batch_size": args.batch_size, "needed": needed, "headroom": rate / needed}


def text(result: Mapping[str, Any]) -> list[str]:
    """Return the lines that follow the table of a host."""
    row = result["contestants"][NAME]
    rate = row["images_per_second"]["median"]
    makers = f"{row['workers']} workers" if row["workers"] else f"{row['threads']} threads"
    lines = [
        f"per process ({result['processes']}, {makers} each): {row['per_process']['median']:,.0f} images/s",
        f"per host: {rate:,.0f} images/s",
        f"per core ({result['host_cores']}): {row['per_core']['median']:,.0f} images/s",
    ]
    if "per_processor_second" in row:
        lines[-1] += f"; per second of a core's work: {row['per_processor_second']['median']:,.0f} images"
    if step := result["step"]:
        if step["headroom"] < 1:
            verdict = f"it starves, and waits {1 - step['headroom']:.0%} of the time"
        else:
            verdict = f"headroom {step['headroom']:.1f}"
        lines.append(
            f"a step of {step['milliseconds']:g} ms with {step['batch_size']} images needs {step['needed']:,.0f} "
            f"images/s; this host delivers {rate:,.0f}: {verdict}"
        )
    return lines
