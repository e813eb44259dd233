"""One run of several real processes over localhost: stopped, killed, and resumed elsewhere."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from histojax.core.errors import RunError
from histojax.distributed import processes
from histojax.distributed.processes import Membership
from tests.conftest import ROOT
from tests.helpers.processes import CONFIG, Processes
from tests.helpers.programs import last_logged_step

pytestmark = [pytest.mark.devices]
NOWHERE = "/histojax-tests/nowhere"


def losses(workdir: pathlib.Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def assert_same_curve(workdir: pathlib.Path, other: pathlib.Path, rtol: float = 1e-5) -> None:
    ours, theirs = losses(workdir), losses(other)
    assert list(ours) == list(theirs)
    assert len(ours) > 5
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=rtol)
    tables = [pd.read_parquet(folder / "predictions.parquet").set_index("image_id") for folder in (workdir, other)]
    assert tables[0].index.is_unique  # every image once, although the sides do not divide among the devices
    assert tables[0].index.tolist() == tables[1].index.tolist()
    np.testing.assert_allclose(tables[0]["prob_malignant"], tables[1]["prob_malignant"], rtol=1e-4)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, images: pathlib.Path) -> pathlib.Path:
    """An undisturbed run of one process with one device."""
    workdir = tmp_path_factory.mktemp("single") / "run"
    Processes(workdir, images, 1, 1).finish()
    return workdir


# ---- Membership -----------------------------------------------------------------------------------------------------


def test_flags_take_precedence_over_the_environment_and_that_over_slurm() -> None:
    slurm = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}
    ours = {"HISTOJAX_COORDINATOR": "a:1", "HISTOJAX_NUM_PROCESSES": "3", "HISTOJAX_PROCESS_ID": "0"}
    assert Membership.find({}, {}) == Membership()
    assert Membership.find({}, slurm) == Membership(cluster="slurm")
    assert Membership.find({}, slurm | ours) == Membership("a:1", 3, 0)
    assert Membership.find({"process_id": "2", "coordinator": "[::1]:5"}, ours) == Membership("[::1]:5", 3, 2)
    assert Membership.find({}, {"HISTOJAX_CLUSTER": "tpu"}) == Membership(cluster="tpu")
    # A batch script is not a step, so it is a single process.
    assert Membership.find({}, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}) == Membership()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"coordinator": "a:1"}, r"also needs --num_processes \(or HISTOJAX_NUM_PROCESSES\), --process_id"),
        ({"coordinator": "a", "num_processes": "2", "process_id": "0"}, "coordinator 'a' is not HOST:PORT"),
        ({"coordinator": "::1:5", "num_processes": "2", "process_id": "0"}, "an IPv6 address needs brackets"),
        ({"coordinator": "a:1", "num_processes": "2", "process_id": "2"}, "process_id=2 of num_processes=2: both must"),
        ({"coordinator": "a:1", "num_processes": "two", "process_id": "0"}, "num_processes=two"),
    ],
)
def test_an_incomplete_membership_is_rejected(flags: dict[str, str], message: str) -> None:
    with pytest.raises(RunError, match=message):
        Membership.find(flags, {})
    with pytest.raises(RunError, match="HISTOJAX_CLUSTER=mpi is not one of tpu, slurm"):
        Membership.find({}, {"HISTOJAX_CLUSTER": "mpi"})


# ---- Equal results --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_that_divide_the_parameters_do_not_change_a_run(
    single: pathlib.Path, images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The batch statistics are those of the global batch. The next test compares data-parallel processes."""
    workdir, count, devices = tmp_path / "run", 2, 2
    run = Processes(workdir, images, count, devices, "--config.sharding.fsdp=4")
    run.finish()
    assert "[Gloo]" not in run.text()
    assert_same_curve(workdir, single)
    session = json.loads((workdir / "run.json").read_text())["sessions"][-1]
    assert session["devices"]["processes"] == count
    assert session["devices"]["count"] == count * devices
    assert len(list((workdir / "tensorboard").iterdir())) == 1  # only the first process writes it


