"""Records of a run: metrics.jsonl, TensorBoard events, a progress bar, run.json."""

import contextlib
import datetime
import json
import logging
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any, TextIO

import jax
from tqdm import tqdm

from histojax.core import machine
from histojax.core.files import atomic_write, read_json, write_json

_log = logging.getLogger(__name__)
_LONG_START = 5.0  # seconds for the first step from which they are stated
_LINE_SECONDS = 60.0  # between two lines of progress, without a terminal
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


class MetricsWriter:
    """Write scalars to `metrics.jsonl` and to TensorBoard; use it in a `with`.

    Args:
      workdir: the run's folder.
      step: updates done so far. Lines that an interrupted run wrote after this step are removed, because the resumed
        run writes them again.
      data: note in every line that the data is synthetic; empty for real data.
      unvalidated: whether the validation after `step` is repeated, so that its line is removed as well.
      enabled: False on all processes but the first.
      track: also called with the step, its finite scalars, and whether an interrupted run has written the same.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        step: int,
        data: str,
        *,
        unvalidated: bool = False,
        enabled: bool = True,
        track: Callable[[int, Mapping[str, float], bool], None] = lambda *_: None,
    ):
        self._data, self._track = {"data": data} if data else {}, track
        self._removed: set[tuple[int, bool]] = set()  # step and kind of the lines of an interrupted run
        self._lines: TextIO | None = None
        self._events: Any = None
        if enabled:
            path = workdir / "metrics.jsonl"
            self._removed = _remove_lines(path, step, unvalidated)
            self._lines = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
            self._events = _event_files()(str(workdir / "tensorboard"), purge_step=step + 1)
            if data:
                self._events.add_text("data", data, step)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if self._lines is None:
            return
        try:
            self._lines.close()
            self._events.close()
        except OSError as error:
            if kind is None:  # else the exception of the body says more, most likely about the same full disk
                error.filename = error.filename or str(pathlib.Path(self._lines.name).parent)
                raise

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write scalars of one step; a value that is not finite becomes null."""
        if self._lines is None:
            return
        finite = {key: value if abs(value) < float("inf") else None for key, value in scalars.items()}
        try:
            self._lines.write(json.dumps({"step": step, **finite, **self._data}) + "\n")
            self._lines.flush()
        except OSError as error:
            error.filename = self._lines.name  # the system does not name the file if the disk is full
            raise
        defined = {key: value for key, value in finite.items() if value is not None}
        for key, value in defined.items():  # TensorBoard would warn of others
            self._events.add_scalar(key, value, step)
        self._track(step, defined, (step, _is_validation(scalars)) in self._removed)


class Progress:
    """A bar with images per second, loss and time left; without a terminal, a line every minute.

    Until the first step has ended, the bar says that the program compiles.

    Args:
      total_steps: steps of the whole run.
      step: steps done by earlier sessions of the run.
      batch_size: images per step.
      enabled: False on all processes but the first.
    """

    def __init__(self, total_steps: int, step: int, batch_size: int, enabled: bool = True):
        self._bar = tqdm(
            total=total_steps * batch_size,
            initial=step * batch_size,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            disable=None if enabled else True,
        )
        self._bar.set_postfix_str("compiling")
        self._total_steps, self._step, self._batch_size, self._enabled = total_steps, step, batch_size, enabled
        # The first step, which compiles, is left out of the speed.
        self._first_step, self._began = step + 1, time.monotonic()
        self._last_line = time.monotonic()

    def advance(self) -> None:
        """Count one more step."""
        self._step += 1
        self._bar.update(self._batch_size)
        if self._step == self._first_step:
            waited, self._began = time.monotonic() - self._began, time.monotonic()
            if waited > _LONG_START:
                self.say(f"the first step took {waited:.0f} s, with compilation")
            self._bar.set_postfix_str("", refresh=False)
            self._bar.unpause()

    def show(self, measured: str) -> None:
        """Show the newest loss and speed."""
        self._bar.set_postfix_str(measured, refresh=False)
        if self._bar.disable and time.monotonic() - self._last_line > _LINE_SECONDS:
            self.say(f"step {self._step}/{self._total_steps}  {measured}{self.time_left()}")

    def time_left(self) -> str:
        """Return "  1:02:03 left", estimated from all steps of this session, their validations and saves; or ""."""
        done, left = self._step - self._first_step, self._total_steps - self._step
        if done < 1 or left < 1:
            return ""
        seconds = round((time.monotonic() - self._began) / done * left)
        return f"  {datetime.timedelta(seconds=seconds)} left"

    def say(self, line: str) -> None:
        """Write a line above the bar, even if the bar is silent."""
        self._last_line = time.monotonic()
        if self._enabled:
            tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """End the bar."""
        self._bar.close()


