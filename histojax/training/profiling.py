"""Traces of the device, and the most expensive operations in them; reading a trace needs no TensorFlow."""

import dataclasses
import logging
import os
import pathlib
import shutil
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
from jax.profiler import ProfileData, ProfileOptions

from histojax.core.errors import RunError
from histojax.core.text_table import text_table
from histojax.training import compat

COUNT = 5  # traced steps
_BEFORE = 3  # steps before them, which are not traced
_BUFFERS = "xla_gpu_enable_command_buffer"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a compiled program.

    Attributes:
      name: the compiler's name.
      kind: what it does, and whether in the forward or the backward pass, if the program's text is given.
      shape: shape of the result.
      seconds: total time of all its runs on all devices.
      runs: number of runs.
      share: fraction of the time of all operations.
    """

    name: str
    kind: str
    shape: str
    seconds: float
    runs: int
    share: float


def disable_command_buffers() -> None:
    """Make traces on GPUs show single operations; call it before jax looks for devices.

    GPUs otherwise run hundreds of operations as one "command buffer". The program stays the same and becomes a few per
    cent slower.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _BUFFERS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_BUFFERS}=".strip()


class Profile:
    """Trace a few steps of a run, after the first ones, which compile; use it in a `with`.

    Args:
      folder: folder of the trace; None: no trace.
    """

    def __init__(self, folder: pathlib.Path | None):
        self._folder = folder
        self._done = 0

    def __enter__(self) -> "Profile":
        return self

    def after_step(self, values: Any, compiled: Callable[[], jax.stages.Compiled]) -> None:
        """Count a step; call it after each. It waits for the device only where the trace starts and ends.

        Args:
          values: the step's outputs.
          compiled: returns the program that the step ran, whose text describes its operations.

        Raises:
          RunError: the profiler cannot start.
        """
        self._done += 1
        if self._folder is None or self._done not in (_BEFORE, _BEFORE + COUNT):
            return
        jax.block_until_ready(values)
        if self._done == _BEFORE:
            start(self._folder)
            return
        jax.profiler.stop_trace()
        text = table(operations(self._folder, compiled().as_text() or ""), COUNT)
        _log.info("%d steps, traced in %s:\n%s", COUNT, self._folder, text)

    def __exit__(self, *_: object) -> None:
        if self._folder is None or self._done >= _BEFORE + COUNT:
            return
        if self._done >= _BEFORE:
            jax.profiler.stop_trace()
        _log.warning("no profile: it needs %d steps, but the run had %d", _BEFORE + COUNT, self._done)


def start(folder: pathlib.Path) -> None:
    """Start a trace; `jax.profiler.stop_trace` ends it.

    Args:
      folder: folder of the trace; an older trace in it is removed.

    Raises:
      RunError: the profiler cannot start.
    """
    shutil.rmtree(folder / "plugins" / "profile", ignore_errors=True)
    options = ProfileOptions()
    options.python_tracer_level = 0  # Python's calls would make the file ten times as large
    try:
        folder.mkdir(parents=True, exist_ok=True)
        jax.profiler.start_trace(folder, profiler_options=options)
    except RuntimeError as error:
        raise RunError(f"the profiler cannot start: {error}") from error


def operations(folder: pathlib.Path, hlo: str = "") -> list[Operation]:
    """Return the operations of a trace, the most expensive first.

    Args:
      folder: the folder given to `start`.
      hlo: the compiled program as text, for `Operation.kind` and `Operation.shape`.

    Raises:
      RunError: the folder has no trace, or the trace has no operation.
    """
    files = sorted(folder.glob("plugins/profile/*/*.xplane.pb"))
    if not files:
        raise RunError(f"{folder}: no trace found (plugins/profile/*/*.xplane.pb)")
    seconds: dict[str, float] = defaultdict(float)
    runs: dict[str, int] = defaultdict(int)
    for name, duration in compat.traced_operations(ProfileData.from_file(str(file)) for file in files):
        seconds[name] += duration
        runs[name] += 1
    if not seconds:
        raise RunError(f"{folder}: the trace has no operation of a compiled program")
    described, total = compat.describe_instructions(hlo), sum(seconds.values())
    return [
        Operation(name, *described.get(name, (name.partition(".")[0], "")), seconds[name], runs[name], took / total)
        for name, took in sorted(seconds.items(), key=lambda item: -item[1])
    ]


def table(costs: list[Operation], steps: int, most: int = 10) -> str:
    """Lay out the most expensive operations, and kinds of operations, as text.

    Args:
      costs: the operations, the most expensive first.
      steps: steps in the trace; times are per step, summed over devices.
      most: rows of each part.
    """
    kinds: dict[str, float] = defaultdict(float)
    for operation in costs:
        kinds[operation.kind] += operation.seconds
    total = sum(kinds.values())
    single = [("ms per step", "fraction", "operation", "kind", "result")]
    single += [(*_time(one.seconds, total, steps), one.name, one.kind, one.shape) for one in costs[:most]]
    by_kind = [("ms per step", "fraction", "all of a kind")]
    for kind, seconds in sorted(kinds.items(), key=lambda item: -item[1])[:most]:
        by_kind.append((*_time(seconds, total, steps), kind))
    by_kind.append((*_time(total, total, steps), f"all {len(costs)} operations"))
    return "\n".join([*text_table(single, right=(0, 1)), "", *text_table(by_kind, right=(0, 1))])


def _time(seconds: float, total: float, steps: int) -> tuple[str, str]:
    return f"{seconds / steps * 1e3:.2f}", f"{seconds / total:.1%}"
