"""Which address of this host the other processes of a run get."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from histojax.core.errors import RunError
from histojax.distributed import addresses


class Store:
    """The key-value store of a run in which the other processes have written the coordinator's address they see."""

    def __init__(self, *seen: str):
        self.values = {f"histojax/coordinator/{index}": address for index, address in enumerate(seen)}

    def key_value_set(self, key: str, value: str) -> None:
        self.values[key] = value

    def wait_at_barrier(self, name: str, timeout_in_ms: int) -> None:
        assert name == "histojax/reached"

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        return self.values[key]


@pytest.fixture
def coordinator() -> Iterator[str]:
    """A port of this host that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_run_on_one_host_uses_loopback(coordinator: str) -> None:
    store = Store("127.0.0.1", "127.0.0.1")
    assert addresses.advertised(coordinator, 0, 2, store) == "127.0.0.1"
    assert store.values["histojax/coordinator/0"] == "127.0.0.1"


def test_the_coordinators_host_learns_its_address_from_the_others(coordinator: str) -> None:
    """Its own name resolves to loopback there; another process on that host takes the same address."""
    store = Store("127.0.0.1", "::1", "10.77.0.1", "10.77.0.1")
    for index in (0, 1):
        assert addresses.advertised(coordinator, index, 4, store) == "10.77.0.1"


def test_the_user_may_choose_the_address(coordinator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTOJAX_ADDRESS", "127.0.0.2")
    assert addresses.advertised(coordinator, 0, 2, Store("127.0.0.1", "10.77.0.1")) == "127.0.0.2"


@pytest.mark.parametrize("wrong", ["192.0.2.1", "host1"])
def test_an_address_of_another_host_is_refused(wrong: str) -> None:
    with pytest.raises(RunError, match=f"HISTOJAX_ADDRESS={wrong} is not an IP address of this host"):
        addresses.given({"HISTOJAX_ADDRESS": wrong})
    assert addresses.given({}) == ""


def test_routes_are_found_without_a_connection() -> None:
    assert addresses.routes("127.0.0.1", 9) == [("127.0.0.1", "127.0.0.1")]
    with pytest.raises(OSError, match=r"not known|resolution"):
        addresses.routes("nowhere.invalid", 9)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.1.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.77.0.1", False), ("fe80::1%eth0", False)],
)
def test_loopback_is_recognised(address: str, expected: Any) -> None:
    assert addresses.is_loopback(address) is expected


def test_a_process_that_cannot_be_reached_is_named() -> None:
    store = Store()
    with socket.create_server(("127.0.0.1", 0)) as other:
        store.values["histojax/listens/1"] = f"127.0.0.1 {other.getsockname()[1]}"
        addresses.check_connections("127.0.0.1", 0, 2, store)
    with pytest.raises(RunError, match=r"process 0 of 2 .* cannot reach process 1 at 127.0.0.1, port .*refused"):
        addresses.check_connections("127.0.0.1", 0, 2, store)
