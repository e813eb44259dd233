"""What preparation leaves on disk: prepared datasets, extracted archives, synthetic images."""

import dataclasses
import json
import pathlib
import shutil
import uuid

from data_pipelines.synthetic.publish import MARKER
from histojax.core.files import read_json
from histojax.core.locks import exclusive_lock

_LEFT_BY_TFDS = {".config", "downloads"}  # folders without data


@dataclasses.dataclass(frozen=True)
class PreparedCopy:
    """A folder that a later run makes again if it is deleted.

    Attributes:
      name: path below the folder of prepared data; identifies the copy.
      path: the folder.
      kind: `prepared`, `extracted` or `synthetic`.
      source: the dataset root of prepared data; empty: unknown.
      num_images: number of stored images; None: unknown.
      num_bytes: size of all files.
      modified: time of the newest file in seconds since the epoch.
    """

    name: str
    path: pathlib.Path
    kind: str
    source: str
    num_images: int | None
    num_bytes: int
    modified: float

    @property
    def orphan(self) -> bool:
        """Whether the dataset root is gone."""
        return bool(self.source) and not pathlib.Path(self.source).exists()


def list_copies(base: pathlib.Path) -> list[PreparedCopy]:
    """Find the copies below a folder of prepared data, the largest first.

    Raises:
      OSError: a folder cannot be read.
    """
    found = []
    for key in _folders(base / "prepared"):
        for version in (v for builder in _folders(key) for config in _folders(builder) for v in _folders(config)):
            found.append(_prepared(base, version))
    for folder in (*_folders(base / "extracted" / "tiles"), *_folders(base / "extracted")):
        if folder != base / "extracted" / "tiles":
            found.append(_copy(base, folder, "extracted", "", None))
    for folder in _folders(base):
        if (folder / MARKER).is_file():
            found.append(_copy(base, folder, "synthetic", "", len(list(folder.rglob("*.png")))))
    return sorted(found, key=lambda copy: (-copy.num_bytes, copy.name))


def delete(base: pathlib.Path, copy: PreparedCopy) -> None:
    """Delete a copy, at once for other processes, and the folders above it that it leaves empty.

    Raises:
      OSError: it cannot be deleted.
    """
    hidden = copy.path.with_name(f".{copy.path.name}.{uuid.uuid4().hex[:8]}.deleted")
    with exclusive_lock(base):
        copy.path.rename(hidden)
        shutil.rmtree(hidden)
        for folder in copy.path.parents:
            if folder == base or {path.name for path in folder.iterdir()} - _LEFT_BY_TFDS:
                break
            shutil.rmtree(folder)


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _prepared(base: pathlib.Path, version: pathlib.Path) -> PreparedCopy:
    try:
        source = str(json.loads((read_json(version / "metadata.json") or {})["scan"])["root"])
    except (KeyError, ValueError):  # damaged
        source = ""
    counts = (read_json(version / "dataset_info.json") or {}).get("splits", [])
    number = sum(int(length) for split in counts for length in split.get("shardLengths", []))
    return _copy(base, version, "prepared", source, number)


def _copy(base: pathlib.Path, folder: pathlib.Path, kind: str, source: str, number: int | None) -> PreparedCopy:
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    size, newest = sum(file.st_size for file in files), max((file.st_mtime for file in files), default=0.0)
    return PreparedCopy(folder.relative_to(base).as_posix(), folder, kind, source, number, size, newest)
