"""The long form of tests/distributed/network_test.py: one run on several hosts, while their network breaks.

    python -m benchmarks.network --json benchmarks/results/network.json

The hosts are network namespaces of this machine. It needs root, `ip` (iproute2), `nft` (nftables) and libfaketime
(faketime), and says which of them is missing. Each run either finishes with the arrays of a run on loopback, or all of
its processes end with a message within a minute. Exit code 1 if one does neither. `--only NAME` runs some cases.
"""

import argparse
import dataclasses
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import record_results
from data_pipelines.synthetic.generator import SyntheticSpec, generate
from tests.helpers.network import Host, Network, missing
from tests.helpers.processes import Processes
from tests.helpers.programs import arrays, last_logged_step

PORT = 8476
LIMIT = 60.0  # seconds from the event until every process has ended
_FAKE_TIME = "libfaketimeMT.so.1"
COLUMNS = {
    "network": "{title}",
    "outcome": "{outcome}",
    "seconds": "{seconds:.0f}",
    "exit codes": "{codes}",
}
Action = Callable[[Network, Processes], None]


@dataclasses.dataclass(frozen=True)
class Case:
    """One run on a network.

    Attributes:
      title: what is special about the network.
      resolutions: how each host's own name resolves.
      coordinator: host of process 0 as the processes get it.
      before: words before the command of a process, by index.
      prepare: changes the network before the run starts.
      event: changes it after twenty steps; the seconds count from there, else from the start.
      finishes: whether the run is expected to finish; else every process is expected to end with a message.
      epochs: number of epochs; runs that do not finish have enough to last.
      environment: further variables of the processes.
      silent: indices of processes that were killed, and so say nothing.
    """

    title: str
    resolutions: tuple[str, ...] = ("loopback", "loopback")
    coordinator: str = "host1"
    before: Mapping[int, list[str]] = dataclasses.field(default_factory=dict)
    prepare: Callable[[Network], None] | None = None
    event: Action | None = None
    finishes: bool = True
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    silent: tuple[int, ...] = ()


def cut(network: Network, _: Processes) -> None:
    """Take the second host off the network for ten seconds."""
    network.plug(network.hosts[1], into=False)
    time.sleep(10)
    network.plug(network.hosts[1], into=True)


def unplug(index: int) -> Action:
    """Return the event that takes a host off the network for good."""
    return lambda network, _: network.plug(network.hosts[index], into=False)


def drop(host: Host, condition: str) -> None:
    """Drop the packets to a host that match a condition of nftables."""
    chain = "add chain inet cut input { type filter hook input priority 0; }"
    host.run("nft", f'add table inet cut; {chain}; add rule inet cut input iifname "eth0" {condition} drop')


def _fake_clock() -> list[str]:
    (library,) = pathlib.Path("/usr/lib").glob(f"*/faketime/{_FAKE_TIME}")
    return ["env", f"LD_PRELOAD={library}", "FAKETIME=+1h", "FAKETIME_DONT_FAKE_MONOTONIC=1"]


def cases() -> dict[str, Case]:
    """Return all cases by name."""
    late = ["sh", "-c", 'sleep 20 && exec "$@"', "sh"]
    soon = {"HISTOJAX_START_TIMEOUT": "20"}
    new_connections = "tcp flags & (syn | ack) == syn"
    return {
        "two_hosts": Case("two hosts, own names at 127.0.1.1"),
        "own_address": Case("two hosts, own names at their addresses", ("own", "own")),
        "four_hosts": Case(
            "four hosts, own names of every kind", ("loopback", "own", "none", "own"), "10.77.0.1"
        ),
        "ipv6": Case("two hosts, coordinator by IPv6", coordinator="[fd77::1]"),
        "slow": Case("20 ms per direction, 1 % of frames lost", prepare=lambda network: network.disturb(20, 0.01)),
        "late": Case("second host starts 20 s later", before={1: late}),
        "clock": Case("second host's clock is 1 h ahead", before={1: _fake_clock()}),
        "cut": Case("second host off the network for 10 s", event=cut),
        "host_gone": Case("second host off the network for good", event=unplug(1), finishes=False),
        "coordinator_gone": Case("coordinator's host off the network for good", event=unplug(0), finishes=False),
        "coordinator_killed": Case(
            "coordinator's process killed", event=lambda _, run: run.started[0].kill(), finishes=False, silent=(0,)
        ),
        "port_blocked": Case(
            "coordinator's port is blocked (20 s to start)",
            prepare=lambda network: drop(network.hosts[0], f"tcp dport {PORT}"), finishes=False, environment=soon,
        ),
        "other_ports_blocked": Case(
            "only the coordinator's port is open",
            prepare=lambda network: [drop(host, f"{new_connections} tcp dport != {PORT}") for host in network.hosts],
            finishes=False,
        ),
        "no_process": Case(
            "second host's process never starts (20 s to start)", before={1: ["true"]}, finishes=False,
            environment=soon, silent=(1,),
        ),
    }  # fmt: skip


