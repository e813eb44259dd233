"""Every use of jax's private modules in this room; an upgrade breaks here or nowhere."""

import types
from typing import Any

from jax._src import compiler, config, distributed, xla_bridge
from jax._src.lib import _jax
from jax.extend.backend import register_backend_factory


def key_value_store() -> Any:
    """Return this process's client of the key-value store that jax's coordinator (process 0) keeps.

    jax has no public access to it; orbax uses the same attribute. None before `jax.distributed.initialize`.
    """
    return distributed.global_state.client


def membership() -> tuple[str, int, int]:
    """Return what `jax.distributed.initialize` found: `host:port` of process 0, number of processes and own index.

    jax's public functions start the devices, which must not have started when `advertise` is called.
    """
    state = distributed.global_state
    return state.coordinator_address or "", state.num_processes, state.process_id


def advertise(address: str) -> None:
    """Let Gloo, which connects the CPUs of several processes, give this address to the other processes.

    Call it after `jax.distributed.initialize` and before the first use of a device. jax gives Gloo no address, and Gloo
    then takes the one to which the host's own name resolves. If the user has chosen another implementation than
    Gloo (`JAX_CPU_COLLECTIVES_IMPLEMENTATION`), nothing changes.

    Args:
      address: an IP address of this host.
    """

    def client() -> Any:
        connections = _jax.make_gloo_tcp_collectives(distributed_client=key_value_store(), hostname=address)
        return xla_bridge.make_cpu_client(connections)

    if config.cpu_collectives_implementation.value == "gloo":
        register_backend_factory("cpu", client, priority=0, fail_quietly=False)


def cache_in_every_process() -> None:
    """Let this process, like process 0, keep its compiled programs for the next start.

    jax keeps those of process 0 only, because on accelerators all processes would write the same files. A program for
    CPUs belongs to one process, so without this all others compile again at each start.
    """
    first = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=0))
    code = compiler._cache_write.__code__
    compiler._cache_write = types.FunctionType(code, vars(compiler) | {"distributed": first})
