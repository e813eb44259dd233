"""Monitoring of a running loop: step metrics, the best epoch, stop signals, the watchdog."""

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

from histojax.core.errors import EXIT_RESUMABLE, RunError
from histojax.distributed import hosts, processes
from histojax.training.writer import MetricsWriter, Progress

_MIN_GAIN = 1e-6  # a smaller gain is rounding
_MIN_WAIT = 0.1  # fraction of the time from which advice is given
Window = list[tuple[int, dict[str, jax.Array]]]  # steps with their metrics, still on the device


class MetricsBuffer:
    """Metrics of steps, fetched one window after they were computed, so that the host never waits for the device.

    Args:
      writer: writes the means of each window.
      progress: shows the loss.
      learning_rate: the schedule.
      batch_size: images per step.

    Attributes:
      loss: mean over the newest window that has arrived; NaN before the first one.
      images_per_second: the newest training speed; NaN before it is known.
      input_wait: fraction of the time from the clock's start to the newest window's end in which this process waited
        for images.
    """

    def __init__(self, writer: MetricsWriter, progress: Progress, learning_rate: Callable[[int], Any], batch_size: int):
        self._writer, self._progress = writer, progress
        self._learning_rate, self._batch_size = learning_rate, batch_size
        self._open: Window = []
        self._closed: list[tuple[Window, float]] = []  # each with the fraction of its time spent waiting for images
        self._arrived: float | None = None  # time at which the newest window arrived
        self.loss = math.nan
        self.images_per_second = math.nan
        self.input_wait = 0.0
        self.restart_clock()

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Add a step's metrics, still on the device."""
        self._open.append((step, metrics))
        self._steps += 1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the body as waiting for images."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def close(self) -> None:
        """End a window and write the one before it.

        Raises:
          RunError: a loss or gradient norm is not finite; the message names the step.
        """
        self._end_window()
        while len(self._closed) > 1:
            window, waited = self._closed.pop(0)
            values, now = self._fetch(window), time.perf_counter()
            # Steps of the next window are in progress, as they were when the previous window arrived. The first window
            # has no previous one to count from.
            rate = None if self._arrived is None else len(window) / (now - self._arrived)
            self._arrived = now
            self._write(window, values, waited, rate)

    def flush(self) -> None:
        """Wait for all steps so far and write them.

        Raises:
          RunError: a loss or gradient norm is not finite; the message names the step.
        """
        self._end_window()
        while self._closed:
            window, waited = self._closed.pop(0)
            values, seconds = self._fetch(window), time.perf_counter() - self._since
            # No step is in progress any more, so the rate is that of all steps since the clock's start.
            known = not self._closed and self._steps > 0
            self._write(window, values, waited, self._steps / seconds if known else None)

    def restart_clock(self) -> None:
        """Restart the clock, so that the next images/s leave out time that was not training."""
        self._since, self._steps = time.perf_counter(), 0
        self._arrived = None
        self._ended, self._waited, self._waited_before = self._since, 0.0, 0.0

    def describe(self) -> str:
        """Return loss and images per second for the progress line, as far as this session has measured them."""
        loss = f"loss {self.loss:.4f}" if math.isfinite(self.loss) else ""
        speed = self.images_per_second
        rate = f"{speed:.{0 if speed >= 10 else 1}f} images/s" if math.isfinite(speed) else ""
        return "  ".join(part for part in (loss, rate) if part)

    def _end_window(self) -> None:
        if self._open:
            now = max(time.perf_counter(), self._ended + 1e-9)
            self._closed.append((self._open, self._waited / (now - self._ended)))
            self._waited_before += self._waited
            self.input_wait = self._waited_before / (now - self._since)
            self._open, self._ended, self._waited = [], now, 0.0

    def _fetch(self, window: Window) -> list[dict[str, Any]]:
        values: list[dict[str, Any]] = jax.device_get([metrics for _, metrics in window])
        for (step, _), metrics in zip(window, values, strict=True):
            if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
                raise RunError(
                    f"step {step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}. Training stops; "
                    "earlier checkpoints are good. Try a smaller optimizer.learning_rate, a longer "
                    "optimizer.warmup_epochs or optimizer.clip_norm=1, in a new work directory."
                )
        return values

    def _write(self, window: Window, values: list[dict[str, Any]], waited: float, rate: float | None) -> None:
        """Write a window's means.

        Args:
          window: its steps.
          values: their metrics.
          waited: fraction of the time spent waiting for images.
          rate: steps per second; None if unknown.
        """
        mean = {key: float(sum(metrics[key] for metrics in values)) / len(values) for key in values[0]}
        last = window[-1][0]
        self.loss = mean["loss"]
        if rate is not None:
            self.images_per_second = rate * self._batch_size
        self._progress.show(self.describe())
        extra = {"train/learning_rate": float(self._learning_rate(last - 1)), "train/input_wait": waited}
        if rate is not None:
            extra["train/images_per_second"] = self.images_per_second
        self._writer.write(last, {f"train/{key}": value for key, value in mean.items()} | extra)


