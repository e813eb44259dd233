"""A folder on disk and its copy in a bucket.

Programs read and write the folder; `push` brings the bucket up to date, `pull` the folder. An index says which version
of which object each file was when both were last the same. So what is unchanged is not transferred again, and a change
on either side is noticed:

* only the folder has changed, because a process was killed before it could push: the folder is kept, and pushed later.
* the bucket has changed, because another machine went on from there: the folder becomes what the bucket is.
"""

import concurrent.futures
import dataclasses
import json
import logging
import os
import pathlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from histojax.core.files import atomic_write, read_json
from histojax.storage.bucket import Bucket

OWNER = ".owner"
# Checksums of a checkpoint's files. A checkpoint counts once they are there: they are written last, and deleted first.
SEAL = "sha256.json"
_AT_ONCE = 8  # files transferred at the same time
_LARGE = 64 << 20  # bytes of a file that is uploaded alone, because it is held in memory
_INDEX_EVERY, _SAY_EVERY = 1.0, 5.0  # seconds
# Locks, files and folders that are still being written, and the cache of decoded pixels, which each host makes.
_PASSING = re.compile(r"\.owner(\..*)?|\.lock|\..*\.tmp|\.probe-.*|.*\.orbax-checkpoint-tmp.*|.*\.(pixels|shapes\.npy)")
_CHECKPOINT = re.compile(r"((?:.*/)?checkpoints/[^/]+/[0-9]+)/.+")
_log = logging.getLogger(__name__)
T = TypeVar("T")


class StoppedError(Exception):
    """A push gave up because it was told to."""


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A file and an object that were the same.

    Attributes:
      size: bytes.
      changed: the file's time of change in ns.
      version: the object's version in hexadecimal digits.
    """

    size: int
    changed: int
    version: str


class Mirror:
    """A folder and its copy in a bucket.

    Args:
      address: of the copy, such as `s3://bucket/runs/dala`.
      folder: the folder; `pull` creates it.
      index: file of the index, outside the folder.
      only: the mirror has only the files whose paths begin with this.
      without: it does not have those whose paths begin with this.
    """

    def __init__(self, address: str, folder: pathlib.Path, index: pathlib.Path, only: str = "", without: str = ""):
        self.bucket, self.folder, self.index = Bucket(address), folder, index
        self._only, self._without = only, without
        self._entries: dict[str, _Entry] = {}
        self._orphans: list[str] = []  # objects of checkpoints that were not pushed to their end
        self._lock, self._alone = threading.Lock(), threading.Lock()
        self._written = 0.0

    def pull(self, below: str = "") -> int:
        """Bring the folder up to date; return the number of files that were read.

        Args:
          below: take only files whose paths begin with this.

        Raises:
          BucketError: the bucket cannot be read.
          OSError: a file cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._entries = self._read_index()
        prefix = below or self._only
        present = [key for key in self.bucket.list(prefix) if self._belongs(key)]
        keys = _of_sealed(present)
        self._orphans = sorted(set(present) - set(keys))
        versions = dict(zip(keys, _each(self.bucket.version, keys), strict=True))
        known = {key: entry.version for key, entry in self._entries.items() if key.startswith(prefix)}
        if not (known.keys() <= set(present) and all(known.get(key) == _hex(versions[key]) for key in keys)):
            for key in sorted(set(self._files(prefix)) - set(keys)):
                (self.folder / key).unlink(missing_ok=True)
            self._entries = {key: entry for key, entry in self._entries.items() if key in keys or key not in known}
            wanted = [key for key in keys if known.get(key) != _hex(versions[key]) or self._has_changed(key)]
        else:
            wanted = [key for key in keys if not (self.folder / key).is_file()]
        progress = _Progress(f"reading {self.bucket.address}", len(wanted))
        read = sum(_each(lambda key: progress.after(self._pull(key)), wanted))
        self._write_index()
        return read

    def push(self, stop: Callable[[], bool] = lambda: False, *, announce: bool = False) -> int:
        """Bring the bucket up to date; return the number of objects that were written.

        A file that vanishes or changes meanwhile is left to the next push.

        Args:
          stop: whether to give up before the next file.
          announce: log how much will be written.

        Raises:
          BucketError: the bucket cannot be written.
          StoppedError: `stop` returned True.
        """
        if not self.folder.is_dir():
            return 0
        changed = self.unpushed()
        if announce and changed:
            size = sum((self.folder / key).stat().st_size for key in changed) / 1e6
            _log.info("writing %d files (%.1f MB) to %s", len(changed), size, self.bucket.address)
        progress = _Progress(f"writing {self.bucket.address}", len(changed))

        def write(key: str) -> bool:
            if stop():
                raise StoppedError
            return progress.after(self._push(key))

        written = 0
        try:
            for group in _by_checkpoint(changed):
                written += sum(_each(write, [key for key in group if not _is_seal(key)]))
                # If a file has vanished, its checkpoint is being deleted, and must not be sealed.
                written += sum(map(write, [key for key in group if _is_seal(key) and self._is_whole(key)]))
            gone = {*self._entries, *self._orphans} - set(self._files(self._only))
            for key in sorted(gone, key=lambda key: (not _is_seal(key), key)):
                self.bucket.delete([key])
                self._entries.pop(key, None)
            self._orphans = []
        finally:
            self._write_index()
        return written

    def unpushed(self) -> list[str]:
        """Return the paths of files that the bucket does not have as they are, sorted."""
        return [key for key in _of_sealed(self._files(self._only)) if self._has_changed(key)]

    def _pull(self, key: str) -> bool:
        path = self.folder / key
        version = self.bucket.download(key, path)
        if version is None:
            return False  # it was deleted just now
        self._remember(key, path.stat().st_size, path.stat().st_mtime_ns, version)
        return True

    def _push(self, key: str) -> bool:
        path = self.folder / key
        try:
            before = path.stat()
            if before.st_size > _LARGE:
                with self._alone:
                    version = self.bucket.upload(key, path)
            else:
                version = self.bucket.upload(key, path)
        except FileNotFoundError:
            return False
        self._remember(key, before.st_size, before.st_mtime_ns, version)
        return True

    def _remember(self, key: str, size: int, changed: int, version: bytes) -> None:
        with self._lock:
            self._entries[key] = _Entry(size, changed, version.hex())
            if time.monotonic() - self._written > _INDEX_EVERY:
                self._write_index()

    def _has_changed(self, key: str) -> bool:
        """Return whether a file is not as it was when it and its object were last the same."""
        entry = self._entries.get(key)
        try:
            found = (self.folder / key).stat()
        except FileNotFoundError:
            return True
        return entry is None or (entry.size, entry.changed) != (found.st_size, found.st_mtime_ns)

    def _is_whole(self, seal: str) -> bool:
        """Return whether the bucket has all files of a checkpoint."""
        names = read_json(self.folder / seal)
        folder = seal.removesuffix(SEAL)
        return names is not None and all(folder + name in self._entries for name in names)

    def _files(self, below: str) -> list[str]:
        """Return the paths of the folder's files that belong to the mirror, sorted."""
        found = []
        for parent, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not _PASSING.fullmatch(name)]
            for name in names:
                key = pathlib.Path(parent, name).relative_to(self.folder).as_posix()
                if self._belongs(key) and key.startswith(below):
                    found.append(key)
        return sorted(found)

    def _belongs(self, key: str) -> bool:
        left_out = bool(self._without) and key.startswith(self._without)
        return not left_out and not key.endswith("/") and not any(map(_PASSING.fullmatch, key.split("/")))

    def _read_index(self) -> dict[str, _Entry]:
        content = read_json(self.index) or {}
        if content.get("address") != self.bucket.address or not any(self.folder.iterdir()):
            return {}  # the folder is new, or was deleted
        return {key: _Entry(*fields) for key, fields in content["files"].items()}

    def _write_index(self) -> None:
        files = {key: dataclasses.astuple(entry) for key, entry in self._entries.items()}
        content = {"address": self.bucket.address, "files": files}
        with atomic_write(self.index) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")
        self._written = time.monotonic()