# ---- Stopped, killed, moved -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sigterm_to_one_process_saves_all_and_the_run_moves(
    single: pathlib.Path, images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    first = Processes(workdir, images, 2, 2)
    first.until(lambda: last_logged_step(workdir) >= 2)
    first.started[1].send_signal(signal.SIGTERM)
    assert first.codes(30) == [75, 75], first.text()
    stopped = json.loads((workdir / "run.json").read_text())["sessions"][-1]
    assert stopped["status"] == "interrupted"
    assert (workdir / "checkpoints" / "last" / str(stopped["to_step"]) / "sha256.json").is_file()

    second = Processes(workdir, images, 1, 4)
    second.until(lambda: last_logged_step(workdir) >= stopped["to_step"] + 3)
    second.started[0].send_signal(signal.SIGTERM)
    assert second.codes(30) == [75], second.text()
    Processes(workdir, images, 2, 1).finish()
    sessions = json.loads((workdir / "run.json").read_text())["sessions"]
    assert [session["status"] for session in sessions] == ["interrupted", "interrupted", "finished"]
    assert sessions[1]["from_step"] == stopped["to_step"] > 0
    assert_same_curve(workdir, single)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, images: pathlib.Path) -> dict[str, Processes]:
    """Four runs of two processes: one of them is killed, or fails. All at once, because most of the time they wait."""
    folder = tmp_path_factory.mktemp("broken")
    runs = {f"killed {i}": Processes(folder / f"killed{i}", images, 2, 1, "--config.train.epochs=1000") for i in (1, 0)}
    try:
        for i in (1, 0):
            workdir = folder / f"killed{i}"
            runs[f"killed {i}"].until(functools.partial(_has_logged, workdir, 2))
            runs[f"killed {i}"].started[i].kill()
        for i in (1, 0):
            wrong = {i: [f"--config.data.root={NOWHERE}"]}  # the other process waits for this one
            runs[f"failed {i}"] = Processes(folder / f"failed{i}", images, 2, 1, only=wrong)
        for run in runs.values():
            run.codes(90)
    finally:
        for run in runs.values():
            run.kill()
    return runs


def _has_logged(workdir: pathlib.Path, step: int) -> bool:
    return last_logged_step(workdir) >= step


@pytest.mark.slow
@pytest.mark.parametrize("dead", [1, 0])
def test_a_process_that_waits_for_a_killed_one_ends_and_says_so(broken: dict[str, Processes], dead: int) -> None:
    both = broken[f"killed {dead}"]
    codes = [process.returncode for process in both.started]
    assert codes[dead] == -signal.SIGKILL
    text = both.logs[1 - dead].read_text()
    if dead == 1:
        assert codes[0] == 75
        assert "error: process 1 of 2 (" in text
        assert "rerun the same command to resume from the last one" in text
    else:  # the coordinator lives in process 0, and jax ends every process that cannot reach it
        assert codes[1] == -signal.SIGABRT
        assert "the leader task was preempted/died" in text


@pytest.mark.slow
@pytest.mark.parametrize("failing", [1, 0])
def test_every_process_reports_the_cause_of_a_failure(broken: dict[str, Processes], failing: int) -> None:
    both = broken[f"failed {failing}"]
    assert [process.returncode for process in both.started] == [1, 1], both.text()
    assert f"error: {NOWHERE}: no such file or folder" in both.logs[failing].read_text()
    text = both.logs[1 - failing].read_text()
    assert f"error: process {failing} of 2 (" in text
    assert f"failed: {NOWHERE}: no such file or folder" in text
    assert "Traceback" not in text


class Ended(Exception):
    """Stands for the end of the process."""


class FakePeers:
    """Records what a process reports to the others, and whether it waits to learn why another one is gone."""

    def __init__(self) -> None:
        self.causes: list[str] = []

    def fail(self, cause: str) -> None:
        self.causes.append(cause)

    def wait(self) -> None:
        raise Ended("waits")  # the watch ends the process


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> FakePeers:
    def end(code: int) -> None:
        raise Ended(code)

    peers = FakePeers()
    monkeypatch.setattr(processes._Peers, "current", peers)
    monkeypatch.setattr(os, "_exit", end)
    return peers


def test_ctrl_c_ends_one_of_several_processes_without_a_traceback(
    peers: FakePeers, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Ended, match="130"), processes.ending_together():
        raise KeyboardInterrupt
    said = capsys.readouterr().err
    assert said == "interrupted; rerun the same command to resume from the last checkpoint\n"
    assert peers.causes == [said.strip()]


@pytest.mark.parametrize("lost", [True, False])
def test_a_process_that_lost_another_one_lets_that_one_say_why(
    peers: FakePeers, capsys: pytest.CaptureFixture[str], lost: bool
) -> None:
    # What jax raises before the first step; later it is a JaxRuntimeError.
    error = ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer" if lost else "a fault of our own")
    with pytest.raises(Ended, match="waits" if lost else "1"), processes.ending_together():
        raise error
    assert ("Traceback" in capsys.readouterr().err) == (not lost)
    assert peers.causes == ([] if lost else ["ValueError: a fault of our own"])


def test_a_missing_process_0_is_named(tmp_path: pathlib.Path) -> None:
    flags = ("--config=" + CONFIG, f"--workdir={tmp_path}", "--num_processes=2", "--process_id=1")
    environment = os.environ | {"HISTOJAX_COORDINATOR": "localhost:1", "HISTOJAX_START_TIMEOUT": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "histojax.main", *flags],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: process 1 of 2: no answer from localhost:1 within 2 s" in done.stderr
