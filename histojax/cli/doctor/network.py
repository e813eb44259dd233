"""The check of `histojax doctor --coordinator`: can this host reach process 0, and by which address is it reached."""

import os
import socket

from histojax.cli.doctor.checks import FAIL, OK, WARN, Finding
from histojax.core.errors import RunError
from histojax.distributed import addresses

_NAME = "network"
_SECONDS = 5


def reach(coordinator: str) -> Finding:
    """Check the way to process 0 of a run, before it starts.

    Args:
      coordinator: `HOST:PORT`, as for `histojax train`.
    """
    host = coordinator
    try:
        host, port = addresses.split(coordinator)
        own, other = addresses.routes(host, port)[0]
        own = addresses.given(os.environ) or own
    except RunError as error:
        return Finding(_NAME, FAIL, str(error))
    except OSError as error:
        return Finding(_NAME, FAIL, f"{host}: {error.strerror or error}; name process 0 by its IP address")
    facts = {"address": own, "coordinator": other}
    text = f"this host reaches {host} ({other}), and the others reach it at {own}{_own_name(own)}"
    if addresses.is_own(other):
        return Finding(_NAME, OK, f"{text}; process 0 runs on this host", facts)
    if addresses.is_loopback(own):
        text += f"; set {addresses.VARIABLE} to the IP address at which the other hosts reach this one"
        return Finding(_NAME, FAIL, text, facts)
    try:
        socket.create_connection((other, port), timeout=_SECONDS).close()
    except ConnectionRefusedError:
        return Finding(_NAME, WARN, f"{text}; nothing listens at port {port} yet: start process 0 first", facts)
    except OSError as error:
        text += f"; port {port} does not answer ({error}): allow TCP to all ports of the other hosts"
        return Finding(_NAME, FAIL, text, facts)
    return Finding(_NAME, OK, f"{text}; port {port} answers", facts)


def _own_name(own: str) -> str:
    """Return a remark if this host's own name leads elsewhere than the address that it advertises."""
    name = socket.gethostname()
    try:
        found = {str(place[0]) for *_, place in socket.getaddrinfo(name, 0, type=socket.SOCK_DGRAM)}
    except OSError:
        return f" (its own name {name} does not resolve, which does not matter)"
    if own in found:
        return ""
    return f" (its own name {name} resolves to {', '.join(sorted(found))}, which is not used)"
