"""Monitoring of a loop: step metrics, the best epoch, stop signals, the watchdog."""

import json
import math
import os
import re
import signal
import subprocess
import sys

import jax.numpy as jnp
import pytest

from histojax.core.errors import RunError
from histojax.training.monitoring import BestTracker, MetricsBuffer, Signals, input_advice
from histojax.training.tasks import Multiclass, Multilabel

# ---- The best epoch ------------------------------------------------------------------------------------------------


METRICS = dict.fromkeys((*Multiclass.METRICS, *Multilabel.METRICS))


def track(metric, values, patience=0):
    tracker = BestTracker(metric, patience, METRICS)
    return tracker, [tracker.better({metric: value}, 10 * (i + 1)) for i, value in enumerate(values)]


def test_a_lower_loss_is_better():
    _, better = track("loss", [2.0, 1.0, 1.5, 1.0, 0.5])
    assert better == [True, True, False, False, True]


@pytest.mark.parametrize("metric", [name for name in METRICS if name != "loss"])
def test_a_higher_value_of_any_other_metric_is_better(metric):
    _, better = track(metric, [0.5, 0.4, 0.6, 0.6, 0.7])
    assert better == [True, False, True, False, True]


def test_a_gain_within_rounding_is_not_better():
    _, better = track("accuracy", [0.5, 0.5 + 5e-7, 0.5 + 5e-6])
    assert better == [True, False, True]


@pytest.mark.parametrize("metric", ["loss", "gmean"])
def test_an_undefined_value_is_never_the_best(metric):
    tracker, better = track(metric, [math.nan, 0.5, math.nan], patience=2)
    assert better == [False, True, False]
    assert tracker.to_json() == {
        "metric": metric,
        "best": -0.5 if metric == "loss" else 0.5,
        "best_step": 20,
        "waited": 1,
    }


def test_an_epoch_that_ties_the_best_at_0_says_so():
    tracker = BestTracker("gmean", 0, METRICS)
    remarks = []
    for step, value in enumerate([0.0, 0.0, math.nan, 0.5, 0.5, 0.0], 1):
        tracker.better({"gmean": value}, 10 * step)
        remarks.append(tracker.remark)
    assert remarks == ["  *", "  (gmean is tied at 0, so step 10 stays the best)", "", "  *", "", ""]


def test_patience_counts_the_epochs_since_the_best():
    tracker = BestTracker("loss", 2, METRICS)
    stopped = []
    for step, loss in enumerate([3.0, 3.5, 2.0, 2.0, 2.5, 9.0]):
        tracker.better({"loss": loss}, step)
        stopped.append(tracker.stopped)
    assert stopped == [False, False, False, False, True, True]


def test_without_patience_nothing_stops():
    tracker, _ = track("loss", [1.0, *[2.0] * 100])
    assert not tracker.stopped


@pytest.mark.parametrize("values", [[], [math.nan], [0.5], [0.5, 0.4, 0.3]])
def test_a_restored_tracker_behaves_like_the_saved_one(values):
    first, _ = track("accuracy", values, patience=4)
    second = BestTracker("accuracy", 4, METRICS)
    second.restore(json.loads(json.dumps(first.to_json(), allow_nan=False)))
    assert second.to_json() == first.to_json()
    for step, value in ((100, 0.45), (110, 0.6), (120, 0.1)):
        assert second.better({"accuracy": value}, step) == first.better({"accuracy": value}, step)
        assert (second.stopped, second.to_json()) == (first.stopped, first.to_json())


def test_last_takes_every_epoch_as_the_best():
    tracker, better = track("last", [0.5, math.nan, 0.1])
    assert better == [True, True, True]
    assert tracker.to_json()["best_step"] == 30
    assert not tracker.stopped
    with pytest.raises(RunError, match=r"train\.early_stopping=3 needs a metric"):
        BestTracker("last", 3, METRICS)


def test_an_unknown_metric_is_refused():
    with pytest.raises(RunError, match=r"train\.best_metric='auc' is not one of loss, accuracy, gmean"):
        BestTracker("auc", 0, Multiclass.METRICS)
    with pytest.raises(
        RunError, match=r"train\.best_metric='gmean' is not one of loss, accuracy, mean_average_precision"
    ):
        BestTracker("gmean", 0, Multilabel.METRICS)


# ---- Windows of steps ----------------------------------------------------------------------------------------------


