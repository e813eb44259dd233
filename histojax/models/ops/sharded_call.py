"""Running a function that jax cannot split across devices on each device's part of a batch.

The code that shards the batch wraps the tracing of a model in `sharded_calls`; models do not know about devices.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Function = Callable[..., Any]
Divide = Callable[[Function, tuple[bool, ...]], Function]
_divide: ContextVar[Divide | None] = ContextVar("divide", default=None)


@contextmanager
def sharded_calls(divide: Divide) -> Iterator[None]:
    """Make `sharded_call` return `divide(function, divided)` while models are traced within."""
    token = _divide.set(divide)
    try:
        yield
    finally:
        _divide.reset(token)


def sharded_call(function: Function, *divided: bool) -> Function:
    """Return a function that runs `function` on each device's part of the batch.

    Arguments marked as `divided` are split along their leading axis; the others are passed unsplit. All results are
    split. Outside `sharded_calls` this returns `function` itself.
    """
    divide = _divide.get()
    return function if divide is None else divide(function, divided)
