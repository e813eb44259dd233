"""Find the address at which the other processes of a run reach this one.

Processes that compute on CPUs exchange their sums by Gloo: each one advertises an address, to which the others connect.
By default that is the address to which the host's own name resolves, which on Debian, Ubuntu and cloud images is
127.0.0.1 or 127.0.1.1. Here it is the address from which this host reaches the coordinator.
"""

import concurrent.futures
import contextlib
import ipaddress
import os
import socket
from collections.abc import Mapping
from typing import Any

from histojax.core.errors import RunError

VARIABLE = "HISTOJAX_ADDRESS"
_SEEN = "histojax/coordinator/"  # keys: the address at which each process reaches process 0
_LISTENS = "histojax/listens/"  # keys: address and port at which each process accepts a connection, as a trial
_CONNECT = 15  # seconds until another process must have accepted it
_SECONDS = 30  # until a connected process must have written its key


def split(coordinator: str) -> tuple[str, int]:
    """Split `HOST:PORT`; an IPv6 address stands in brackets, which are left out.

    Raises:
      RunError: it is not of this form.
    """
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise RunError(f"coordinator '{coordinator}' is not HOST:PORT")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise RunError(f"coordinator '{coordinator}': an IPv6 address needs brackets, such as [fd00::1]:8476")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Return whether an IP address names the machine that uses it."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def is_own(address: str) -> bool:
    """Return whether an IP address belongs to this host."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(place)
    except OSError:  # the system's answer to the question
        return False
    return True


def given(environment: Mapping[str, str]) -> str:
    """Return the address that the user sets as HISTOJAX_ADDRESS; empty if it is not set.

    Raises:
      RunError: it is not an IP address of this host.
    """
    address = environment.get(VARIABLE, "")
    try:
        valid = not address or (ipaddress.ip_address(address) and is_own(address))
    except ValueError:
        valid = False
    if not valid:
        raise RunError(
            f"{VARIABLE}={address} is not an IP address of this host ({socket.gethostname()}): `ip -brief address` "
            "lists them. Unset it to use the address from which this host reaches the coordinator"
        )
    return address


def routes(host: str, port: int) -> list[tuple[str, str]]:
    """Return this host's own address and the other host's, for each address of that host with a route.

    Nothing is sent.

    Raises:
      OSError: the name does not resolve, or no address of it has a route.
    """
    found = []
    last: OSError | None = None
    for family, kind, protocol, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.connect(place)
            except OSError as error:  # another address of that host may have a route
                last = error
                continue
            found.append((str(probe.getsockname()[0]), str(place[0])))
    if not found:
        raise last or OSError(f"{host} has no address")
    return found


def advertised(coordinator: str, index: int, count: int, store: Any) -> str:
    """Return the address of this host at which the other processes reach this one. All processes must call this.

    A process on the coordinator's own host may reach it by loopback. It takes the address that processes on other hosts
    use for the coordinator, which belongs to this host.

    Args:
      coordinator: `host:port` of process 0, which listens there.
      index: index of this process.
      count: number of processes.
      store: the key-value store of the run.

    Raises:
      RunError: HISTOJAX_ADDRESS is wrong.
      OSError: the coordinator cannot be reached.
    """
    with socket.create_connection(split(coordinator), timeout=_SECONDS) as connection:
        own, other = (str(place[0]) for place in (connection.getsockname(), connection.getpeername()))
    store.key_value_set(f"{_SEEN}{index}", other)
    if address := given(os.environ):
        return address
    if not is_loopback(own):
        return own
    seen = (store.blocking_key_value_get(f"{_SEEN}{i}", _SECONDS * 1000) for i in range(count) if i != index)
    return next((address for address in seen if not is_loopback(address)), own)


def check_connections(address: str, index: int, count: int, store: Any) -> None:
    """Connect to every other process as Gloo will: on a random port. All processes must call this.

    Gloo itself would wait for minutes, and would name only the other one's address.

    Args:
      address: the address that this process advertises.
      index: index of this process.
      count: number of processes.
      store: the key-value store of the run.

    Raises:
      RunError: another process cannot be reached.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family, backlog=count) as server:
        store.key_value_set(f"{_LISTENS}{index}", f"{address} {server.getsockname()[1]}")

        def connect(other: int) -> str:
            place, port = store.blocking_key_value_get(f"{_LISTENS}{other}", _SECONDS * 1000).split()
            try:
                with contextlib.closing(socket.create_connection((place, int(port)), timeout=_CONNECT)):
                    return ""
            except OSError as error:
                return f"process {other} at {place}, port {port} ({error})"

        others = [other for other in range(count) if other != index]
        with concurrent.futures.ThreadPoolExecutor(min(32, len(others))) as pool:
            failed = list(filter(None, pool.map(connect, others)))
        if failed:
            raise RunError(
                f"process {index} of {count} ({socket.gethostname()}, {address}) cannot reach {'; '.join(failed[:3])}. "
                "Processes that compute on CPUs connect to each other on random ports: allow all TCP ports between the "
                f"hosts, or set {VARIABLE} on a host to its address in a network where they are allowed"
            )
        store.wait_at_barrier("histojax/reached", 2 * _SECONDS * 1000)  # until then others may connect
