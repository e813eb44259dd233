"""The benchmarks of `histojax bench`: start the sides, measure their rounds, return the results as JSON."""

import argparse
import contextlib
import dataclasses
import logging
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from histojax.cli.bench import fit, peers, rounds
from histojax.cli.bench.rounds import WorkerProcess
from histojax.core.directories import expand_user
from histojax.core.machine import cores

PROFILED_REPEATS = 5
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Side:
    """A worker process of `bench step` or `infer`, and the type that it computes in."""

    process: WorkerProcess
    dtype: str


def compiled(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """Measure the training steps (`args.work` is `step`) or predictions (`infer`) of one model; return JSON."""
    peers.require(args.against)
    fields = ("work", "options", "batch_size", "image_size", "optimizer")
    common = {name: getattr(args, name) for name in fields} | {"model": model}
    spec = common | {"dtype": args.dtype, "remat": args.remat, "cpu_devices": args.cpu_devices}
    name = f"histojax {args.dtype}"
    environment = dict(_HUGE_PAGES) if args.huge_pages in ("ours", "both") else {}
    if args.against or args.profile:  # another process needs a part of the GPU's memory
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    with contextlib.ExitStack() as stack:
        cached, cold = environment, None
        if args.startup:
            cached = environment | {"JAX_COMPILATION_CACHE_DIR": stack.enter_context(rounds.empty_cache())}
            _log.info("%s: first start, compiling", name)
            with WorkerProcess(name, _histojax(), spec, cached) as first_start:
                cold = first_start.facts
        ours = _Side(stack.enter_context(WorkerProcess(name, _histojax(), spec, cached)), args.dtype)
        sides = [ours, *_torch_sides(args, common, ours.process.facts["platform"], stack)]
        result = _compare_models(sides, args)
        row = result["contestants"][name]
        row["cold_start_seconds"] = cold and cold["start_seconds"]
        row["compile_seconds"] = cold and cold["compile_seconds"]
        if not args.startup:
            row["start_seconds"] = None  # it depends on what the compilation cache already held
        if args.profile:
            folder = expand_user(args.profile).absolute() / f"{args.work}-{model}"
            traced = ours.process
            if traced.facts["platform"] == "gpu":  # a separate process: without command buffers it is a little slower
                traced_spec = spec | {"disable_command_buffers": True}
                traced = stack.enter_context(WorkerProcess(name, _histojax(), traced_spec, cached))
            table = traced.ask(ask="profile", repeats=PROFILED_REPEATS, folder=str(folder))["table"]
            result["profile"] = {"folder": str(folder), "table": table}
    if args.find_batch:  # after the other processes have ended
        result["fit"] = fit.largest_batch(_histojax(), spec, environment, args.memory_gib)
    return {"model": model} | result


def _torch_sides(
    args: argparse.Namespace, common: Mapping[str, Any], ours_platform: str, stack: contextlib.ExitStack
) -> Iterator[_Side]:
    """Start a PyTorch process for each of `--peer_dtype`."""
    for dtype in args.peer_dtype if args.against else ():
        device = peers.torch_device(ours_platform)
        name = f"torch {dtype}" + (" compiled" if args.peer_compile else "")
        spec = {**common, "dtype": dtype, "compile": args.peer_compile, "device": device, "cores": cores()}
        environment = _HUGE_PAGES if args.huge_pages == "both" else {}
        yield _Side(stack.enter_context(peers.start_torch(name, spec, environment)), dtype)


def _compare_models(sides: Sequence[_Side], args: argparse.Namespace) -> dict[str, Any]:
    """Measure rounds, memory and machine limits of all sides; the first one is histojax."""
    processes = [side.process for side in sides]
    ours = processes[0]
    measured = rounds.measure(processes, args.rounds, args.round_seconds, _log.info)
    memory = {process.name: process.ask(ask="memory") for process in processes}
    limits = {process.name: process.ask(ask="limits") for process in processes}
    flops = ours.facts["flops_per_image"]
    rows = {}
    for side in sides:
        name = side.process.name
        peak = max(limits[other.process.name]["matmul_flops"] for other in sides if other.dtype == side.dtype)
        rows[name] = _row(side.process, measured[name], flops, peak) | {
            "dtype": side.dtype,
            "memory_bytes": memory[name]["bytes"],
            "memory_of": memory[name]["of"],
            "matmul_flops_per_second": limits[name]["matmul_flops"],
            "copy_bytes_per_second": limits[name]["copy_bytes"],
        }
    row = rows[ours.name]
    row["bytes_per_second"] = ours.facts["bytes_per_repeat"] / row["seconds"]["median"]
    row["share_of_copy"] = row["bytes_per_second"] / max(limit["copy_bytes"] for limit in limits.values())
    ratios = {process.name: rounds.ratio(measured[ours.name], measured[process.name]) for process in processes[1:]}
    return {"flops_per_image": flops, "contestants": rows, "ratios": ratios}


def images(args: argparse.Namespace) -> dict[str, Any]:
    """Measure augmented batches from the images of a folder; return JSON."""
    peers.require(args.against)
    spec = input_spec(args)
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(WorkerProcess("histojax", _histojax(), spec, {}))
        processes = [ours]
        if args.against:
            peer = peers.start_torch("torch DataLoader", spec | {"cores": cores()}, {})
            processes.append(stack.enter_context(peer))
        return {"root": spec["root"], "images": ours.facts["images"]} | _compare(processes, args)


def input_spec(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a worker process of `bench input` reads, and how."""
    fields = ("batch_size", "image_size", "crop_scale", "colour_jitter", "cache", "cache_dir", "workers")
    spec = {name: getattr(args, name) for name in (*fields, "peer_workers")} | {"work": "input"}
    spec |= {"root": str(_synthetic() if args.root is None else expand_user(args.root).absolute())}
    spec |= {"threads": args.threads or cores(), "cpu_devices": 1}
    # The model fields are required by the worker's config but not used.
    return spec | {"model": "resnet50", "options": {}, "dtype": "float32", "remat": False, "optimizer": "adamw"}


def slide(args: argparse.Namespace) -> dict[str, Any]:
    """Measure reading the tissue tiles of a whole slide; return JSON."""
    peers.require(args.against)
    fields = ("mpp", "tile_mpp", "image_size", "batch_size", "threads", "tissue")
    spec = {name: getattr(args, name) for name in fields} | {"slide": str(expand_user(args.slide).absolute())}
    command = [sys.executable, "-m", "histojax.cli.bench.slide"]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(WorkerProcess("histojax", command, spec, {}))]
        for threads in sorted({1, args.threads}) if args.against else ():
            name = "deepzoom" if threads == 1 else f"deepzoom, {threads} threads"
            processes.append(stack.enter_context(peers.start_deepzoom(name, spec | {"threads": threads})))
        facts = {key: processes[0].facts[key] for key in ("images", "mpp")}
        return {"slide": spec["slide"]} | facts | _compare(processes, args)


def _compare(processes: Sequence[WorkerProcess], args: argparse.Namespace) -> dict[str, Any]:
    """Measure rounds of all sides and divide the rates of the first one by those of the others."""
    measured = rounds.measure(processes, args.rounds, args.round_seconds, _log.info)
    ours = measured[processes[0].name]
    return {
        "contestants": {process.name: _row(process, measured[process.name]) for process in processes},
        "ratios": {process.name: rounds.ratio(ours, measured[process.name]) for process in processes[1:]},
    }


def _row(
    process: WorkerProcess, measured: Sequence[Mapping[str, Any]], flops: float = 0.0, peak: float = 0.0
) -> dict[str, Any]:
    """Summarise one side: its rounds, and its FLOP/s if `flops` per image and `peak` FLOP/s are given."""
    keys = [key for key in ("images_per_second", "seconds", "cores", "others") if key in measured[0]]
    row: dict[str, Any] = {key: rounds.spread([each[key] for each in measured]) for key in keys}
    row["rounds"] = list(measured)
    if flops:
        row["flops_per_second"] = flops * row["images_per_second"]["median"]
        row["share_of_matmul"] = row["flops_per_second"] / peak
    facts = ("device", "version", "start_seconds", "first_call_seconds")
    return row | {key: process.facts[key] for key in facts if key in process.facts}


def _histojax() -> list[str]:
    return [sys.executable, "-m", "histojax.cli.bench.ours"]


def _synthetic() -> pathlib.Path:
    """Generate synthetic images of the size of BreakHis images; later calls reuse them."""
    from data_pipelines.synthetic.generator import VERSION, SyntheticSpec, generate
    from histojax.core.directories import default_directory

    spec = SyntheticSpec(
        cases_per_subtype=(1,) * 8, images_per_patient=8, magnifications=("100X",), height=460, width=700
    )
    return generate(default_directory() / f"synthetic-v{VERSION}-700x460", spec)
