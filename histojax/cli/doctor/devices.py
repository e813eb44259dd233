"""The checks of `histojax doctor` that need jax: devices, unused accelerators, communication between devices."""

import functools
import importlib.util
import os
import pathlib
import shutil
import subprocess
import time

import jax
import numpy as np

from histojax.cli.doctor.checks import FAIL, OK, WARN, Finding
from histojax.distributed.sharding import Layout

_GOOGLE, _TPUS = (
    "0x1ae0",
    {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"},
)  # PCI vendor and devices
_SIZES = {"cpu": (1 << 12, 1 << 20, 1 << 24), "": (1 << 12, 1 << 20, 1 << 26)}  # bytes per device, by backend
_REPEATS = 5
_EXTRAS = {"nvidia": "cuda", "tpu": "tpu"}


def devices(dev: pathlib.Path = pathlib.Path("/dev"), sys: pathlib.Path = pathlib.Path("/sys")) -> list[Finding]:
    """Check the devices of jax, and look for accelerators of this host that jax does not use.

    Args:
      dev: folder of the device files.
      sys: folder in which the kernel lists its buses.
    """
    present = accelerators(dev, sys)
    try:
        local = jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # raised if JAX_PLATFORMS names a platform without plugin
        reason = str(error) or "no plugin for the requested platform"
        return [Finding("devices", FAIL, f"jax cannot start a device: {reason}. {_remedy(present)}")]
    platform = jax.default_backend()
    text = f"{len(local)} × {local[0].device_kind} ({platform})"
    if jax.process_count() > 1:
        text += f" here, {jax.device_count()} in {jax.process_count()} processes"
    facts = {"platform": platform, "kind": local[0].device_kind, "local": len(local), "all": jax.device_count()}
    if platform == "cpu" and len(local) > 1:
        text += ", virtual"
    stats = local[0].memory_stats()
    if stats and "bytes_limit" in stats:
        facts["memory_bytes"] = stats["bytes_limit"]
        text += f", {stats['bytes_limit'] / (1 << 30):.1f} GiB each for jax"
    findings = [Finding("devices", OK, text, facts)]
    for maker, names in present.items():
        if platform == "cpu":
            text = f"{', '.join(names)}: present, but jax computes on the CPU. {_remedy({maker: names})}"
            level = WARN if os.environ.get("JAX_PLATFORMS") == "cpu" else FAIL
            findings.append(Finding("devices", level, text, {"unseen": names}))
        elif len(names) > len(local) and jax.process_count() == 1 and maker == "nvidia":
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            reason = (
                "see nvidia-smi for the state of the others" if visible is None else f"CUDA_VISIBLE_DEVICES={visible}"
            )
            text = f"{len(names)} GPUs are present, jax uses {len(local)}: {reason}"
            findings.append(Finding("devices", WARN, text, {"unseen": names}))
    return findings


def accelerators(dev: pathlib.Path, sys: pathlib.Path) -> dict[str, list[str]]:
    """Return the device files of accelerators by maker, `nvidia` or `tpu`.

    Without device files, GPUs are taken from the list of nvidia-smi.
    """
    found: dict[str, list[str]] = {}
    if gpus := sorted(map(str, dev.glob("nvidia[0-9]*"))) or _nvidia_smi():
        found["nvidia"] = gpus
    tpus = sorted(map(str, dev.glob("accel[0-9]*")))
    if not tpus and _has_tpu(sys):
        tpus = sorted(map(str, dev.glob("vfio/[0-9]*")))
    if tpus:
        found["tpu"] = tpus
    return found


def _nvidia_smi() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=5)
    except subprocess.TimeoutExpired:
        return ["nvidia-smi (does not answer)"]
    return [line.partition(" (")[0] for line in done.stdout.splitlines() if line.startswith("GPU ")]


def _has_tpu(sys: pathlib.Path) -> bool:
    def read(path: pathlib.Path) -> str:
        try:
            return path.read_text().strip()
        except OSError:
            return ""

    folders = sys.glob("bus/pci/devices/*")
    return any(read(card / "vendor") == _GOOGLE and read(card / "device") in _TPUS for card in folders)


def _remedy(present: dict[str, list[str]]) -> str:
    """Return what to do about accelerators that jax does not start."""
    requested = os.environ.get("JAX_PLATFORMS", "")
    for maker, names in present.items():
        if requested and maker not in requested and not (maker == "nvidia" and "cuda" in requested):
            return f"JAX_PLATFORMS={requested} excludes them: unset it"
        refused = [name for name in names if os.path.exists(name) and not os.access(name, os.R_OK | os.W_OK)]
        if refused:
            return f"This user may not open {', '.join(refused)}: add the user to the group that owns them"
        plugin = "libtpu" if maker == "tpu" else "jax_cuda12_plugin"
        if importlib.util.find_spec(plugin) is None:
            return f"pip install 'histojax[{_EXTRAS[maker]}]'"
        return (
            "Its plugin is installed but does not start: check the driver's version, and end other programs that use it"
        )
    if requested:
        return f"JAX_PLATFORMS={requested}, but this host has no such accelerator: unset it"
    return "See the message above"


def all_reduce() -> list[Finding]:
    """Check a sum over all devices of all processes, and measure bytes/s by size.

    The rate is that of each device's own link (`2 (n - 1) / n` × bytes / time). It can be compared with the hardware's
    rate for any number of devices.
    """
    count, layout = jax.device_count(), Layout()
    if count == 1:
        return [Finding("all-reduce", OK, "one device: no communication needed")]
    total = jax.jit(lambda x: x.sum(axis=0), out_shardings=layout.replicated)
    expected = count * (count + 1) / 2
    rates: dict[str, float] = {}

    def rows(index: tuple[slice, ...], width: int) -> np.ndarray:
        """Fill row i with i + 1, so that the sum is known: `f32 [rows, width]`."""
        first = np.arange(*index[0].indices(count), dtype=np.float32) + 1
        return np.broadcast_to(first[:, None], (len(first), width))

    for size in _SIZES.get(jax.default_backend(), _SIZES[""]):
        width = size // 4
        values = jax.make_array_from_callback((count, width), layout.batch, functools.partial(rows, width=width))
        for shard in total(values).addressable_shards:
            wrong = np.asarray(shard.data) != expected
            if wrong.any():
                text = (
                    f"the sum over {count} devices is wrong in {wrong.sum()} of {width} places on {shard.device} "
                    f"({np.asarray(shard.data)[wrong][0]}, not {expected}): do not train on them; try fewer devices"
                )
                return [Finding("all-reduce", FAIL, text)]
        began = time.perf_counter()
        for _ in range(_REPEATS):
            values_summed = total(values)
        jax.block_until_ready(values_summed)
        seconds = (time.perf_counter() - began) / _REPEATS
        rates[str(size)] = 2 * (count - 1) / count * size / seconds
    shown = ", ".join(f"{_short(int(size))}: {rate / 1e6:,.0f} MB/s" for size, rate in rates.items())
    processes = "one process" if jax.process_count() == 1 else f"{jax.process_count()} processes"
    text = f"right over {count} devices in {processes}; {shown}"
    return [Finding("all-reduce", OK, text, {"bytes_per_second": rates, "devices": count})]


def _short(size: int) -> str:
    return f"{size >> 10} KiB" if size < 1 << 20 else f"{size >> 20} MiB"
