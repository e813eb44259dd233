"""Listing the files below a folder, and detecting changes to them."""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable


def list_files(root: pathlib.Path, suffixes: tuple[str, ...]) -> list[pathlib.Path]:
    """Return all files below `root` that have one of the suffixes (lower case), sorted; hidden files are ignored."""
    paths = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        paths += [pathlib.Path(folder, f) for f in files if f.lower().endswith(suffixes) and not f.startswith(".")]
    return sorted(paths)


def fingerprint(paths: Iterable[pathlib.Path], *facts: str) -> str:
    """Return a short hash of the files' names, sizes and modification times, and of further facts."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    for path in paths:
        stat = path.stat()
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