class RunFile:
    """`run.json`: versions, devices, git state, and every session of the run with its times.

    Args:
      path: the file; the sessions that it lists are kept.
      step: step at which this session starts.
      facts: entries about the run, added at the top.
      enabled: False on all processes but the first.
    """

    def __init__(self, path: pathlib.Path, step: int, facts: Mapping[str, Any], enabled: bool = True):
        self._path, self._enabled = path, enabled
        earlier = (read_json(path) or {}).get("sessions")
        if not isinstance(earlier, list):
            earlier = []
        if path.is_file() and not earlier:
            _log.warning("%s: damaged, so it no longer lists the earlier sessions of this run", path)
        self._session: dict[str, Any] = {
            "started": _now(),
            "from_step": step,
            "status": "running",
            "command": sys.argv,
            **environment(),
        }
        self._content = {**facts, "sessions": [*earlier, self._session]}
        self._write()

    def end(self, status: str, step: int) -> None:
        """Record how the session ended.

        Args:
          status: finished, interrupted or failed.
          step: updates done.
        """
        self._session.update(status=status, to_step=step, ended=_now())
        self._write()

    @contextlib.contextmanager
    def recording(self, step: Callable[[], int]) -> Iterator[None]:
        """Record an exception of the body as the session's end, Ctrl-C as an interruption, and re-raise it.

        Args:
          step: returns the updates done.
        """
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(OSError):  # a full disk must not hide the exception
                interrupted = isinstance(error, KeyboardInterrupt)
                self.end("interrupted" if interrupted else f"failed: {type(error).__name__}: {error}", step())
            raise

    def _write(self) -> None:
        if self._enabled:
            write_json(self._path, self._content)


def environment() -> dict[str, Any]:
    """Return versions, devices, machine and git state of this process."""
    devices = jax.devices()
    return {
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES},
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "machine": {"system": platform.platform(), "cpu_count": os.cpu_count()},
        "git": machine.git_state(),
    }


def _event_files() -> Any:
    """Import tensorboardX's writer without PyTorch.

    tensorboardX imports PyTorch if it is installed, which takes 1.3 s and which scalars do not need.
    """
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]  # importing it now fails as if it were not installed
    try:
        from tensorboardX import SummaryWriter
    finally:
        if absent:
            del sys.modules["torch"]
    return SummaryWriter


def _is_validation(scalars: Mapping[str, Any]) -> bool:
    return "val/loss" in scalars


def _remove_lines(path: pathlib.Path, step: int, unvalidated: bool) -> set[tuple[int, bool]]:
    """Remove the lines after `step`, with `unvalidated` also that step's validation, and damaged lines.

    Returns:
      Step of each removed line that was whole, and whether it was a validation.
    """
    removed: set[tuple[int, bool]] = set()
    if not path.is_file():
        return removed
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            scalars = json.loads(line)
            if scalars["step"] < step or (scalars["step"] == step and not (unvalidated and _is_validation(scalars))):
                lines.append(line)
            else:
                removed.add((scalars["step"], _is_validation(scalars)))
        except (ValueError, TypeError, KeyError):
            continue  # the process was killed while it wrote this line, or the power failed
    with atomic_write(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return removed


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
