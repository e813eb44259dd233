"""Atomic writes: a file or folder appears complete or not at all."""

import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from histojax.core.errors import RunError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Provide a temporary path beside `path`; rename it to `path` on success, delete it on failure."""
    target = pathlib.Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Provide an empty folder beside `path`; rename it to `path` on success, delete it on failure.

    Raises:
      RunError: `path` exists.
    """
    target = pathlib.Path(path)
    if os.path.lexists(target):
        raise RunError(f"{target}: already exists; choose another --output or delete it")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write `content` as JSON, atomically.

    Raises:
      ValueError: `content` holds NaN or infinity, which JSON lacks.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
