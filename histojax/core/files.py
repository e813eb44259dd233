"""Whole files or none; a leaf that every room may import."""

import json
import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A temporary path beside `path`, renamed to it on success, removed on failure: so nobody reads half."""
    target = pathlib.Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write `content` as JSON, atomically.

    Raises:
      ValueError: `content` holds NaN or infinity, which JSON lacks.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
