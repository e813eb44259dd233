"""What the loop looks at while it runs: arriving metrics, the best epoch so far, signals to stop."""

import contextlib
import faulthandler
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any

import jax

from histojax.core.errors import RunError
from histojax.core.machine import cores
from histojax.distributed import processes
from histojax.training.writer import MetricsWriter, Progress

_LEAST = 1e-6  # a smaller gain is rounding
_MUCH_WAITING = 0.1


class MetricsBuffer:
    """Metrics of steps, fetched a window later than they were computed, so that the device is never waited for.

    Attributes:
      loss: mean over the newest window that has arrived.
      input_wait: share of the time since the clock was started, up to the newest window's end, in which this process
        waited for images.
    """

    def __init__(self, writer: MetricsWriter, progress: Progress, learning_rate: Callable[[int], Any], batch_size: int):
        self._writer, self._progress = writer, progress
        self._learning_rate, self._batch_size = learning_rate, batch_size
        self._open: list[tuple[int, dict[str, jax.Array]]] = []
        self._closed: list[tuple[list[tuple[int, dict[str, jax.Array]]], float]] = []
        self._arrived: float | None = None  # when the newest window did
        self.loss = math.nan
        self.input_wait = 0.0
        self.restart_clock()

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes a step's metrics, still on the device."""
        self._open.append((step, metrics))
        self._steps += 1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for images."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def close(self) -> None:
        """Ends a window and writes the one before it.

        Raises:
          RunError: a loss that is not finite, with its step.
        """
        self._end_window()
        while len(self._closed) > 1:
            window, waited = self._closed.pop(0)
            values, now = self._fetch(window), time.perf_counter()
            # Steps of the next window are under way, as they were when the one before arrived. For the first there
            # is nothing to count from.
            rate = None if self._arrived is None else len(window) / (now - self._arrived)
            self._arrived = now
            self._write(window, values, waited, rate)

    def flush(self) -> None:
        """Waits for all steps so far and writes them; raises as `close` does."""
        self._end_window()
        while self._closed:
            window, waited = self._closed.pop(0)
            values, seconds = self._fetch(window), time.perf_counter() - self._since
            # Nothing is under way any more: the rate of all steps since the clock was started.
            self._write(window, values, waited, None if self._closed else self._steps / seconds)

    def restart_clock(self) -> None:
        """Leaves out what was not training from the next images/s."""
        self._since, self._steps = time.perf_counter(), 0
        self._arrived = None
        self._ended, self._waited, self._waited_before = self._since, 0.0, 0.0

    def _end_window(self) -> None:
        if self._open:
            now = max(time.perf_counter(), self._ended + 1e-9)
            self._closed.append((self._open, self._waited / (now - self._ended)))
            self._waited_before += self._waited
            self.input_wait = self._waited_before / (now - self._since)
            self._open, self._ended, self._waited = [], now, 0.0

    def _fetch(self, window: list[tuple[int, dict[str, jax.Array]]]) -> list[dict[str, Any]]:
        values = jax.device_get([metrics for _, metrics in window])
        for (step, _), metrics in zip(window, values, strict=True):
            if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
                raise RunError(
                    f"step {step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}. Training stops; "
                    "the checkpoints before it are good. Try a smaller optimizer.learning_rate, a longer "
                    "optimizer.warmup_epochs or optimizer.clip_norm=1, in a new work directory."
                )
        return values

    def _write(
        self, window: list[tuple[int, Any]], values: list[dict[str, Any]], waited: float, rate: float | None
    ) -> None:
        """`waited`: for images, as a share; `rate`: steps per second, where it is known."""
        mean = {key: float(sum(metrics[key] for metrics in values)) / len(values) for key in values[0]}
        last = window[-1][0]
        self.loss = mean["loss"]
        self._progress.show(self.loss)
        extra = {"train/learning_rate": float(self._learning_rate(last - 1)), "train/input_wait": waited}
        if rate is not None:
            extra["train/images_per_second"] = rate * self._batch_size
        self._writer.write(last, {f"train/{key}": value for key, value in mean.items()} | extra)


