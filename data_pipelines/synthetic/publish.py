"""Atomic creation of folders of generated images, with a marker file that describes them."""

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
    """Write an image, RGB uint8 (h, w, 3), and create the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(image))


def publish(
    root: pathlib.Path,
    facts: Mapping[str, Any],
    jobs: Iterable[Job],
    write: Callable[[pathlib.Path, Job], None],
    finish: Callable[[pathlib.Path], None] = lambda folder: None,
) -> pathlib.Path:
    """Run all jobs in a new folder and rename it to `root`; do nothing if `root` exists with the same marker.

    Args:
      root: the folder to create.
      facts: content of the marker: generator, version, spec.
      jobs: the images.
      write: writes the image of a job below a folder.
      finish: writes further files into the folder after all jobs are done.

    Returns:
      `root`.

    Raises:
      ValueError: `root` holds anything else.
    """
    marker = _marker(facts)
    if _exists(root, marker):
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
            root.rmdir()  # empty, as checked above; only on POSIX does a rename replace an empty folder
        try:
            partial.rename(root)
        except OSError:
            if not _exists(root, marker):  # another process was first, which is fine if it generated the same images
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def _marker(facts: Mapping[str, Any]) -> dict[str, Any]:
    text = json.dumps({"synthetic": True, **facts, "note": "computer-made images; no patient, no diagnosis"})
    return dict(json.loads(text))  # through JSON, so that it equals what is read from a file


def _exists(root: pathlib.Path, marker: Mapping[str, Any]) -> bool:
    """Return whether `root` holds exactly this dataset.

    Raises:
      ValueError: it holds anything else.
    """
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
    raise ValueError(f"{root} holds {what}; nothing was changed. Delete it, or generate into another folder.")
