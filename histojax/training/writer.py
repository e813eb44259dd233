"""What a run tells while it runs: metrics.jsonl, TensorBoard events, a progress line, run.json."""

import contextlib
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any, TextIO

import jax
from tqdm import tqdm

from histojax.core.files import atomic_write, write_json

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


class MetricsWriter:
    """Scalars to `metrics.jsonl` and to TensorBoard; use it in a `with`.

    Args:
      workdir: the run's folder.
      step: updates done so far. What an interrupted run wrote behind it is taken back: it comes again.
      data: what every line says of the data when it is synthetic; empty otherwise.
      unvalidated: whether the validation of that step comes again, too.
      enabled: False on all processes but the first.
    """

    def __init__(self, workdir: pathlib.Path, step: int, data: str, *, unvalidated: bool = False, enabled: bool = True):
        self._data = {"data": data} if data else {}
        self._lines: TextIO | None = None
        self._events: Any = None
        if enabled:
            path = workdir / "metrics.jsonl"
            _take_back(path, step, unvalidated)
            self._lines = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
            self._events = _event_files()(str(workdir / "tensorboard"), purge_step=step + 1)
            if data:
                self._events.add_text("data", data, step)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines is not None:
            self._lines.close()
            self._events.close()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes scalars of one step; a value that is not finite becomes null."""
        if self._lines is None:
            return
        finite = {key: value if abs(value) < float("inf") else None for key, value in scalars.items()}
        self._lines.write(json.dumps({"step": step, **finite, **self._data}) + "\n")
        self._lines.flush()
        for key, value in scalars.items():
            self._events.add_scalar(key, value, step)


class Progress:
    """A bar with images per second, loss and time left; silent where standard error is not a terminal.

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
        self._batch_size, self._enabled, self._compiling = batch_size, enabled, True

    def advance(self) -> None:
        """Count one more step."""
        self._bar.update(self._batch_size)
        if self._compiling:  # the time of compilation says nothing about the speed of the steps to come
            self._compiling = False
            self._bar.set_postfix_str("", refresh=False)
            self._bar.unpause()

    def show(self, loss: float) -> None:
        """Show the newest loss."""
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

    def say(self, line: str) -> None:
        """Write a line above the bar, also where the bar is silent."""
        if self._enabled:
            tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """End the bar."""
        self._bar.close()


class RunFile:
    """`run.json`: versions, devices, git, and every session of the run with its times.

    Args:
      path: of the file; an earlier session's content is kept.
      step: where this session starts.
      facts: of the run, added at the top.
    """

    def __init__(self, path: pathlib.Path, step: int, facts: Mapping[str, Any], enabled: bool = True):
        self._path, self._enabled = path, enabled
        earlier = json.loads(path.read_text())["sessions"] if path.is_file() else []
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
        """Records how the session ended: finished, interrupted or failed."""
        self._session.update(status=status, to_step=step, ended=_now())
        self._write()

    @contextlib.contextmanager
    def recording(self, step: Callable[[], int]) -> Iterator[None]:
        """Records an exception of the body as the session's end, and lets it pass."""
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(OSError):  # a full disk must not hide what happened
                self.end(f"failed: {type(error).__name__}: {error}", step())
            raise

    def _write(self) -> None:
        if self._enabled:
            write_json(self._path, self._content)


def environment() -> dict[str, Any]:
    """Versions, devices, machine and git state of this process."""
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
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    """Commit of the source tree that this file lies in; None for an installed package."""

    def ask(*words: str) -> str:
        folder = pathlib.Path(__file__).parent
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        if ask("ls-files", "--error-unmatch", __file__):
            return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        pass  # no git, or not a checkout: nothing to record
    return None


def _event_files() -> Any:
    """tensorboardX's writer without PyTorch, which it imports where that is (1.3 s), and which scalars do not need."""
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails as if it were not installed
    try:
        from tensorboardX import SummaryWriter
    finally:
        if absent:
            del sys.modules["torch"]
    return SummaryWriter


def _take_back(path: pathlib.Path, step: int, unvalidated: bool) -> None:
    """Drops the lines behind `step`, with `unvalidated` also its validation's, and a line that a kill cut in two."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            said = json.loads(line)
            if said["step"] < step or (said["step"] == step and not (unvalidated and "val/loss" in said)):
                kept.append(line)
        except json.JSONDecodeError:
            break  # the last line, half-written
    with atomic_write(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
