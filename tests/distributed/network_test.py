"""One run on several hosts of a network. The long form, with broken networks, is benchmarks/network.py."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.synthetic.generator import SyntheticSpec, generate
from tests.conftest import ROOT
from tests.helpers import network
from tests.helpers.network import Network
from tests.helpers.processes import Processes
from tests.helpers.programs import arrays

pytestmark = [
    pytest.mark.devices,  # must not be skipped in CI, which runs as root
    pytest.mark.skipif(bool(network.missing()), reason=f"no network of several hosts: {network.missing()}"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    spec = SyntheticSpec(cases_per_subtype=(1, 2, 1, 1, 2, 1, 1, 1), images_per_patient=4, magnifications=("100X",))
    return generate(tmp_path_factory.mktemp("images") / "synthetic", spec)


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
