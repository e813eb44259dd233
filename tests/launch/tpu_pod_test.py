"""tpu_pod.sh: its commands, and all verbs on two hosts that are folders; `gcloud` is simulated."""

import pathlib
import time
from collections.abc import Callable, Mapping

from tests.helpers.launch_scripts import TPU, WORDS, executable, run_script

SETTINGS = ["--name", "pod", "--zone", "zone-1", "--type", "v5litepod-16", "--runtime", "v2-alpha-tpuv5-lite"]
SETTINGS += ["--poll", "1"]


def _tpu(verb: str, *words: str) -> list[str]:
    return [*TPU, verb, *SETTINGS, *words]


def test_tpu_pod_dry_run() -> None:
    done = run_script(
        _tpu("up", "--spot", "--queued", "--project", "p", "--create-args", "--network=n", "--dry-run", *WORDS)
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "gcloud compute tpus queued-resources create pod --node-id=pod --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite --network=n --spot --zone=zone-1 --project=p"
    )
    order = ("create", "tar -czf", "scp", "tar -xzf", "uv pip install", "HISTOJAX_CLUSTER=tpu", "tail -n 100")
    assert [next(i for i, line in enumerate(lines) if word in line) for word in order] == [
        0,
        1,
        2,
        3,
        4,
        5,
        len(lines) - 1,
    ]
    assert "tpu-vm create pod" in run_script(_tpu("create", "--dry-run")).stdout
    assert "tpu-vm delete pod --quiet" in run_script(_tpu("delete", "--dry-run")).stdout
    assert "kill -TERM" in run_script(_tpu("stop", "--dry-run")).stdout


def _wait_for(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _hosts(cloud: Mapping[str, str]) -> list[pathlib.Path]:
    return [pathlib.Path(cloud["CLOUD"], "pod", host, "histojax") for host in "01"]


def test_tpu_pod_runs_on_all_hosts_shows_their_state_and_stops_them(cloud: Mapping[str, str]) -> None:
    for verb in ("create", "copy", "install"):
        done = run_script(_tpu(verb), **cloud)
        assert done.returncode == 0, done.stderr
    done = run_script(_tpu("run", "--", "stop", "/gcs/b/it's  a"), **cloud)
    assert done.returncode == 0, done.stderr
    hosts = _hosts(cloud)
    assert all((host / "configs" / "dala_resnet50_breakhis.py").is_file() for host in hosts)
    _wait_for(lambda: all((h / "run.log").is_file() and "ready" in (h / "run.log").read_text() for h in hosts))
    assert "already running" in run_script(_tpu("run", "--", "stop", "/gcs"), **cloud).stdout
    assert run_script(_tpu("status"), **cloud).stdout.split() == ["READY", "running", "running"]
    assert run_script(_tpu("stop"), **cloud).returncode == 0
    _wait_for(lambda: all((host / "run.code").is_file() for host in hosts))
    assert run_script(_tpu("status"), **cloud).stdout.split() == ["READY", "75", "75"]
    for index, host in enumerate(hosts):
        assert "words ['stop', \"/gcs/b/it's  a\"]" in (host / "run.log").read_text()
        assert f"saved {index}" in (host / "run.log").read_text()
    assert run_script(_tpu("run", "--", "stop", "/gcs/b"), **cloud).returncode == 0
    _wait_for(lambda: all((host / "run.log").read_text().count("ready") == 2 for host in hosts))
    assert run_script(_tpu("status"), **cloud).stdout.split() == [
        "READY",
        "running",
        "running",
    ]  # not the 75 of the earlier run
    assert run_script(_tpu("stop"), **cloud).returncode == 0
    assert "saved 1" in run_script(_tpu("logs", "--worker", "1"), **cloud).stdout  # and ends
    assert run_script(_tpu("delete"), **cloud).returncode == 0
    assert not hosts[0].exists()


def test_tpu_pod_resumes_until_the_run_is_finished(cloud: Mapping[str, str]) -> None:
    done = run_script(_tpu("resume", "--", "twice", "/gcs/b/run"), **cloud)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("interrupted; resuming") == 1
    assert done.stderr.endswith("finished\n")
    calls = pathlib.Path(cloud["CLOUD"], "calls").read_text()
    assert calls.count("tpu-vm create") == calls.count("tpu-vm scp") == 1
    assert calls.count("HISTOJAX_CLUSTER=tpu") == 2


def test_tpu_pod_replaces_a_preempted_tpu(cloud: Mapping[str, str]) -> None:
    assert run_script(_tpu("create"), **cloud).returncode == 0
    pathlib.Path(cloud["CLOUD"], "pod", "state").write_text("PREEMPTED\n")
    done = run_script(_tpu("resume", "--", "end", "/gcs/b/run"), **cloud)
    assert done.returncode == 0, done.stderr
    assert "pod is PREEMPTED; replacing it" in done.stderr
    calls = pathlib.Path(cloud["CLOUD"], "calls").read_text()
    assert calls.count("tpu-vm create pod") == 2
    assert calls.count("tpu-vm delete pod") == 1


def test_tpu_pod_does_not_resume_after_a_failure(cloud: Mapping[str, str]) -> None:
    done = run_script(_tpu("resume", "--", "mixed", "/gcs/b/run"), **cloud)
    assert done.returncode == 1
    assert "a process failed (3)" in done.stderr
    assert "process 1 of 2" in done.stdout


def test_tpu_pod_stops_at_the_first_command_that_fails(cloud: Mapping[str, str]) -> None:
    """Nothing is copied to, or started on, a TPU that could not be created."""
    pathlib.Path(cloud["CLOUD"], "pod").write_text("in the way")
    done = run_script(_tpu("up", "--", "end", "/gcs/b/run"), **cloud)
    assert done.returncode != 0
    assert "scp" not in pathlib.Path(cloud["CLOUD"], "calls").read_text()


def test_tpu_pod_creates_nothing_if_the_state_is_unknown(cloud: Mapping[str, str]) -> None:
    executable(pathlib.Path(cloud["CLOUD"], "bin", "gcloud"), "#!/bin/sh\necho not logged in >&2\nexit 1\n")
    done = run_script(_tpu("create"), **cloud | {"PATH": f"{cloud['CLOUD']}/bin:{cloud['PATH']}"})
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["not logged in", "error: the state of pod is unknown"]
