"""The private part of jax that is used: the key-value store of its coordinator."""

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


def test_the_key_value_store_stores_lists_and_waits() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"localhost:{port}"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[('a/b/0', 'second')]", done.stderr


def test_a_single_process_has_no_store() -> None:
    assert compat.key_value_store() is None