class Record:
    """Replaces the writer and the progress bar."""

    def __init__(self):
        self.written, self.shown = [], []

    def write(self, step, scalars):
        self.written.append((step, dict(scalars)))

    def show(self, measured):
        self.shown.append(measured)


def step_metrics(loss, grad_norm=1.0):
    return {"loss": jnp.float32(loss), "accuracy": jnp.float32(0.5), "grad_norm": jnp.float32(grad_norm)}


@pytest.fixture
def record():
    return Record()


@pytest.fixture
def windows(record):
    # Schedules count from 0: step 1 uses the rate at 0.
    return MetricsBuffer(record, record, lambda step: step / 1000, batch_size=8)


def test_a_window_is_written_when_the_next_one_closes(windows, record):
    for step, loss in ((1, 1.0), (2, 2.0)):
        windows.add(step, step_metrics(loss))
    windows.close()
    assert record.written == []
    assert math.isnan(windows.loss)
    windows.add(3, step_metrics(7.0))
    windows.close()
    assert [step for step, _ in record.written] == [2]
    assert (windows.loss, record.shown) == (1.5, ["loss 1.5000"])
    windows.flush()
    assert [step for step, _ in record.written] == [2, 3]
    assert windows.loss == 7.0
    windows.flush()
    assert len(record.written) == 2


def test_a_window_holds_means_the_rate_of_its_last_step_and_images_per_second(windows, record):
    windows.add(9, step_metrics(1.0, grad_norm=3.0))
    windows.add(10, step_metrics(2.0, grad_norm=4.0))
    windows.flush()
    ((step, scalars),) = record.written
    assert step == 10
    speed = scalars.pop("train/images_per_second")
    assert scalars.pop("train/input_wait") == 0
    assert scalars == {
        "train/loss": 1.5,
        "train/accuracy": 0.5,
        "train/grad_norm": 3.5,
        "train/learning_rate": 0.009,
    }
    assert all(isinstance(value, float) for value in scalars.values())
    assert 0 < speed < math.inf


