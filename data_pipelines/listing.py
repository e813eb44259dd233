"""Detecting changes to the files of a dataset, so that unchanged files are prepared once."""

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import stat
from collections.abc import Iterable, Sequence

from histojax.core.files import read_json, write_json
from histojax.core.locks import exclusive_lock
from histojax.core.printable import printable
from histojax.core.retries import with_backoff

KEYS_FILE = ".keys.json"
_log = logging.getLogger(__name__)


def fingerprint(paths: Iterable[pathlib.Path], *facts: str) -> str:
    """Return a short hash of the files' names, sizes and modification times, and of further facts."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    for path in paths:
        try:
            status = path.stat()
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError as error:  # a broken link
            state = str(error.strerror)
        digest.update(os.fsencode(path) + f"\0{state}\n".encode())
    return digest.hexdigest()[:16]


def folder_name(parent: pathlib.Path, paths: Sequence[pathlib.Path], *facts: str, prefix: str = "") -> str:
    """Return the name of the folder below `parent` for what is made from some files.

    The name is that of their `fingerprint`. If no such folder exists, the files are read: files of other times (copied,
    touched) but with the same names and content keep the folder that was made first. `KEYS_FILE` below `parent` has the
    name for each fingerprint and each content seen so far.

    Args:
      parent: created if it does not exist.
      paths: the files.
      *facts: what else the result depends on.
      prefix: begins the name.
    """
    name = prefix + fingerprint(paths, *facts)
    if (parent / name).exists():
        return name
    known = read_json(parent / KEYS_FILE) or {}
    if name not in known:
        if known:
            _log.info("reading %d files, to see whether they were prepared before", len(paths))
        content = prefix + _content(paths, *facts)
        with exclusive_lock(parent), contextlib.suppress(OSError):  # a folder that cannot be written may still be read
            known = read_json(parent / KEYS_FILE) or {}
            known |= {name: known.get(content, name)}
            known.setdefault(content, name)
            write_json(parent / KEYS_FILE, known)
        known.setdefault(name, known.get(content, name))
    return str(known[name])


def _content(paths: Sequence[pathlib.Path], *facts: str) -> str:
    """Return a short hash of the files' names and content, and of further facts."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, state in zip(paths, pool.map(_file_hash, paths), strict=True):
            digest.update(os.fsencode(path) + f"\0{state}\n".encode())
    return digest.hexdigest()[:16]


def _file_hash(path: pathlib.Path) -> str:
    def read() -> str:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a regular file"
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    try:
        return with_backoff(printable(path), read)
    except OSError as error:
        return str(error.strerror)
