"""A list of work divided among processes or machines that know nothing of each other."""

from collections.abc import Sequence
from typing import TypeVar

from histojax.core.errors import RunError

Item = TypeVar("Item")


def share(items: Sequence[Item], shard: str) -> list[Item]:
    """Every n-th item from the i-th on, for `shard` = "i/n" with i in 0 … n − 1.

    Raises:
      RunError: it is not of that form.
    """
    index, _, count = shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise RunError(f"--shard={shard} is not I/N with I from 0 to N − 1, as 0/4, 1/4, 2/4 and 3/4")
    return list(items[int(index) :: int(count)])