def input_advice(wait: float, *, workers: int, cache: str) -> str:
    """What would help a device that waits for images; empty where little is waited, or nothing known would help.

    Args:
      wait: share of the time.
      workers: `data.workers`, as it is.
      cache: `data.cache`, as it is.
    """
    if wait < _MUCH_WAITING:
        return ""
    spare = cores() - 2
    help_ = [f"data.workers={spare}"] if spare > workers else []
    help_ += ["data.cache=decoded (or resized, without random crops)"] if cache == "none" else []
    if not help_:
        return ""
    return f"{wait:.0%} of the time went into waiting for images; what may help: {', '.join(help_)}"


class BestTracker:
    """The best validation so far, and when to stop early. Its state is part of a checkpoint.

    Args:
      metric: one of `known`; of the loss less is better, of every other one more.
      patience: epochs without a better value after which to stop; 0: never.
      known: what the task's validation measures.

    Raises:
      RunError: unknown metric.
    """

    def __init__(self, metric: str, patience: int, known: Sequence[str]):
        if metric not in known:
            raise RunError(f"train.best_metric='{metric}' is not one of {', '.join(known)}")
        self._metric, self._patience = metric, patience
        self._best = -math.inf
        self._best_step = 0
        self._waited = 0

    def better(self, measured: dict[str, float], step: int) -> bool:
        """Whether an epoch is the best so far; an undefined value never is."""
        value = measured[self._metric] * (-1 if self._metric == "loss" else 1)
        if value > self._best + _LEAST:
            self._best, self._best_step, self._waited = value, step, 0
            return True
        self._waited += 1
        return False

    @property
    def stopped(self) -> bool:
        """Whether patience is used up."""
        return 0 < self._patience <= self._waited

    def to_json(self) -> dict[str, Any]:
        """The state, JSON-able."""
        best = None if math.isinf(self._best) else self._best
        return {"metric": self._metric, "best": best, "best_step": self._best_step, "waited": self._waited}

    def restore(self, saved: dict[str, Any]) -> None:
        """Takes back what `to_json` gave."""
        self._best = -math.inf if saved["best"] is None else saved["best"]
        self._best_step, self._waited = saved["best_step"], saved["waited"]


class Signals:
    """SIGTERM and SIGINT as a wish to stop after the step; a second one stops at once.

    Of several processes, a signal to any one stops all at the same step.

    Attributes:
      received: name of the signal, empty until one comes.
    """

    def __init__(self) -> None:
        self.received = ""
        self._several = processes.count() > 1
        self._before: dict[signal.Signals, Any] = {}

    def requested(self) -> bool:
        """Whether to stop; all processes must ask equally often."""
        if not self.received and self._several and processes.stop_requested():
            self.received = signal.SIGTERM.name
        return bool(self.received)

    def __enter__(self) -> "Signals":
        # Of several processes jax listens to SIGTERM.
        for which in (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT):
            self._before[which] = signal.signal(which, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)  # for jax, which tells the others
        else:
            self.received = signal.Signals(number).name
        for which, handler in self._before.items():
            signal.signal(which, handler)


class Watchdog:
    """Ends a run whose steps have stopped coming, saying where it hangs; use it in a `with`.

    A device, another machine or a disk that no longer answers raises nothing; a run that waits for it costs as much as
    one that computes.

    Args:
      seconds: without a `beat`; 0: never.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._step = 0
        self._last = time.monotonic()
        self._ended = threading.Event()

    def beat(self, step: int) -> None:
        """The run lives; `step` updates are done."""
        self._step, self._last = step, time.monotonic()

    def __enter__(self) -> "Watchdog":
        if self._seconds > 0:
            self.beat(self._step)
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(self._seconds / 4, 10.0)):
            if time.monotonic() - self._last > self._seconds:
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
                print(
                    f"error: nothing has come behind step {self._step} for {self._seconds:g} s (train.watchdog): a "
                    "device, another process or the storage hangs; above is where. Checkpoints are whole: the same "
                    "command goes on from the last one.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(processes.EXIT_RESUMABLE)
