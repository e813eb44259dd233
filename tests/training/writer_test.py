"""Records of a run: metrics.jsonl, TensorBoard events, run.json; a resumed run records nothing twice."""

import json
import math
import sys

import jax
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from histojax.core.files import write_json
from histojax.training import writer
from histojax.training.writer import MetricsWriter, Progress, RunFile, environment


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_steps(folder, steps, *, resumed=0, data="", value=lambda step: step / 2):
    with MetricsWriter(folder, resumed, data) as metrics:
        for step in steps:
            metrics.write(step, {"train/loss": value(step)})


def events(folder):
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


# ---- metrics.jsonl --------------------------------------------------------------------------------------------------


def test_one_line_per_step(tmp_path):
    with MetricsWriter(tmp_path, 0, "") as metrics:
        metrics.write(10, {"train/loss": 0.5, "train/learning_rate": 1e-3})
        assert lines(tmp_path) == [{"step": 10, "train/loss": 0.5, "train/learning_rate": 1e-3}]  # not only at the end
        metrics.write(20, {"val/loss": 0.25})
    assert lines(tmp_path)[1:] == [{"step": 20, "val/loss": 0.25}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_becomes_null_and_no_event(tmp_path, value, caplog):
    with MetricsWriter(tmp_path, 0, "") as metrics:
        metrics.write(1, {"val/auroc": value, "val/loss": 0.5})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "val/auroc": None, "val/loss": 0.5}
    assert events(tmp_path).Tags()["scalars"] == ["val/loss"]
    assert "NaN" not in caplog.text


def test_a_resumed_run_removes_lines_after_its_checkpoint(tmp_path):
    write_steps(tmp_path, [10, 20, 30, 40])
    write_steps(tmp_path, [30, 40, 50], resumed=20, value=lambda step: -step)
    assert [(line["step"], line["train/loss"]) for line in lines(tmp_path)] == [
        (10, 5.0),
        (20, 10.0),
        (30, -30),
        (40, -40),
        (50, -50),
    ]
    write_steps(tmp_path, [10])
    assert [line["step"] for line in lines(tmp_path)] == [10]


@pytest.mark.parametrize("unvalidated", [True, False])
def test_a_repeated_validation_is_recorded_once(tmp_path, unvalidated):
    write_steps(tmp_path, [10, 20])
    with MetricsWriter(tmp_path, 20, "") as metrics:
        metrics.write(20, {"val/loss": 1.0})
    with MetricsWriter(tmp_path, 20, "", unvalidated=unvalidated) as metrics:
        metrics.write(30, {"train/loss": 0.5})
    recorded = [(line["step"], "val/loss" in line) for line in lines(tmp_path)]
    assert recorded == [(10, False), (20, False), *([] if unvalidated else [(20, True)]), (30, False)]


@pytest.mark.parametrize("cut", [1, 10, 25])
def test_a_line_cut_off_by_a_kill_is_removed(tmp_path, cut):
    write_steps(tmp_path, [10, 20, 30])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + json.dumps({"step": 40, "train/loss": 0.125})[:cut])
    write_steps(tmp_path, [50], resumed=45)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30, 50]


def test_every_line_says_that_the_data_is_synthetic(tmp_path):
    write_steps(tmp_path, [1, 2], data="SYNTHETIC images")
    assert [line["data"] for line in lines(tmp_path)] == ["SYNTHETIC images"] * 2
    accumulator = events(tmp_path)
    (text,) = accumulator.Tensors("data/text_summary")
    assert text.tensor_proto.string_val == [b"SYNTHETIC images"]


def test_other_processes_write_nothing(tmp_path):
    with MetricsWriter(tmp_path, 0, "SYNTHETIC images", enabled=False) as metrics:
        metrics.write(1, {"train/loss": 0.5})
    RunFile(tmp_path / "run.json", 0, {}, enabled=False).end("finished", 1)
    assert list(tmp_path.iterdir()) == []


# ---- TensorBoard ----------------------------------------------------------------------------------------------------


def test_tensorboard_reads_the_scalars(tmp_path):
    write_steps(tmp_path, [10, 20])
    scalars = events(tmp_path).Scalars("train/loss")
    assert [(scalar.step, scalar.value) for scalar in scalars] == [(10, 5.0), (20, 10.0)]