def input_advice(wait: float, *, workers: int, cache: str) -> str:
    """Return a line that advises faster input; "" if the wait is short or no setting is known to help.

    Args:
      wait: fraction of the time spent waiting for images.
      workers: worker processes of this process, its part of `data.workers`.
      cache: the run's `data.cache`.
    """
    if wait < _MIN_WAIT:
        return ""
    host = hosts.here()
    spare = host.cores - 2
    settings = [f"data.workers={spare * host.processes}"] if spare > workers else []
    settings += ["data.cache=decoded (or resized, without random crops)"] if cache == "none" else []
    if not settings:
        return ""
    return f"training waited for images {wait:.0%} of the time; these settings may help: {', '.join(settings)}"


LAST = "last"


class BestTracker:
    """The best validation so far, and when to stop early. Its state is part of a checkpoint.

    Args:
      metric: one of `known`; a lower loss is better, and a higher value of every other metric. `last`: the newest
        epoch is always the best.
      patience: epochs without a better value after which to stop; 0: never.
      known: the task's validation metrics.

    Attributes:
      remark: end of the newest epoch's line: a star for the best one, or a note that the metric is tied at 0.

    Raises:
      RunError: an unknown metric, or patience without one.
    """

    def __init__(self, metric: str, patience: int, known: Sequence[str]):
        if metric not in (*known, LAST):
            raise RunError(f"train.best_metric='{metric}' is not one of {', '.join(known)}, {LAST}")
        if metric == LAST and patience:
            raise RunError(f"train.early_stopping={patience} needs a metric: train.best_metric={LAST} names none")
        self._metric, self._patience = metric, patience
        self._best = -math.inf
        self._best_step = 0
        self._waited = 0
        self.remark = ""

    def better(self, measured: dict[str, float], step: int) -> bool:
        """Return whether an epoch is the best so far; an undefined value never is."""
        if self._metric == LAST:
            self._best_step = step
            return True
        value = measured[self._metric] * (-1 if self._metric == "loss" else 1)
        if value > self._best + _MIN_GAIN:
            self._best, self._best_step, self._waited = value, step, 0
            self.remark = "  *"
            return True
        self._waited += 1
        tied = value == self._best == 0
        self.remark = f"  ({self._metric} is tied at 0, so step {self._best_step} stays the best)" if tied else ""
        return False

    @property
    def stopped(self) -> bool:
        """Whether the patience is used up."""
        return 0 < self._patience <= self._waited

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        best = None if math.isinf(self._best) else self._best
        return {"metric": self._metric, "best": best, "best_step": self._best_step, "waited": self._waited}

    def restore(self, saved: dict[str, Any]) -> None:
        """Set the state to one that `to_json` returned."""
        self._best = -math.inf if saved["best"] is None else saved["best"]
        self._best_step, self._waited = saved["best_step"], saved["waited"]


class Signals:
    """SIGTERM and SIGINT as requests to stop after the current step; a second signal acts at once. Use it in a `with`.

    With several processes, a signal to any of them stops all at the same step.

    Attributes:
      received: name of the first signal, empty before it.
    """

    def __init__(self) -> None:
        self.received = ""
        self._several = processes.count() > 1
        self._before: dict[signal.Signals, Any] = {}

    def requested(self) -> bool:
        """Return whether to stop; all processes must call this equally often."""
        if not self.received and self._several and processes.stop_requested():
            self.received = signal.SIGTERM.name
        return bool(self.received)

    def __enter__(self) -> "Signals":
        # With several processes, jax handles SIGTERM.
        for which in (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT):
            self._before[which] = signal.signal(which, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        again = "; press Ctrl-C again to stop at once, without saving" if number == signal.SIGINT else ""
        with contextlib.suppress(OSError):  # the terminal is gone
            # Not print: the signal may have come in the middle of another one.
            os.write(2, f"\n{name}: stopping at the next safe moment and saving{again}\n".encode())
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)  # jax handles it and notifies the other processes
        else:
            self.received = name
        for which, handler in self._before.items():
            signal.signal(which, handler)


class Watchdog:
    """End a run that finishes no more steps, and print where it hangs; use it in a `with`.

    A device, another machine or a disk that no longer responds raises no error, and a run that waits for it costs as
    much as one that computes.

    Args:
      seconds: time without a `beat` after which the run ends; 0: never.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._step = 0
        self._last = time.monotonic()
        self._ended = threading.Event()

    def beat(self, step: int) -> None:
        """Report that the run is alive and that `step` updates are done."""
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
                    f"error: no step has finished since step {self._step} ({self._seconds:g} s, train.watchdog): a "
                    "device, another process or the storage hangs; the traceback above shows where. Checkpoints are "
                    "intact: rerun the same command to resume from the last one.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(EXIT_RESUMABLE)
