"""Threads and workers count per host: the processes that share one divide them."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from histojax.core import machine
from histojax.distributed import hosts
from histojax.distributed.hosts import Host
from tests.conftest import ROOT

PROGRAM = """
import json, os, sys
index, count, port, host, own_cores = sys.argv[1:]
from histojax.core import machine
if host:
    machine.host_id = lambda: host
if own_cores:
    os.sched_setaffinity(0, {int(own_cores)})
from histojax.distributed import hosts, processes, runtime
runtime.prepare(1)
processes.initialise({"coordinator": f"localhost:{port}", "num_processes": count, "process_id": index})
from histojax.distributed.sharding import Layout
from histojax.training import build, default_config
found = []
with processes.ending_together():
    for threads, workers in ((0, 0), (7, 8), (1, 1)):
        config = default_config.base()
        config.train.batch_size, config.data.threads, config.data.workers = 12, threads, workers
        spec = build.loader_spec(config, Layout(1), training=True)
        found.append([spec.threads, spec.workers])
    print(json.dumps({"processes": hosts.here().processes, "cores": hosts.here().cores, "found": found}))
"""


@pytest.mark.devices
def test_processes_of_a_run_divide_what_counts_per_host() -> None:
    """Three real processes on this host, and one that calls its host by another name, with a core of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for index, (host, cores) in enumerate((("", ""), ("", ""), ("", ""), ("elsewhere", str(min(usable()))))):
        words = [sys.executable, "-c", PROGRAM, str(index), "4", str(port), host, cores]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(words, cwd=ROOT, text=True, **pipes))
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * 4, "\n".join(err[-2000:] for _, err in said)
    *together, alone = (json.loads(out) for out, _ in said)
    part = max(1, len(usable()) // 3)
    for process in together:
        assert process == {"processes": 3, "cores": part, "found": [[part, 0], [2, 2], [1, 1]]}
    assert alone == {"processes": 1, "cores": 1, "found": [[1, 0], [7, 8], [1, 1]]}


def usable() -> set[int]:
    return os.sched_getaffinity(0)


def test_a_single_process_has_the_whole_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)))
    assert hosts.here() == Host(1, 6)
    assert hosts.here().part(16) == 16


@pytest.mark.parametrize(
    ("masks", "cores"),
    [
        ([range(16)], [16]),
        ([range(16)] * 8, [2] * 8),
        ([range(0, 4), range(4, 8)], [4, 4]),  # a scheduler has bound them
        ([range(4), range(4), range(4)], [1, 1, 1]),
        ([range(2)] * 8, [1] * 8),  # more processes than cores
        ([range(8), range(4)], [6, 2]),  # only some cores are shared
        ([range(6)] * 3, [2, 2, 2]),  # six thirds are not two in floating point
    ],
)
def test_cores_that_several_processes_may_use_are_divided(masks: list[range], cores: list[int]) -> None:
    assert [hosts.share(own, masks) for own in masks] == [Host(len(masks), each) for each in cores]


def test_every_process_of_a_host_gets_the_same_part() -> None:
    host = Host(8, 2)
    assert [host.part(count) for count in (1, 7, 8, 16, 31)] == [1, 1, 1, 2, 3]


def test_a_host_is_told_by_its_name_and_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine.host_id()
    assert before == machine.host_id()
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert machine.host_id() != before
    if (boot := pathlib.Path("/proc/sys/kernel/random/boot_id")).is_file():
        assert boot.read_text().strip() in before
