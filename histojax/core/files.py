"""Atomic writes: a file or folder appears complete or not at all, also after a power cut."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from histojax.core.errors import RunError
from histojax.core.machine import is_running, process_space

# Some network and user-space file systems cannot flush, or cannot flush folders.
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF, errno.EACCES}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Provide a temporary path beside `path`; rename it to `path` on success, delete it on failure.

    Raises:
      OSError: the file cannot be written; `filename` of the error is `path`, also if the disk is full.
    """
    target = pathlib.Path(path)
    temporary = _temporary(target)
    try:
        yield temporary
        flush(temporary)  # else a power cut after the rename could leave an empty file
        os.replace(temporary, target)
        flush(target.parent)
    except OSError as error:
        if error.filename in (str(temporary), temporary) or (error.filename is None and error.errno in _FULL):
            error.filename, error.filename2 = str(target), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Provide an empty folder beside `path`; rename it to `path` on success, delete it on failure.

    Raises:
      RunError: `path` exists.
    """
    target = pathlib.Path(path)
    if os.path.lexists(target):
        raise RunError(f"{target}: already exists; choose another --output or delete it")
    temporary = _temporary(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        flush_tree(temporary)
        os.rename(temporary, target)
        flush(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(target: pathlib.Path) -> pathlib.Path:
    """Return a name beside `target`, and delete what killed processes have left in that folder."""
    space = hashlib.sha256(process_space().encode()).hexdigest()[:8]
    _delete_left(target.parent, space)
    return target.with_name(f".{target.name}.{space}-{os.getpid()}.tmp")


@functools.cache  # once per folder
def _delete_left(folder: pathlib.Path, space: str) -> None:
    with contextlib.suppress(OSError):  # the folder cannot be read; writing says so
        for path in folder.glob(f".*.{space}-*.tmp"):
            number = path.name.removesuffix(".tmp").rpartition("-")[2]
            if number.isdigit() and not is_running(int(number)):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write `content` as JSON, atomically.

    Raises:
      ValueError: `content` holds NaN or infinity, which JSON lacks.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
    """Read a JSON object; None if the file is missing, or if a power cut left it empty or half-written.

    Raises:
      OSError: the file exists and cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def flush(path: pathlib.Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk; skipped where the storage cannot do so."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise


def flush_tree(folder: pathlib.Path) -> None:
    """Wait until all files below a folder, and the folders themselves, are on the disk."""
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)
