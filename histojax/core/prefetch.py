"""Work that threads do ahead of who needs it."""

import collections
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_AHEAD = 2  # batches under way while one is consumed


def finished(started: Iterable[tuple[T, Iterable[Future[Any]]]]) -> Generator[T, None, None]:
    """Batches in their order, each when all its parts are done; two more are started meanwhile.

    Args:
      started: batches with the parts of them that are under way; taking one starts it.

    Raises:
      Whatever a part raised.
    """
    under_way: collections.deque[tuple[T, Iterable[Future[Any]]]] = collections.deque()

    def oldest() -> T:
        batch, parts = under_way.popleft()
        for part in parts:
            part.result()
        return batch

    for one in started:
        under_way.append(one)
        if len(under_way) > _AHEAD:
            yield oldest()
    while under_way:
        yield oldest()
