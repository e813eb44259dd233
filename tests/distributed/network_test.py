"""One run on several hosts of a network. The long form, with broken networks, is benchmarks/network.py."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.helpers import network, quick_run
from tests.helpers.network import Network
from tests.helpers.processes import Processes
from tests.helpers.programs import arrays

pytestmark = [
    pytest.mark.devices,  # must not be skipped in CI, which runs as root
    pytest.mark.skipif(bool(network.missing()), reason=f"no network of several hosts: {network.missing()}"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return quick_run.images(tmp_path_factory.mktemp("images") / "synthetic")


@pytest.mark.slow
def test_two_hosts_train_as_one_process_does(images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """As on Debian: each host's own name resolves to 127.0.1.1, also that of the coordinator."""
    Processes(tmp_path / "one", images, 1, 2).finish()
    with Network("loopback", "loopback") as built:
        Processes(tmp_path / "two", images, 2, 1, hosts=built.hosts, coordinator="host1:8476").finish()
    for series in ("last", "best"):
        one, two = arrays(tmp_path / "one", series), arrays(tmp_path / "two", series)
        assert len(one) > 10
        assert one.keys() == two.keys()
        for path, value in one.items():
            np.testing.assert_allclose(two[path], value, rtol=1e-5, atol=1e-6, err_msg=path)


SUM = """
import sys
import numpy as np
from histojax.distributed import processes
coordinator, count, index = sys.argv[1:]
with processes.ending_together():
    processes.initialise({"coordinator": coordinator, "num_processes": count, "process_id": index})
    print("received", processes.of_first(np.full(3, 10 + int(index))).tolist(), flush=True)
"""


@pytest.mark.parametrize(
    ("resolutions", "coordinator"),
    [
        (("loopback", "own", "none"), "10.77.0.1"),
        (("own", "own"), "host1"),
        (("none", "loopback"), "[fd77::1]"),
    ],
)
def test_hosts_reach_each_other(resolutions: tuple[str, ...], coordinator: str) -> None:
    """Whatever the hosts' own names resolve to, for an address, an IPv6 address and a name of the coordinator."""
    words = [sys.executable, "-c", SUM, f"{coordinator}:8476", str(len(resolutions))]
    with Network(*resolutions) as built:
        started = [
            subprocess.Popen(host.words(*words, str(index)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for index, host in enumerate(built.hosts)
        ]
        try:
            said = [process.communicate(timeout=90)[0].decode() for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
    assert [process.returncode for process in started] == [0] * len(resolutions), said
    assert all("received [10, 10, 10]" in text for text in said), said


LOOK = """
import sys
from histojax.cli.doctor import network
for coordinator in sys.argv[1:]:
    found = network.reach(coordinator)
    print(found.level, found.text)
"""


def test_doctor_looks_at_the_way_to_the_coordinator() -> None:
    """Before process 0 listens, once it does, and where no host has the address."""
    words = [sys.executable, "-c", LOOK]
    with Network("loopback", "loopback") as built:
        first, second = built.hosts
        listen = "import socket; s = socket.create_server(('10.77.0.1', 8476)); print('on', flush=True); s.accept()"
        server = subprocess.Popen(first.words(sys.executable, "-c", listen), cwd=ROOT, stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"on\n"
            done = second.run(*words, "host1:9", "10.77.0.1:8476", "10.99.0.1:8476")
        finally:
            server.kill()
            server.communicate()
    refused, answers, nowhere = done.stdout.splitlines()
    assert refused.startswith("warn this host reaches host1 (10.77.0.1), and the others reach it at 10.77.0.2"), done
    assert "its own name host2 resolves to 127.0.1.1, which is not used" in refused
    assert "nothing listens at port 9 yet: start process 0 first" in refused
    assert answers.startswith("ok "), done
    assert answers.endswith("port 8476 answers")
    assert nowhere.startswith("fail 10.99.0.1: Network is unreachable; name process 0 by its IP address")
