"""Division of a list of work among processes or machines that do not communicate."""

from collections.abc import Sequence
from typing import TypeVar

from histojax.core.errors import RunError

Item = TypeVar("Item")


def share(items: Sequence[Item], shard: str) -> list[Item]:
    """Return every N-th item, starting at the I-th, for `shard` = "I/N" with I from 0 to N − 1.

    Raises:
      RunError: `shard` has another form.
    """
    index, _, count = shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise RunError(f"--shard={shard} is not I/N with I from 0 to N − 1, such as 0/4, 1/4, 2/4 or 3/4")
    return list(items[int(index) :: int(count)])
