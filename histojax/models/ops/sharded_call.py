"""How a function that jax would not divide among devices by itself runs on each device's share of a batch.

Who lays the batch out says so around the tracing of a model; models need not know of devices.
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
    """While models are traced here, `sharded_call` is what `divide` makes of its arguments."""
    token = _divide.set(divide)
    try:
        yield
    finally:
        _divide.reset(token)


def sharded_call(function: Function, *divided: bool) -> Function:
    """`function` of each device's share: of arguments that are `divided` along their leading axis, else the whole.

    All results are divided, too. Outside `sharded_calls` it is `function` itself.
    """
    divide = _divide.get()
    return function if divide is None else divide(function, divided)
