"""Which files lie below a folder, and have they changed since?"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable


def list_files(root: pathlib.Path, suffixes: tuple[str, ...]) -> list[pathlib.Path]:
    """All files below `root` with one of the suffixes (lower case), sorted; hidden ones are left out."""
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [pathlib.Path(folder, f) for f in files if f.lower().endswith(suffixes) and not f.startswith(".")]
    return sorted(found)


def fingerprint(paths: Iterable[pathlib.Path], *facts: str) -> str:
    """A short hash of names, sizes and modification times, and of further facts: changes when files do."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    for path in paths:
        stat = path.stat()
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
