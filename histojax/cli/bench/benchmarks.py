"""The benchmarks of `histojax bench`: which contestants, what they are asked, what their answers come to."""

import argparse
import contextlib
import logging
import os
import pathlib
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from histojax.cli.bench import fit, rounds
from histojax.cli.bench.rounds import Contestant
from histojax.core.errors import RunError
from histojax.core.machine import cores

PROFILED = 5  # repeats
_HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_log = logging.getLogger(__name__)


def compiled(given: argparse.Namespace, model: str) -> dict[str, Any]:
    """Training steps (`given.work` is step) or predictions (infer) of one model, as JSON."""
    fields = ("work", "options", "batch_size", "image_size", "optimizer")
    common = {name: getattr(given, name) for name in fields} | {"model": model}
    ours_spec = common | {"dtype": given.dtype, "remat": given.remat, "cpu_devices": given.cpu_devices}
    name = f"histojax {given.dtype}"
    environment = _HUGE if given.huge_pages in ("ours", "both") else {}
    if given.against or given.profile:  # another process needs a part of a GPU, too
        environment = environment | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    plain = environment
    with contextlib.ExitStack() as stack:
        cold = None
        if given.startup:
            cache = stack.enter_context(rounds.empty_cache())
            environment = plain | {"JAX_COMPILATION_CACHE_DIR": cache}
            _log.info("%s: first start, compiling", name)
            with Contestant(name, _ours(), ours_spec, environment) as one:
                cold = one.facts
        ours = stack.enter_context(Contestant(name, _ours(), ours_spec, environment))
        sides = [ours]
        dtypes = {name: given.dtype}
        for dtype in given.peer_dtype if given.against else ():
            device = _torch_device(ours.facts["platform"])
            peer = f"torch {dtype}" + (" compiled" if given.peer_compile else "")
            spec = common | {"dtype": dtype, "compile": given.peer_compile, "device": device, "cores": cores()}
            tunables = _HUGE if given.huge_pages == "both" else {}
            sides.append(stack.enter_context(_torch(peer, spec, tunables)))
            dtypes[peer] = dtype
        measured = rounds.measure(sides, given.rounds, given.round_seconds, _log.info)
        memory = {one.name: one.ask(ask="memory") for one in sides}
        limits = {one.name: one.ask(ask="limits") for one in sides}
        result: dict[str, Any] = {"model": model, "flops_per_image": ours.facts["flops_per_image"], "contestants": {}}
        for one in sides:
            peak = max(limits[n]["matmul_flops"] for n in dtypes if dtypes[n] == dtypes[one.name])
            result["contestants"][one.name] = _row(one, measured[one.name], result["flops_per_image"], peak) | {
                "dtype": dtypes[one.name],
                "memory_bytes": memory[one.name]["bytes"],
                "memory_of": memory[one.name]["of"],
                "matmul_flops_per_second": limits[one.name]["matmul_flops"],
                "copy_bytes_per_second": limits[one.name]["copy_bytes"],
            }
        row = result["contestants"][name]
        row["bytes_per_second"] = ours.facts["bytes_per_repeat"] / row["seconds"]["median"]
        row["share_of_copy"] = row["bytes_per_second"] / max(one["copy_bytes"] for one in limits.values())
        row["cold_start_seconds"] = cold and cold["start_seconds"]
        row["compile_seconds"] = cold and cold["compile_seconds"]
        if not given.startup:
            row["start_seconds"] = None  # whether it compiled depends on what was there
        result["ratios"] = {peer: rounds.ratio(measured[name], measured[peer]) for peer in dtypes if peer != name}
        if given.profile:
            folder = given.profile.expanduser().absolute() / f"{given.work}-{model}"
            traced = ours
            if ours.facts["platform"] == "gpu":  # not the one that was measured, because it is a little slower
                apart = ours_spec | {"disable_command_buffers": True}
                traced = stack.enter_context(Contestant(name, _ours(), apart, environment))
            asked = traced.ask(ask="profile", repeats=PROFILED, folder=str(folder))
            result["profile"] = {"folder": str(folder), "table": asked["table"]}
    if given.find_batch:  # alone on the machine
        result["fit"] = fit.largest_batch(_ours(), ours_spec, plain, given.memory_gib)
    return result


