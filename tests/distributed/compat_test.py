"""The private parts of jax that are used: its coordinator's key-value store, and the address that Gloo advertises."""

import os
import pathlib
import socket
import subprocess
import sys

from histojax.distributed import compat

# In a new process, because jax.distributed can be initialised only before the first computation.
PROGRAM = """
import sys, jax
from histojax.distributed import compat
jax.distributed.initialize(sys.argv[1], 1, 0, cluster_detection_method="deactivate")
store = compat.key_value_store()
store.key_value_set("a/b/0", "first")
store.key_value_set("a/b/0", "second", allow_overwrite=True)
print(store.key_value_dir_get("a/b/"))
store.wait_at_barrier("end", 10_000)
"""


ADVERTISED = """
import sys, jax
from histojax.distributed import compat
jax.distributed.initialize(sys.argv[1], 1, 0, cluster_detection_method="deactivate")
print(compat.membership() == (sys.argv[1], 1, 0), compat.xla_bridge.backends_are_initialized())
compat.advertise(sys.argv[2])
print(jax.devices()[0].platform)
"""

CACHED = """
import sys, jax, jax.numpy as jnp
from histojax.distributed import processes
jax.config.update("jax_compilation_cache_dir", sys.argv[2])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
processes.initialise({"coordinator": sys.argv[1], "num_processes": "2", "process_id": sys.argv[3]})
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("cache_hits")))
x = jax.make_array_from_callback(
    (2,), jax.NamedSharding(jax.make_mesh((2,), ("a",)), jax.P("a")), lambda place: jnp.ones(1)
)
total = jax.jit(lambda x: jnp.sin(x).sum())(x).block_until_ready()
print(sum(hits), flush=True)
"""


def in_a_new_process(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", program, coordinator, *words]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def test_the_key_value_store_stores_lists_and_waits() -> None:
    done = in_a_new_process(PROGRAM)
    assert done.stdout.strip() == "[('a/b/0', 'second')]", done.stderr


def test_every_process_finds_its_programs_at_the_next_start(tmp_path: pathlib.Path) -> None:
    found = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            words = [sys.executable, "-c", CACHED, f"localhost:{free.getsockname()[1]}", str(tmp_path)]
        started = [subprocess.Popen([*words, str(i)], stdout=subprocess.PIPE, text=True) for i in range(2)]
        found.append([int(process.communicate(timeout=120)[0]) for process in started])
    assert found[0] == [0, 0]
    assert found[1][0] == found[1][1] > 0


def test_a_single_process_has_no_store_and_no_coordinator() -> None:
    assert compat.key_value_store() is None
    assert compat.membership() == ("", 1, 0)


def test_gloo_advertises_the_given_address() -> None:
    """Gloo binds it when the devices start, so an address of another host is an error there."""
    done = in_a_new_process(ADVERTISED, "127.0.0.1")
    assert done.stdout.split() == ["True", "False", "cpu"], done.stderr
    done = in_a_new_process(ADVERTISED, "192.0.2.1")
    assert done.returncode == 1
    assert "192.0.2.1" in done.stderr
