"""`histojax doctor --coordinator`: the way to process 0, before a run."""

import pytest

from histojax.cli.doctor import checks, network
from tests.helpers.buckets import free_port


def test_on_the_host_of_process_0() -> None:
    found = network.reach(f"127.0.0.1:{free_port()}")
    assert found.level == checks.OK
    assert "process 0 runs on this host" in found.text


@pytest.mark.parametrize(
    ("coordinator", "words"),
    [
        ("host1", "coordinator 'host1' is not HOST:PORT"),
        ("fd00::1:8476", "an IPv6 address needs brackets, such as [fd00::1]:8476"),
        ("no-such-host.invalid:1234", "no-such-host.invalid: "),
    ],
)
def test_a_coordinator_that_is_none(coordinator: str, words: str) -> None:
    found = network.reach(coordinator)
    assert found.level == checks.FAIL
    assert words in found.text


def test_an_address_of_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTOJAX_ADDRESS", "192.0.2.7")
    found = network.reach("127.0.0.1:1234")
    assert found.level == checks.FAIL
    assert "HISTOJAX_ADDRESS=192.0.2.7 is not an IP address of this host" in found.text


def test_a_name_that_leads_elsewhere_is_remarked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "localhost")
    assert "its own name localhost resolves to " in network._own_name("192.0.2.7")
    monkeypatch.setattr("socket.gethostname", lambda: "no-such-host.invalid")
    assert "its own name no-such-host.invalid does not resolve" in network._own_name("192.0.2.7")