class _Progress:
    """Says every few seconds how far a transfer is."""

    def __init__(self, what: str, count: int):
        self._what, self._count, self._done = what, count, 0
        self._said = time.monotonic()

    def after(self, transferred: bool) -> bool:
        """Count a file, and return the argument."""
        self._done += 1
        if time.monotonic() - self._said > _SAY_EVERY:
            self._said = time.monotonic()
            _log.info("%s: %d of %d files", self._what, self._done, self._count)
        return transferred


def _each(action: Callable[[str], T], keys: Sequence[str]) -> list[T]:
    """Call a function for each key, a few at a time; the first exception ends it."""
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="bucket") as pool:
        futures = [pool.submit(action, key) for key in keys]
        try:
            return [future.result() for future in futures]
        finally:
            pool.shutdown(cancel_futures=True)


def _hex(version: bytes | None) -> str | None:
    return None if version is None else version.hex()


def _checkpoint_of(key: str) -> str:
    """Return the folder of the checkpoint that a file belongs to; "" if it belongs to none."""
    match = _CHECKPOINT.fullmatch(key)
    return match[1] if match else ""


def _is_seal(key: str) -> bool:
    """Return whether a file says that its checkpoint is complete: it is written last, and deleted first."""
    folder = _checkpoint_of(key)
    return bool(folder) and key == f"{folder}/{SEAL}"


def _by_checkpoint(keys: Iterable[str]) -> list[list[str]]:
    """Return the files outside of checkpoints, then those of each checkpoint, from the newest to the oldest."""
    groups: dict[tuple[int, str], list[str]] = {}
    for key in keys:
        folder = _checkpoint_of(key)
        step = int(folder.rpartition("/")[2]) if folder else sys.maxsize
        groups.setdefault((-step, folder), []).append(key)
    return [groups[place] for place in sorted(groups)]


def _of_sealed(keys: Iterable[str]) -> list[str]:
    """Return the keys without those of checkpoints whose checksums are not among them."""
    keys = list(keys)
    present = set(keys)

    def counts(key: str) -> bool:
        folder = _checkpoint_of(key)
        return not folder or f"{folder}/{SEAL}" in present

    return [key for key in keys if counts(key)]
