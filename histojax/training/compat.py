"""Every use in this room of interfaces that are private or undocumented; an upgrade breaks here or nowhere.

These are one attribute of orbax, when it asks about preemption, how it looks for files and names arrays on disk, the
names that XLA gives to the parts of a trace, and the text of a compiled program.
"""

import glob
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from orbax.checkpoint._src.metadata import array_metadata_store

from histojax.core.quiet import quiet_logger

_SHARED_BYTES = 1 << 20  # of an array that several devices write together, each a part
# These contain other operations, whose time would count twice.
_CONTAINERS = ("while", "call", "conditional")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.+?) ([\w-]+)\(")


class CheckpointManager(ocp.CheckpointManager):
    """orbax's manager, which leaves the question whether the run is preempted to this run.

    To answer it, jax counts the calls of each process and lets all stop at a number that the fastest has yet to reach.
    Each save of orbax's own would ask as well, and set the count to the training step. If SIGTERM came just then, the
    agreed number was one that the run had already passed, and the run trained on as if there had been no signal.
    """

    def reached_preemption(self, step: int) -> bool:
        """Return False: `processes.stop_requested` is the only one that asks."""
        return False


def register_arrays(divide: bool = True) -> None:
    """Make orbax divide an array among the devices that hold it only if each part has at least one MiB.

    By default orbax divides every array that several devices hold, so that each device writes a part. For a ResNet50
    on eight devices these are thousands of slices of a few bytes, and a save waits for each of them.

    Args:
      divide: False where process 0 writes alone: parts that other processes should write would be missing.
    """
    default = ocp.type_handlers.get_type_handler(jax.Array)
    handler = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=_SHARED_BYTES,
        use_replica_parallel=divide,
        # It has the arrays' kinds; without it, random keys cannot be restored.
        array_metadata_store=default._array_metadata_store,
    )
    if not divide:  # orbax would miss what other processes say about the arrays
        array_metadata_store.Validator._validate_process_count = lambda self, **_: None
    with quiet_logger("absl"):  # orbax warns about this override, which is intended
        ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)


def take_folder_names_literally() -> None:
    """Let orbax find files in folders such as `run[lr=0.01]`.

    It looks for some files by a pattern, and the class of its paths makes the folder's name a part of the pattern:
    brackets, stars and question marks in the name then match other names, and what is saved cannot be read.
    """
    local = type(epath.Path("/"))
    find = local.glob

    def find_below(self: Any, pattern: str) -> Iterator[Any]:
        path = os.fspath(self)
        return find(type(self)(glob.escape(path)) if path.startswith("/") else self, pattern)

    local.glob = find_below


def count_arrays(item: pathlib.Path) -> int:
    """Count the arrays that can be found in an item of a checkpoint; this reads their names only."""
    base = {"driver": "file", "path": f"{item}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    return sum(key.endswith(b"/.zarray") for key in store.list().result())


def traced_operations(profiles: Iterable[jax.profiler.ProfileData]) -> Iterable[tuple[str, float]]:
    """Yield the name and the seconds of each run of an operation, on devices where there are any, else on the host.

    Operations that only contain others, such as loops, are left out.

    Args:
      profiles: the files of one trace.
    """
    planes = [plane for profile in profiles for plane in profile.planes]
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in devices or planes:
        for name, seconds in _events(plane):
            if name.partition(".")[0] not in _CONTAINERS:
                yield name, seconds


def describe_instructions(hlo: str) -> dict[str, tuple[str, str]]:
    """Return the kind and the result's shape of each instruction of a compiled program, by the instruction's name.

    Args:
      hlo: the program's text, from `jax.stages.Compiled.as_text`.
    """
    described: dict[str, tuple[str, str]] = {}
    roots: dict[str, str] = {}  # per fused computation, where its result comes from
    computation = ""
    for line in hlo.splitlines():
        match = _INSTRUCTION.match(line)
        if match is None:
            if line.endswith("{"):
                computation = line.removeprefix("ENTRY ").lstrip("%").partition(" ")[0]
            continue
        name, shape, opcode = match.groups()
        source = re.search(r'op_name="([^"]*)"', line)
        origin = _origin(source.group(1)) if source else ""
        if origin:
            roots[computation] = origin
        elif called := re.search(r"calls=%?([\w.-]+)", line):
            origin = roots.get(called.group(1), "")
        shape = re.sub(r"\{[^}]*\}|/\*.*?\*/", "", shape)
        if shape.count("[") > 3:
            shape = f"{shape.count('[')} arrays"
        described[name] = f"{opcode}: {origin}" if origin else opcode, shape
    return described


def _events(plane: Any) -> Iterable[tuple[str, float]]:
    """Yield operations of a plane: on CPUs and GPUs events carry their name, on TPUs a line of the plane holds them."""
    for line in plane.lines:
        for event in line.events:
            if event.duration_ns > 0:
                name = dict(event.stats).get("hlo_op", "")
                if not name and line.name == "XLA Ops":
                    name = event.name.partition(" = ")[0].removeprefix("%")
                if name:
                    yield str(name), event.duration_ns / 1e9


def _origin(op_name: str) -> str:
    """Shorten "jit(_train)/transpose(jvp())/dot_general:…" to "dot_general, backward"."""
    path = op_name.partition(":")[0]
    direction = ", backward" if "transpose(" in path else ", forward" if "jvp(" in path else ""
    return path.rpartition("/")[2] + direction