def test_images_per_second_exclude_time_outside_training(windows, record, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    windows.restart_clock()
    for step in range(1, 5):
        windows.add(step, step_metrics(1.0))
    now[0] += 2
    windows.flush()
    now[0] += 50  # validation
    windows.restart_clock()
    windows.add(5, step_metrics(1.0))
    now[0] += 4
    windows.flush()
    assert [scalars["train/images_per_second"] for _, scalars in record.written] == [4 * 8 / 2, 8 / 4]


def test_images_per_second_do_not_depend_on_the_steps_in_progress(windows, record, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    windows.restart_clock()
    for step in range(1, 10):  # one step per second; results arrive two steps later
        windows.add(step, step_metrics(1.0))
        now[0] += 1
        if step % 2 == 0:
            windows.close()
    windows.flush()
    speeds = [scalars.get("train/images_per_second") for _, scalars in record.written]
    assert [step for step, _ in record.written] == [2, 4, 6, 8, 9]
    assert speeds == [None, 8, 8, None, 8]


def test_input_wait_is_a_fraction_of_each_windows_time(windows, record, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    windows.restart_clock()
    for step, wait in ((1, 0.0), (2, 1.0), (3, 3.0), (4, 3.0), (5, 1.0)):
        with windows.waiting():
            now[0] += wait
        windows.add(step, step_metrics(1.0))
        now[0] += 1
        if step % 2 == 0:
            windows.close()
    windows.flush()
    waits = {step: scalars["train/input_wait"] for step, scalars in record.written}
    assert waits == pytest.approx({2: 1 / 3, 4: 6 / 8, 5: 1 / 2})
    assert windows.input_wait == pytest.approx(8 / 13)
    windows.restart_clock()
    windows.add(6, step_metrics(1.0))
    now[0] += 1
    windows.flush()
    assert windows.input_wait == 0


@pytest.mark.parametrize(
    ("wait", "workers", "cache", "pattern"),
    [
        (0.05, 0, "none", ""),
        (
            0.92,
            0,
            "none",
            "waited for images 92% .* data.workers=14, data.cache=decoded .or resized, without random crops.",
        ),
        (0.92, 0, "resized", "data.workers=14$"),
        (0.92, 14, "none", "may help: data.cache=decoded"),
        (0.92, 14, "decoded", ""),
    ],
)
def test_a_long_wait_for_images_gives_advice(wait, workers, cache, pattern, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    advice = input_advice(wait, workers=workers, cache=cache)
    assert re.search(pattern, advice) if pattern else advice == ""


def test_the_progress_line_leaves_out_what_this_session_has_not_measured(windows, monkeypatch):
    # A run that resumes at the end of an epoch has no loss yet.
    assert windows.describe() == ""
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    windows.restart_clock()
    windows.add(1, step_metrics(1.0))
    now[0] += 0.5
    windows.flush()
    assert windows.describe() == "loss 1.0000  16 images/s"


def test_the_first_step_which_compiles_is_no_part_of_the_speed(windows, record, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    windows.restart_clock()
    now[0] += 40
    windows.add(1, step_metrics(1.0))
    windows.restart_clock()
    windows.flush()  # of an epoch of one step
    assert "train/images_per_second" not in record.written[0][1]
    windows.add(2, step_metrics(1.0))
    now[0] += 2
    windows.flush()
    assert windows.describe() == "loss 1.0000  4.0 images/s"


def test_closing_an_empty_window_does_nothing(windows, record):
    windows.close()
    windows.close()
    windows.flush()
    assert record.written == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (step_metrics(math.nan), "loss nan, gradient norm 1.0"),
        (step_metrics(math.inf), "loss inf, gradient norm 1.0"),
        (step_metrics(1.0, math.nan), "loss 1.0, gradient norm nan"),
    ],
)
@pytest.mark.parametrize("end", ["close", "flush"])
def test_a_value_that_is_not_finite_stops_the_run_and_names_its_step(windows, record, bad, message, end):
    windows.add(1, step_metrics(1.0))
    windows.close()
    for step, metrics in ((2, step_metrics(1.0)), (3, bad), (4, step_metrics(math.nan))):
        windows.add(step, metrics)
    windows.close()
    windows.add(5, step_metrics(math.nan))
    with pytest.raises(RunError, match=f"^step 3: {message}.*optimizer.learning_rate"):
        getattr(windows, end)()
    assert [step for step, _ in record.written] == [1]


# ---- Signals -------------------------------------------------------------------------------------------------------


@pytest.fixture
def received_before():
    """Signals that reach the previous handlers, which are restored after the test."""
    received = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {which: signal.signal(which, lambda n, _: received.append(n)) for which in numbers}
    yield received
    for which, handler in before.items():
        signal.signal(which, handler)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_request_and_the_second_reaches_the_previous_handler(received_before, which, capfd):
    with Signals() as signals:
        assert signals.received == ""
        os.kill(os.getpid(), which)
        assert (signals.received, received_before) == (which.name, [])
        said = capfd.readouterr().err
        assert f"{which.name}: stopping at the next safe moment and saving" in said
        assert ("press Ctrl-C again to stop at once" in said) == (which == signal.SIGINT)
        os.kill(os.getpid(), which)
        assert received_before == [which]
    os.kill(os.getpid(), which)
    assert received_before == [which, which]


def test_handlers_are_restored_without_a_signal_and_after_an_error(received_before):
    def fail():
        with Signals():
            raise RuntimeError("in the loop")

    with Signals() as signals:
        pass
    with pytest.raises(RuntimeError, match="in the loop"):
        fail()
    os.kill(os.getpid(), signal.SIGTERM)
    assert (signals.received, received_before) == ("", [signal.SIGTERM])


# ---- Watchdog -------------------------------------------------------------------------------------------------------

# In a separate process, because the watchdog ends it with os._exit.
HANGS = """
import sys, time
from histojax.training.monitoring import Watchdog

def waits_for_a_device():
    time.sleep(60)

with Watchdog(float(sys.argv[1])) as watchdog:
    for step in range(4):
        time.sleep(0.4)  # four steps last longer than the 1.2 s allowed without one
        watchdog.beat(step)
    if sys.argv[2] == "hang":
        waits_for_a_device()
print("ended")
"""


@pytest.mark.parametrize(("seconds", "then", "code"), [("1.2", "hang", 75), ("1.2", "go", 0), ("0", "go", 0)])
def test_a_run_without_steps_ends_and_says_where(seconds: str, then: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", HANGS, seconds, then], capture_output=True, text=True, timeout=50)
    assert done.returncode == code, done.stderr
    if code:
        assert "in waits_for_a_device" in done.stderr
        assert "error: no step has finished since step 3 (1.2 s, train.watchdog)" in done.stderr
    else:
        assert done.stdout == "ended\n"
