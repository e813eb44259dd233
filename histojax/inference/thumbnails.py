"""Thumbnails for a report: from where a table's images lie, or from the prepared dataset of a run."""

import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.audit.measures import thumbnail
from data_pipelines.errors import DataError
from data_pipelines.pixels import DecodeError, decode
from data_pipelines.prepare import open_images
from histojax.core.errors import RunError
from histojax.data.sources import open_dataset
from histojax.evaluation.report.sources import Source
from histojax.inference.predict import images as image_files
from histojax.inference.predict.pixels import Reader, UnreadableError

SIDE = 320  # pixels of the longer side
_Find = Callable[[Mapping[str, str]], np.ndarray | None]


def thumbnails(source: Source, rows: Sequence[Mapping[str, str]], paths: Sequence[str]) -> tuple[dict[str, bytes], str]:
    """JPEG files by image_id, and why one is missing, in words.

    Args:
      source: whose images they are.
      rows: `image_id` and, where the table has the column, `path`.
      paths: folders, lists, archives to look in; empty: the table's own paths, else the run's prepared data.

    Raises:
      RunError: paths without an image.
    """
    out: dict[str, bytes] = {}
    with Reader() as reader:
        find, problem = _finder(source, rows, paths, reader)
        for row in rows:
            if find is None:
                break
            try:
                pixels = find(row)
                if pixels is None:
                    problem = "some images were not found"
                else:
                    out[row["image_id"]] = thumbnail(pixels, SIDE)
            except (UnreadableError, DecodeError, DataError, OSError) as error:
                problem = f"{row['image_id']}: {error}"
    return out, problem


def _finder(
    source: Source, rows: Sequence[Mapping[str, str]], paths: Sequence[str], reader: Reader
) -> tuple[_Find | None, str]:
    """What gives the pixels of a row, or why nothing does."""
    if paths:
        names = _by_name(image_files.find(paths))

        def look_up(row: Mapping[str, str]) -> np.ndarray | None:
            found = [names[key] for key in _keys(row.get("path", "")) + _keys(row["image_id"]) if names.get(key)]
            ref = found[0] if found else None
            return None if ref is None else reader.read(ref)

        return look_up, ""
    if any(row.get("path") for row in rows):
        folder = source.path if source.path.is_dir() else source.path.parent

        def read(row: Mapping[str, str]) -> np.ndarray | None:
            path = str(folder / pathlib.Path(row["path"]).expanduser()) if row.get("path") else ""
            return reader.read(image_files.ImageRef(row["image_id"], path)) if path else None

        return read, ""
    if "data" not in source.config:
        return None, "the table has no column `path`; --images says where its images lie"
    try:
        dataset = open_dataset(ConfigDict(source.config["data"]), source.classes)
    except (DataError, RunError, KeyError, OSError) as error:
        return None, f"the run's images are not at hand ({error}); --images says where they lie"
    position = {str(name): i for i, name in enumerate(dataset.records.column("image_id").tolist())}
    stored = open_images(dataset.prepared.directory)

    def prepared(row: Mapping[str, str]) -> np.ndarray | None:
        index = position.get(row["image_id"])
        return None if index is None else decode(stored[index]["image"])

    return prepared, ""


def _by_name(refs: Sequence[image_files.ImageRef]) -> dict[str, image_files.ImageRef | None]:
    """Images by whole name, by file name and by that without its suffix; None where two share it."""
    names: dict[str, image_files.ImageRef | None] = {}
    for ref in refs:
        for key in _keys(ref.image_id):
            names[key] = None if key in names and names[key] != ref else ref
    return names


def _keys(name: str) -> list[str]:
    """What an image may be known by; the most telling first."""
    if not name:
        return []
    last = name.replace("\\", "/").rpartition("/")[2]
    stem, dot, suffix = last.rpartition(".")
    short = stem if dot and f".{suffix.lower()}" in image_files.SUFFIXES else last
    return list(dict.fromkeys((name, last, short)))
