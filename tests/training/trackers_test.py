"""Trackers get a run's scalars and results, never stop the run, and continue theirs when it is resumed."""

import csv
import importlib.util
import json
import logging
import os
import pathlib
import re
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from ml_collections import ConfigDict

from data_pipelines.synthetic.generator import SyntheticSpec, generate
from histojax.core.errors import RunError
from histojax.training import loop, trackers, tracking, work_directory
from histojax.training.trackers import TrackedRun, Tracker
from histojax.training.tracking import Tracking
from histojax.training.writer import MetricsWriter
from tests.conftest import ROOT
from tests.helpers import tiny_config


class Fake:
    """A tracker that records its calls.

    Args:
      fails: name of the method that fails.
    """

    def __init__(self, fails: str = "", error: BaseException | None = None):
        self.fails, self.error = fails, error or ConnectionError("no route to host\nwith details")
        self.runs: list[TrackedRun] = []
        self.scalars: list[tuple[int, dict[str, float]]] = []
        self.ends: list[tuple[str, dict[str, float]]] = []
        self.threads: set[str] = set()

    id = "run-1"

    def _call(self, name: str) -> None:
        self.threads.add(threading.current_thread().name)
        if self.fails == name:
            raise self.error

    def open(self, run: TrackedRun) -> "Fake":
        self._call("open")
        self.runs.append(run)
        return self

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._call("log")
        self.scalars.append((step, dict(scalars)))

    def finish(self, status: str, results: Mapping[str, float]) -> None:
        self._call("finish")
        self.ends.append((status, dict(results)))


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.REGISTRY, "items", dict(trackers.REGISTRY.items))


def registered(name: str = "fake", **options: Any) -> Fake:
    fake = Fake(**options)
    trackers.register(Tracker(name, fake.open))
    return fake


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    spec = SyntheticSpec(cases_per_subtype=(2, 2, 2, 2, 3, 2, 2, 2), images_per_patient=2, magnifications=("100X",))
    return generate(tmp_path_factory.mktemp("trackers") / "images", spec)


def config_of(images: pathlib.Path, *names: str, epochs: int = 1) -> ConfigDict:
    config = tiny_config.get_config("mini")
    config.data.root, config.train.epochs, config.train.trackers = str(images), epochs, names
    return config


