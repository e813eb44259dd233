"""Batches whose parts are computed by threads ahead of their use."""

import collections
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_AHEAD = 2  # batches in progress while one is consumed


def finished(started: Iterable[tuple[T, Iterable[Future[Any]]]]) -> Generator[T, None, None]:
    """Yield batches in order, each once all its parts are done, and keep two more in progress.

    Args:
      started: batches, each with the futures of its parts; taking a batch from this iterable starts its parts.

    Raises:
      Exception: whatever a part raised.
    """
    in_progress: collections.deque[tuple[T, Iterable[Future[Any]]]] = collections.deque()

    def oldest() -> T:
        batch, parts = in_progress.popleft()
        for part in parts:
            part.result()
        return batch

    for batch_and_parts in started:
        in_progress.append(batch_and_parts)
        if len(in_progress) > _AHEAD:
            yield oldest()
    while in_progress:
        yield oldest()