def images(given: argparse.Namespace) -> dict[str, Any]:
    """Augmented batches of a folder's images, as JSON."""
    fields = ("batch_size", "image_size", "crop_scale", "colour_jitter", "cache", "threads", "workers", "peer_workers")
    spec = {name: getattr(given, name) for name in fields} | {"work": "input"}
    spec["root"] = str(_synthetic() if given.root is None else given.root.expanduser().absolute())
    # What the program wants to know of models is not used.
    ours_spec = spec | {"model": "resnet50", "options": {}, "dtype": "float32", "remat": False, "optimizer": "adamw"}
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(Contestant("histojax", _ours(), ours_spec | {"cpu_devices": 1}, {}))
        sides = [ours]
        if given.against:
            sides.append(stack.enter_context(_torch("torch DataLoader", spec | {"cores": cores()}, {})))
        return {"root": spec["root"], "images": ours.facts["images"]} | _compared(sides, given)


def slide(given: argparse.Namespace) -> dict[str, Any]:
    """Tissue tiles of a whole slide, as JSON."""
    fields = ("mpp", "tile_mpp", "image_size", "batch_size", "threads", "tissue")
    spec = {name: getattr(given, name) for name in fields} | {"slide": str(given.slide.expanduser().absolute())}
    command = [sys.executable, "-m", "histojax.cli.bench.slide"]
    with contextlib.ExitStack() as stack:
        sides = [stack.enter_context(Contestant("histojax", command, spec | {"side": "histojax"}, {}))]
        if given.against:
            for threads in sorted({1, given.threads}):
                name = "deepzoom" if threads == 1 else f"deepzoom, {threads} threads"
                peer = spec | {"side": "deepzoom", "threads": threads}
                sides.append(stack.enter_context(Contestant(name, command, peer, {})))
        facts = {key: sides[0].facts[key] for key in ("images", "mpp")}
        return {"slide": spec["slide"]} | facts | _compared(sides, given)


def machine() -> dict[str, Any]:
    """Where this is."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
    }


def _compared(sides: Sequence[Contestant], given: argparse.Namespace) -> dict[str, Any]:
    """Rounds of all sides, and the first one's rates over those of the others."""
    measured = rounds.measure(sides, given.rounds, given.round_seconds, _log.info)
    ours = measured[sides[0].name]
    return {
        "contestants": {one.name: _row(one, measured[one.name]) for one in sides},
        "ratios": {one.name: rounds.ratio(ours, measured[one.name]) for one in sides[1:]},
    }


def _row(
    one: Contestant, measured: Sequence[Mapping[str, Any]], flops: float = 0.0, peak: float = 0.0
) -> dict[str, Any]:
    keys = [key for key in ("images_per_second", "seconds", "cores", "others") if key in measured[0]]
    row: dict[str, Any] = {key: rounds.spread([each[key] for each in measured]) for key in keys}
    row["rounds"] = list(measured)
    if flops:
        row["flops_per_second"] = flops * row["images_per_second"]["median"]
        row["share_of_matmul"] = row["flops_per_second"] / peak
    kept = ("device", "version", "start_seconds", "first_call_seconds")
    return row | {key: one.facts[key] for key in kept if key in one.facts}


def _ours() -> list[str]:
    return [sys.executable, "-m", "histojax.cli.bench.ours"]


def _torch(name: str, spec: Mapping[str, Any], environment: Mapping[str, str]) -> Contestant:
    folder = rounds.repository()
    if find_spec("torch") is None:
        raise RunError("--against torch: PyTorch is not installed here: pip install -e '.[test]'")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "benchmarks.torch_peer"]
    return Contestant(name, command, spec, {**environment, "PYTHONPATH": path})


def _torch_device(ours: str) -> str:
    if ours not in ("cpu", "gpu"):
        raise RunError(f"--against torch: there is no side of it for a {ours}; without --against ours runs alone")
    return "cuda" if ours == "gpu" else "cpu"


def _synthetic() -> pathlib.Path:
    """Computer-made images of BreakHis's size, made once."""
    from data_pipelines.synthetic.generator import VERSION, SyntheticSpec, generate
    from histojax.core.directories import default_directory

    spec = SyntheticSpec(
        cases_per_subtype=(1,) * 8, images_per_patient=8, magnifications=("100X",), height=460, width=700
    )
    return generate(default_directory() / f"synthetic-v{VERSION}-700x460", spec)


def _processor() -> str:
    def lines() -> Iterator[str]:
        with contextlib.suppress(OSError):
            yield from pathlib.Path("/proc/cpuinfo").read_text().splitlines()

    named = (line.partition(":")[2].strip() for line in lines() if line.startswith("model name"))
    return next(named, platform.processor())
