"""Every use of jax's private modules in this room; an upgrade breaks here or nowhere."""

from typing import Any

from jax._src import distributed


def key_value_store() -> Any:
    """Return this process's client of the key-value store that jax's coordinator (process 0) keeps.

    jax has no public access to it; orbax uses the same attribute. None before `jax.distributed.initialize`.
    """
    return distributed.global_state.client
