"""Traces of the device, and the operations in them that cost most; they are read without TensorFlow."""

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
from histojax.training import compat

COUNT = 5  # steps that are traced
_BEFORE = 3  # steps that are not
_BUFFERS = "xla_gpu_enable_command_buffer"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a compiled program.

    Attributes:
      name: as the compiler has it.
      kind: what it does and on which way through the model, as far as the program's text is known.
      shape: of the result.
      seconds: over all its runs on all devices.
      runs: how many.
      share: of the time of all operations.
    """

    name: str
    kind: str
    shape: str
    seconds: float
    runs: int
    share: float


def disable_command_buffers() -> None:
    """To be called before jax looks for devices, so that a trace tells operations apart on GPUs.

    They otherwise run hundreds as one "command buffer". The program is the same, and a few per cent slower.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _BUFFERS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_BUFFERS}=".strip()


class Profile:
    """Traces a few steps of a run that is under way, without the first ones, which compile.

    Args:
      folder: of the trace; None: nothing is traced.
    """

    def __init__(self, folder: pathlib.Path | None):
        self._folder = folder
        self._done = 0

    def __enter__(self) -> "Profile":
        return self

    def after_step(self, values: Any, compiled: Callable[[], jax.stages.Compiled]) -> None:
        """To be called behind each step; waits for it only where the trace starts and ends.

        Args:
          values: what the step computed.
          compiled: the program that it ran, to tell what its operations are.
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
        _log.warning("no profile: it takes %d steps, and there were %d", _BEFORE + COUNT, self._done)


def start(folder: pathlib.Path) -> None:
    """Starts a trace below `folder`; `jax.profiler.stop_trace` ends it. An older trace there is removed."""
    shutil.rmtree(folder / "plugins" / "profile", ignore_errors=True)
    options = ProfileOptions()
    options.python_tracer_level = 0  # Python's calls would make the file ten times as large
    try:
        folder.mkdir(parents=True, exist_ok=True)
        jax.profiler.start_trace(folder, profiler_options=options)
    except RuntimeError as error:
        raise RunError(f"the profiler does not start: {error}") from error


def operations(folder: pathlib.Path, hlo: str = "") -> list[Operation]:
    """Operations of a trace, the costliest first.

    Args:
      folder: given to `start`.
      hlo: the compiled program as text, for `Operation.what`.

    Raises:
      RunError: no trace there, or none of any operation.
    """
    files = sorted(folder.glob("plugins/profile/*/*.xplane.pb"))
    if not files:
        raise RunError(f"{folder}: no trace (plugins/profile/*/*.xplane.pb)")
    seconds: dict[str, float] = defaultdict(float)
    runs: dict[str, int] = defaultdict(int)
    for name, duration in compat.traced_operations(ProfileData.from_file(str(file)) for file in files):
        seconds[name] += duration
        runs[name] += 1
    if not seconds:
        raise RunError(f"{folder}: no operation of a compiled program in the trace")
    described, total = compat.describe_instructions(hlo), sum(seconds.values())
    return [
        Operation(name, *described.get(name, (name.partition(".")[0], "")), seconds[name], runs[name], took / total)
        for name, took in sorted(seconds.items(), key=lambda item: -item[1])
    ]


def table(found: list[Operation], steps: int, most: int = 10) -> str:
    """The costliest operations and kinds of operations as text; times are of one step, summed over devices."""
    kinds: dict[str, float] = defaultdict(float)
    for one in found:
        kinds[one.kind] += one.seconds
    ordered = sorted(kinds.items(), key=lambda item: -item[1])[:most]
    total = sum(kinds.values())
    rows = [("ms a step", "share", "operation", "kind", "result")]
    rows += [(*_time(one.seconds, total, steps), one.name, one.kind, one.shape) for one in found[:most]]
    names, words = (max(len(row[i]) for row in rows) for i in (2, 3))
    lines = [f"{a:>9}  {b:>6}  {c:<{names}}  {d:<{words}}  {e}".rstrip() for a, b, c, d, e in rows]
    rows = [("ms a step", "share", "all of a kind", "", "")]
    rows += [(*_time(seconds, total, steps), kind, "", "") for kind, seconds in ordered]
    rows += [(*_time(total, total, steps), f"all {len(found)} operations", "", "")]
    return "\n".join([*lines, "", *(f"{a:>9}  {b:>6}  {c}" for a, b, c, *_ in rows)])


def _time(seconds: float, total: float, steps: int) -> tuple[str, str]:
    return f"{seconds / steps * 1e3:.2f}", f"{seconds / total:.1%}"
