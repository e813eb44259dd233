"""Folders of generated images: whole or not at all, with a marker that says what they are."""

import concurrent.futures
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from data_pipelines.images import encode_png

MARKER = "SYNTHETIC.json"
Job = TypeVar("Job")


def write_png(path: pathlib.Path, image: npt.NDArray[np.uint8]) -> None:
    """Writes RGB uint8 (h, w, 3), and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(image))


def publish(
    root: pathlib.Path,
    facts: Mapping[str, Any],
    jobs: Iterable[Job],
    write: Callable[[pathlib.Path, Job], None],
    finish: Callable[[pathlib.Path], None] = lambda folder: None,
) -> pathlib.Path:
    """Does every job in a new folder and renames that to `root`; a no-op if `root` is there with the same marker.

    `finish` writes what needs all jobs done. `facts` are what the marker says: generator, version, spec. Raises
    ValueError if `root` holds anything else.
    """
    marker = _marker(facts)
    if _is_made(root, marker):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = root.with_name(f".{root.name}.{uuid.uuid4().hex[:12]}.partial")
    partial.mkdir()
    try:
        with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(lambda job: write(partial, job), jobs):
                pass
        finish(partial)
        (partial / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
        if root.is_dir():
            root.rmdir()  # empty, as checked; a rename replaces an empty folder on POSIX only
        try:
            partial.rename(root)
        except OSError:
            if not _is_made(root, marker):  # another process was first: fine if it made the same
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def _marker(facts: Mapping[str, Any]) -> dict[str, Any]:
    text = json.dumps({"synthetic": True, **facts, "note": "computer-made images; no patient, no diagnosis"})
    return dict(json.loads(text))  # through JSON, so that it compares equal to what a file gives back


def _is_made(root: pathlib.Path, marker: Mapping[str, Any]) -> bool:
    """Whether `root` holds this very data set; raises ValueError if it holds anything else."""
    if root.is_dir() and not any(root.iterdir()):
        return False
    if not root.exists() and not root.is_symlink():
        return False
    try:
        found = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == marker:
        return True
    what = "another version or spec of the synthetic images" if found else f"something without a valid {MARKER}"
    raise ValueError(f"{root} holds {what}; nothing was changed. Remove it, or generate into another folder.")
