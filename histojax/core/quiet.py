"""Silencing messages of libraries."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_logger(name: str, level: int = logging.ERROR) -> Iterator[None]:
    """Drop a logger's messages below `level` inside the block, then restore the logger's own level.

    Args:
      name: such as "absl", the logger of orbax and TFDS.
      level: the lowest level that is still logged.
    """
    logger = logging.getLogger(name)
    previous = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(previous)
