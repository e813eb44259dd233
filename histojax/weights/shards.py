"""Weights that are divided into several files, and an index that says which array lies in which."""

from __future__ import annotations

import json
import pathlib

from histojax.weights.errors import Problem, short

SUFFIX = ".index.json"  # model.safetensors.index.json, pytorch_model.bin.index.json


def is_index(path: pathlib.Path) -> bool:
    """Return whether a file is an index by its name."""
    return path.name.lower().endswith(SUFFIX)


def read_index(path: pathlib.Path) -> dict[str, set[str]]:
    """Read an index.

    Args:
      path: the index.

    Returns:
      Name of each file, which lies beside the index -> names of the arrays in it.

    Raises:
      Problem: it is no index, or names a file in another folder.
      OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Problem(f"it is cut short, damaged or no JSON ({short(str(error))})") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise Problem("it has no `weight_map`, so it is no index of weights", "Name the index of the files of weights")
    files: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or pathlib.PurePath(file).name != file or "\\" in file or is_index(path / file):
            raise Problem(f"it names the file {short(file)}, which is not a file beside it", "Do not use it")
        files.setdefault(file, set()).add(name)
    return dict(sorted(files.items()))
