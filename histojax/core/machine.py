"""Facts about the host, and about the source tree that runs on it."""

import contextlib
import hashlib
import os
import pathlib
import platform
import socket
import subprocess
from typing import Any


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_id() -> str:
    """Return what tells this host from others, since its start: its name and the number of that start."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # only Linux has it
        parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    return " ".join(parts)


def process_space() -> str:
    """Return what tells machines, since their start, and containers apart: within one, a number names one process."""
    parts = [host_id()]
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def is_running(process: int) -> bool:
    """Return whether a process of this machine and container has this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs and belongs to another user
    return True


def describe() -> dict[str, Any]:
    """Return processor, usable cores, operating system and Python version of this machine."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def git_state() -> dict[str, Any] | None:
    """Return `commit` and `dirty` of the source tree that contains this file; None for an installed package."""

    def git(*arguments: str) -> str:
        folder = pathlib.Path(__file__).parent
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        if git("ls-files", "--error-unmatch", __file__):
            return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        pass  # no git, or not a checkout: nothing to record
    return None


def instruction_sets() -> str:
    """Return eight digits that name the processor's architecture and instruction sets, on which programs depend."""
    flags = next((line for line in _cpu_info() if line.startswith(("flags", "Features"))), platform.processor())
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:8]


def _processor() -> str:
    names = (line.partition(":")[2].strip() for line in _cpu_info() if line.startswith("model name"))
    return next(names, platform.processor())


def _cpu_info() -> list[str]:
    """Return the lines of /proc/cpuinfo; none where that file is missing."""
    with contextlib.suppress(OSError):
        return pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return []