def run(
    case: Case, folder: pathlib.Path, images: pathlib.Path, reference: Mapping[int, pathlib.Path]
) -> dict[str, Any]:
    """Run a case; return its row, in which `as_expected` says whether it ended as it should."""
    workdir = folder / "run"
    count = len(case.resolutions)
    fields = [] if case.finishes else ["--config.train.epochs=1000"]
    with Network(*case.resolutions) as network:
        if case.prepare is not None:
            case.prepare(network)
        coordinator = f"{case.coordinator}:{PORT}"
        began = time.monotonic()
        started = Processes(
            workdir, images, count, 1, *fields,
            hosts=network.hosts, coordinator=coordinator, before=case.before, environment=case.environment,
        )  # fmt: skip
        try:
            if case.event is not None:
                started.until(lambda: last_logged_step(workdir) >= 4)
                began = time.monotonic()
                case.event(network, started)
            ends = _wait(started, 240)
        finally:
            started.kill()
        seconds = max(ends.values(), default=began + 240) - began
    codes = [process.returncode if index in ends else None for index, process in enumerate(started.started)]
    row: dict[str, Any] = {"title": case.title, "seconds": round(seconds, 1)}
    row["codes"] = ", ".join("none" if code is None else str(code) for code in codes)
    if all(code == 0 for code in codes):
        difference = _difference(workdir, reference[count])
        row |= {"outcome": f"finished, arrays differ by {difference:.1e}", "last": "", "difference": difference}
        return row | {"as_expected": case.finishes and difference == 0}
    texts = [_last_line(log) for log in started.logs]
    row |= {"outcome": "ended", "last": "; ".join(f"host{i}: {text}" for i, text in enumerate(texts, 1) if text)}
    told = all(text or index in case.silent for index, text in enumerate(texts))
    return row | {"as_expected": not case.finishes and told and None not in codes and seconds <= LIMIT}


def _wait(started: Processes, timeout: float) -> dict[int, float]:
    """Return when each process has ended, by index; those that run after the timeout are missing."""
    ends: dict[int, float] = {}
    deadline = time.monotonic() + timeout
    while len(ends) < started.count and time.monotonic() < deadline:
        for index, process in enumerate(started.started):
            if process.poll() is not None:
                ends.setdefault(index, time.monotonic())
        time.sleep(0.1)
    return ends


def _difference(workdir: pathlib.Path, reference: pathlib.Path) -> float:
    """Return the largest difference of an array in the last checkpoint from that of the run on loopback."""
    ours, theirs = arrays(workdir, "last"), arrays(reference, "last")
    assert ours.keys() == theirs.keys()
    return max(float(np.max(np.abs(np.float64(ours[key]) - np.float64(theirs[key])), initial=0)) for key in theirs)


def _last_line(log: pathlib.Path) -> str:
    """Return the last line of a process that is a message: ours, or the one with which jax ends a process."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    found = [line for line in lines if line.startswith("error: ") or "Terminating process because" in line]
    return found[-1][:400] if found else ""


def main() -> None:
    """Run the cases; print a line for each, and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="results file to write")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names of cases (default: all)")
    given = parser.parse_args()
    if reason := missing():
        sys.exit(f"error: {reason}")
    if shutil.which("nft") is None or not list(pathlib.Path("/usr/lib").glob(f"*/faketime/{_FAKE_TIME}")):
        sys.exit("error: nft or libfaketime is missing: apt-get install nftables faketime")
    known = cases()
    if unknown := set(given.only) - set(known):
        sys.exit(f"error: --only: no case {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    chosen = {name: known[name] for name in given.only or known}
    rows = {}
    with tempfile.TemporaryDirectory(prefix="network-") as place:
        folder = pathlib.Path(place)
        spec = SyntheticSpec(cases_per_subtype=(1, 2, 1, 1, 2, 1, 1, 1), images_per_patient=4, magnifications=("100X",))
        images = generate(folder / "images", spec)
        reference = {}
        for count in {len(case.resolutions) for case in chosen.values()}:
            reference[count] = folder / f"loopback{count}" / "run"
            Processes(reference[count], images, count, 1).finish()
        for name, case in chosen.items():
            rows[name] = run(case, folder / name, images, reference)
            print(name, rows[name], flush=True)
    if given.json is not None:
        record_results.record_here(
            given.json,
            "python -m benchmarks.network --json benchmarks/results/network.json",
            f"{images_count(spec)} computer-made images",
            "network namespaces on one machine, joined by a bridge; a tiny model, 3 epochs, one CPU device per process",
            COLUMNS,
            rows,
        )
    sys.exit(not all(row["as_expected"] for row in rows.values()))


def images_count(spec: SyntheticSpec) -> int:
    """Return the number of images that the generator makes."""
    return sum(spec.cases_per_subtype) * spec.images_per_patient * len(spec.magnifications)


if __name__ == "__main__":
    main()
