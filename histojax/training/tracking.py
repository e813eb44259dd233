"""Feeding the trackers of a run: in threads of their own, so that none of them slows, stops or fails the run."""

import logging
import pathlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from histojax.core import extras
from histojax.core.errors import RunError
from histojax.core.files import read_json, write_json
from histojax.training.trackers import FAILED, FINISHED, INTERRUPTED, REGISTRY, Session, TrackedRun

_log = logging.getLogger(__name__)
_FILE = "trackers.json"
_SECONDS = {FINISHED: 60.0, INTERRUPTED: 10.0, FAILED: 10.0}  # that a run waits at its end for what is still to be sent


def check(names: Sequence[str]) -> None:
    """Check that trackers are registered and their packages installed.

    Raises:
      RunError: an unknown name, or a missing package; the message has the command that installs it.
    """
    for name in names:
        try:
            tracker = REGISTRY.find(name)
        except ValueError as error:
            raise RunError(f"train.trackers: {error}") from None
        if tracker.extra:
            extras.require(tracker.extra, f"train.trackers={name}")


class Tracking:
    """The trackers of one session of a run. Use it in a `with`, which ends them.

    `trackers.json` in the work directory keeps what they call the run, so that a resumed run continues there.

    Args:
      workdir: the run's folder.
      enabled: False on all processes but the first.
    """

    def __init__(self, workdir: pathlib.Path, enabled: bool = True):
        self._workdir, self._enabled = workdir, enabled
        self._workers: list[_Worker] = []
        self._results: dict[str, float] | None = None
        self._lock = threading.Lock()

    def start(self, names: Sequence[str], config: Mapping[str, Any]) -> None:
        """Open the run in each tracker.

        Args:
          names: registered trackers.
          config: field -> value.
        """
        if not self._enabled:
            return
        ids = read_json(self._workdir / _FILE) or {}
        for name in dict.fromkeys(names):
            run = TrackedRun(self._workdir, "/".join(self._workdir.parts[-2:]), config, str(ids.get(name, "")))
            self._workers.append(_Worker(name, run, self._remember))

    def log(self, step: int, scalars: Mapping[str, float], repeated: bool = False) -> None:
        """Pass scalars of a step on.

        Args:
          step: updates done.
          scalars: finite numbers by name.
          repeated: whether an earlier session has passed them on; a tracker that already has the run skips them.
        """
        for worker in self._workers:
            worker.log(step, scalars, repeated)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Note the content of `results.json`: the run is finished."""
        self._results = flatten(results.get("splits", {}))

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            status = INTERRUPTED if issubclass(kind, KeyboardInterrupt) else FAILED
        else:
            status = INTERRUPTED if self._results is None else FINISHED
        for worker in self._workers:
            worker.end(status, self._results or {})
        if kind is None or not issubclass(kind, KeyboardInterrupt):  # a second Ctrl-C ends the run at once
            for worker in self._workers:
                worker.wait(_SECONDS[status])

    def _remember(self, name: str, id: str) -> None:
        with self._lock:  # each tracker has a thread
            ids = read_json(self._workdir / _FILE) or {}
            if ids.get(name) != id:
                write_json(self._workdir / _FILE, ids | {name: id})


class _Worker:
    """One tracker in a thread. The first failure is logged, and ends it."""

    def __init__(self, name: str, run: TrackedRun, remember: Callable[[str, str], None]):
        self._name, self._run, self._remember = name, run, remember
        self._calls: queue.SimpleQueue[Callable[[Session], None]] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._given_up = False  # the log has said that it does not answer
        # A daemon, because one that waits for a network must not keep the program from ending.
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def log(self, step: int, scalars: Mapping[str, float], repeated: bool) -> None:
        if self._thread.is_alive() and not (repeated and self._run.id):
            self._calls.put(lambda session: session.log(step, scalars))

    def end(self, status: str, results: Mapping[str, float]) -> None:
        def finish(session: Session) -> None:
            session.finish(status, results)
            self._ended.set()

        self._calls.put(finish)

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._given_up = True
            _log.warning("tracker %s: no answer for %.0f s; it may lack the end of this session", self._name, seconds)

    def _work(self) -> None:
        try:
            session = REGISTRY.find(self._name).open(self._run)
            self._remember(self._name, session.id)
            while not self._ended.is_set():
                self._calls.get()(session)
        except BaseException as error:  # a library that calls sys.exit must not end the thread without a word
            if self._given_up:
                return
            reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            hint = f". To begin a new run there, delete it from {self._run.workdir / _FILE}" if self._run.id else ""
            _log.warning("tracker %s failed; this session continues without it: %s%s", self._name, reason, hint)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of nested results by their path; a figure's value has the path of the figure.

    Args:
      tree: such as `splits` of results.json; texts, lists and undefined numbers are left out.
      prefix: path of the tree, with a slash at its end.
    """
    flat: dict[str, float] = {}
    for key, value in tree.items():
        path = prefix.removesuffix("/") if key == "value" else prefix + key
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[path] = float(value)
    return flat