def lines(run: pathlib.Path) -> list[tuple[int, dict[str, float]]]:
    """What metrics.jsonl holds, as a tracker gets it."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        (line.pop("step"), {key: value for key, value in line.items() if key != "data" and value is not None})
        for line in found
    ]


def test_a_tracker_gets_scalars_config_and_results(images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    fake, config, run = registered(), config_of(images, "fake"), tmp_path / "runs" / "one"
    assert loop.train_and_evaluate(config, run)
    assert [(told.name, told.workdir, told.id) for told in fake.runs] == [("runs/one", run, "")]
    assert fake.runs[0].config == work_directory.flat(json.loads(config.to_json()))
    assert fake.runs[0].config["optimizer.name"] == "sgd"
    assert fake.scalars == lines(run)
    assert {key.split("/")[0] for _, scalars in fake.scalars for key in scalars} == {"train", "val"}
    ((status, results),) = fake.ends
    test = json.loads((run / "results.json").read_text())["splits"]["test"]
    assert status == "finished"
    assert results["test/image/accuracy"] == test["image"]["accuracy"]["value"]
    assert results["test/image/accuracy/high"] == test["image"]["accuracy"]["high"]
    assert results["test/n_images"] == test["n_images"]
    assert all(type(value) is float for value in results.values())
    assert fake.threads == {"tracker-fake"}


def test_a_resumed_run_continues_the_trackers_run(images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    fake = registered()
    assert loop.train_and_evaluate(config_of(images, "fake"), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "trackers.json").read_text()) == {"fake": "run-1"}
    added = registered("added")  # a tracker is no part of what a run learns
    assert loop.train_and_evaluate(config_of(images, "fake", "added", epochs=2), tmp_path / "run")
    assert [told.id for told in fake.runs] == ["", "run-1"]
    assert fake.scalars == lines(tmp_path / "run")
    assert [told.id for told in added.runs] == [""]
    assert len(added.scalars) < len(fake.scalars)
    assert json.loads((tmp_path / "run" / "trackers.json").read_text()) == {"fake": "run-1", "added": "run-1"}


def test_what_an_interrupted_run_has_sent_is_not_sent_again(tmp_path: pathlib.Path) -> None:
    fake = registered()

    def session(steps: range, resumed: int, *names: str) -> None:
        with Tracking(tmp_path) as tracked:
            tracked.start(names, {})
            with MetricsWriter(tmp_path, resumed, "", track=tracked.log) as writer:
                for step in steps:
                    writer.write(step, {"train/loss": step / 2, "train/odd": float("nan")})
                    if step == 4:
                        writer.write(step, {"val/loss": 0.25})

    session(range(1, 5), 0, "fake")
    added = registered("added")
    session(range(3, 6), 2, "fake", "added")  # killed behind step 4, and resumed from step 2
    sent = [(step, *scalars) for step, scalars in fake.scalars]
    assert sent == [(1, "train/loss"), (2, "train/loss"), (3, "train/loss"), (4, "train/loss"), (4, "val/loss"),
                    (5, "train/loss")]  # fmt: skip
    assert [step for step, _ in added.scalars] == [3, 4, 4, 5]
    assert [status for status, _ in fake.ends] == ["interrupted", "interrupted"]


@pytest.mark.parametrize(
    ("place", "error"),
    [("open", None), ("log", OSError(28, "No space left on device")), ("finish", None), ("open", SystemExit(1))],
)
def test_a_tracker_that_fails_is_reported_once_and_stops_nothing(
    place: str,
    error: BaseException | None,
    images: pathlib.Path,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    registered("broken", fails=place, error=error)
    sound = registered("sound")
    with caplog.at_level(logging.WARNING, "histojax.training.tracking"):
        assert loop.train_and_evaluate(config_of(images, "broken", "sound"), tmp_path / "run")
    (told,) = [record.getMessage() for record in caplog.records if record.name == tracking.__name__]
    assert re.match(r"tracker broken failed; this session continues without it: \w+: .+\Z", told)
    assert "details" not in told
    assert (tmp_path / "run" / "results.json").is_file()
    assert [status for status, _ in sound.ends] == ["finished"]
    assert sound.scalars == lines(tmp_path / "run")


def test_a_run_that_the_tracker_has_lost_says_how_to_begin_a_new_one(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "trackers.json").write_text('{"fake": "gone"}')
    registered(fails="open")
    with Tracking(tmp_path) as tracked:
        tracked.start(["fake"], {})
    assert f"To begin a new run there, delete it from {tmp_path / 'trackers.json'}" in caplog.text


def test_a_tracker_that_waits_keeps_no_run_from_ending(
    images: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    monkeypatch.setitem(tracking._SECONDS, "finished", 0.1)
    trackers.register(Tracker("slow", lambda run: released.wait(60)))  # type: ignore[arg-type,return-value]
    with caplog.at_level(logging.WARNING, "histojax.training.tracking"):
        assert loop.train_and_evaluate(config_of(images, "slow"), tmp_path / "run")
    released.set()
    assert "tracker slow: no answer for 0 s; it may lack the end of this session" in caplog.text


def test_how_a_session_ended_is_told(tmp_path: pathlib.Path) -> None:
    fake = registered()

    def session(act: Callable[[Tracking], object]) -> None:
        with Tracking(tmp_path) as tracked:
            tracked.start(["fake"], {})
            act(tracked)

    session(
        lambda tracked: tracked.finish({"splits": {"test": {"n": 3, "best": {"value": 0.5, "low": None}, "a": "b"}}})
    )
    session(lambda tracked: None)
    with pytest.raises(RunError):
        session(lambda tracked: (_ for _ in ()).throw(RunError("x")))
    assert fake.ends == [("finished", {"test/n": 3.0, "test/best": 0.5}), ("interrupted", {}), ("failed", {})]


def test_a_signal_ends_the_trackers_session_too(
    images: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = registered()
    advance = loop.Progress.advance
    monkeypatch.setattr(loop.Progress, "advance", lambda self: (os.kill(os.getpid(), signal.SIGTERM), advance(self)))
    assert not loop.train_and_evaluate(config_of(images, "fake"), tmp_path / "run")
    assert [status for status, _ in fake.ends] == ["interrupted"]


def test_other_processes_track_nothing(tmp_path: pathlib.Path) -> None:
    fake = registered()
    with Tracking(tmp_path, enabled=False) as tracked:
        tracked.start(["fake"], {})
        tracked.log(1, {"train/loss": 0.5})
    assert not fake.runs
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_refused_before_the_first_step(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == name else find_spec(wanted))
    message = rf"train\.trackers={name} needs {name}; install with: pip install 'histojax\[{name}\]'"
    with pytest.raises(RunError, match=message):
        loop.train_and_evaluate(config_of(tmp_path / "absent", name), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(tmp_path: pathlib.Path) -> None:
    message = r"train\.trackers: unknown tracker 'wandbb' \(did you mean 'wandb'\?\); trackers: wandb, mlflow\."
    with pytest.raises(RunError, match=message):
        loop.train_and_evaluate(config_of(tmp_path / "absent", "wandbb"), tmp_path / "run")


def test_the_tracker_of_the_page(images: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/how-to/track.md").read_text(), re.DOTALL)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_tracker.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "code")
    config = config_of(images, "table")
    config.plugins = (*config.plugins, "my_tracker")
    assert loop.train_and_evaluate(config, tmp_path / "run")
    sys.modules.pop("my_tracker")
    rows = list(csv.reader((tmp_path / "run" / "losses.csv").read_text().splitlines()))
    losses = [
        (str(step), str(scalars["train/loss"])) for step, scalars in lines(tmp_path / "run") if "train/loss" in scalars
    ]
    accuracy = json.loads((tmp_path / "run" / "results.json").read_text())["splits"]["test"]["image"]["accuracy"][
        "value"
    ]
    assert [tuple(row) for row in rows] == [*losses, ("finished", str(accuracy))]


# ---- The real ones --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_curves_config_and_results(
    images: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(tracking, "_SECONDS", dict.fromkeys(tracking._SECONDS, 300.0))
    assert loop.train_and_evaluate(config_of(images, "mlflow"), tmp_path / "runs" / "one")
    assert loop.train_and_evaluate(config_of(images, "mlflow", epochs=2), tmp_path / "runs" / "one")
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("histojax").experiment_id])
    assert (run.info.run_name, run.info.status) == ("runs/one", "FINISHED")
    assert run.data.params["optimizer.name"] == "sgd"
    curve = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/loss")]
    recorded = lines(tmp_path / "runs" / "one")
    assert sorted(curve) == [(step, scalars["train/loss"]) for step, scalars in recorded if "train/loss" in scalars]
    results = json.loads((tmp_path / "runs" / "one" / "results.json").read_text())
    assert run.data.metrics["test/image/accuracy"] == results["splits"]["test"]["image"]["accuracy"]["value"]


@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_an_offline_run(
    images: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tracking, "_SECONDS", dict.fromkeys(tracking._SECONDS, 300.0))
    run = tmp_path / "runs" / "one"
    assert loop.train_and_evaluate(config_of(images, "wandb"), run)
    assert loop.train_and_evaluate(config_of(images, "wandb", epochs=2), run)
    id = json.loads((run / "trackers.json").read_text())["wandb"]
    files = sorted((run / "wandb").glob(f"offline-run-*/run-{id}.wandb"))
    assert len(files) == 2  # one session each, of the same run
    curve, configs, summaries = [], [], []
    for file in files:
        for record in wandb_records(file):
            if record.HasField("history"):
                items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                curve += [(int(items["step"]), json.loads(items["train/loss"]))] if "train/loss" in items else []
            if record.HasField("run"):
                assert (record.run.run_id, record.run.project, record.run.display_name) == (id, "histojax", "runs/one")
            for part in (record.config, record.run.config):
                configs += [(item.key, item.value_json) for item in part.update]
            summaries += [("/".join(item.nested_key) or item.key, item.value_json) for item in record.summary.update]
    assert curve == [(step, scalars["train/loss"]) for step, scalars in lines(run) if "train/loss" in scalars]
    assert dict(configs)["optimizer.name"] == '"sgd"'
    accuracy = json.loads((run / "results.json").read_text())["splits"]["test"]["image"]["accuracy"]["value"]
    assert json.loads(dict(summaries)["test/image/accuracy"]) == accuracy


def wandb_records(file: pathlib.Path) -> Iterator[Any]:
    """Read the records of an offline run: the log format of LevelDB behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768  # a record does not cross a block; its header needs seven bytes
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts, place = parts + data[place + 7 : place + 7 + length], place + 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""