# A run that was killed before its first checkpoint restarts at 0.
@pytest.mark.parametrize("resumed", [0, 20])
def test_tensorboard_shows_nothing_twice(tmp_path, resumed, monkeypatch):
    # Event files are ordered by the second in their names, and both would be written within one.
    now = [1_700_000_000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    write_steps(tmp_path, [10, 20, 30, 40])
    now[0] += 60
    again = [step for step in (10, 20, 30, 40, 50) if step > resumed]
    write_steps(tmp_path, again, resumed=resumed, value=lambda step: -step)
    scalars = events(tmp_path).Scalars("train/loss")
    assert [scalar.step for scalar in scalars] == [10, 20, 30, 40, 50]
    assert [scalar.value for scalar in scalars if scalar.step > resumed] == [-step for step in again]


# ---- run.json -------------------------------------------------------------------------------------------------------


def test_sessions_are_appended(tmp_path):
    path = tmp_path / "run.json"
    RunFile(path, 0, {"model": "first"}).end("interrupted", 30)
    second = RunFile(path, 30, {"model": "second"})
    running = json.loads(path.read_text())
    assert running["model"] == "second"
    assert [session["status"] for session in running["sessions"]] == ["interrupted", "running"]
    second.end("finished", 90)
    content = json.loads(path.read_text())
    assert [(s["status"], s["from_step"], s["to_step"]) for s in content["sessions"]] == [
        ("interrupted", 0, 30),
        ("finished", 30, 90),
    ]
    for session in content["sessions"]:
        assert session["started"] <= session["ended"]
        assert session["command"] == sys.argv
        assert environment().keys() <= session.keys()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no luck"), "failed: ValueError: no luck"),
        (SystemExit("no luck"), "failed: SystemExit: no luck"),
        (KeyboardInterrupt("no luck"), "interrupted"),
    ],
)
def test_a_failure_is_recorded_and_raised(tmp_path, error, status):
    path = tmp_path / "run.json"
    run_file = RunFile(path, 5, {})
    with pytest.raises(type(error), match="no luck"), run_file.recording(lambda: 17):
        raise error
    (session,) = json.loads(path.read_text())["sessions"]
    assert session["status"] == status
    assert session["to_step"] == 17


def test_a_failure_that_cannot_be_recorded_is_still_raised(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    run_file = RunFile(folder / "run.json", 0, {})
    (folder / "run.json").unlink()
    folder.rmdir()
    with pytest.raises(ValueError, match="no luck"), run_file.recording(lambda: 1):
        raise ValueError("no luck")


def test_without_a_failure_recording_changes_nothing(tmp_path):
    run_file = RunFile(tmp_path / "run.json", 0, {})
    before = (tmp_path / "run.json").read_text()
    with run_file.recording(lambda: 1):
        pass
    assert (tmp_path / "run.json").read_text() == before


def test_the_environment_names_versions_devices_machine_and_git():
    found = environment()
    assert set(found) == {"versions", "devices", "machine", "git"}
    assert found["versions"]["jax"] == jax.__version__
    assert set(found["versions"]) == {"python", *writer._PACKAGES}
    assert found["devices"] == {"platform": "cpu", "kind": "cpu", "count": 4, "processes": 1}
    assert set(found["machine"]) == {"system", "cpu_count"}
    if found["git"] is not None:  # None outside a checkout
        assert len(found["git"]["commit"]) == 40
        assert isinstance(found["git"]["dirty"], bool)
    json.dumps(found, allow_nan=False)


# ---- Files and the progress bar ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [{"loss": math.nan}, {"path": object()}])
def test_write_json_keeps_the_old_file_when_it_fails(tmp_path, bad):
    path = tmp_path / "a.json"
    write_json(path, {"ü": [1, None]})
    before = path.read_bytes()
    assert json.loads(before) == {"ü": [1, None]}
    with pytest.raises((ValueError, TypeError)):
        write_json(path, bad)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_write_json_never_shows_a_half_written_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"value": "old"})

    def killed(*_):
        assert json.loads(path.read_text()) == {"value": "old"}
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"value": "new"})
    assert json.loads(path.read_text()) == {"value": "old"}


def test_progress_without_a_terminal_prints_only_lines(capfd):
    progress = Progress(10, 2, 4)
    progress.advance()
    progress.show("loss 0.5000")
    progress.say("epoch 1/5")
    progress.close()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "epoch 1/5\n")


def test_progress_without_a_terminal_prints_a_line_every_minute_with_the_time_left(capfd, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress(1000, 0, 8)
    for _ in range(11):  # the first one compiles for an hour, which is not part of the speed
        now[0] += 10 if now[0] > 100 else 3600
        progress.advance()
        progress.show("loss 0.5000  0.8 images/s")
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "the first step took 3600 s, with compilation",
        "step 8/1000  loss 0.5000  0.8 images/s  2:45:20 left",
    ]
    assert progress.time_left() == "  2:44:50 left"


def test_the_time_left_is_not_guessed_before_two_steps_nor_at_the_end():
    progress = Progress(2, 0, 8)
    assert progress.time_left() == ""
    progress.advance()
    assert progress.time_left() == ""
    progress.advance()
    assert progress.time_left() == ""


def test_progress_on_a_terminal_shows_compilation_and_then_the_speed(capfd, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = Progress(10, 2, 4)
    assert "compiling" in capfd.readouterr().err
    progress.advance()
    progress.say("a line above the bar")
    assert "compiling" not in capfd.readouterr().err.split("\r")[-1]
    progress.show("loss 0.5000")
    progress.advance()
    progress.close()
    last = capfd.readouterr().err.split("\r")[-1]
    assert "16.0/40.0" in last
    assert "img/s" in last
    assert "loss 0.5000" in last
