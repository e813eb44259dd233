"""Local copies of what lies in buckets.

They lie below `$HISTOJAX_DATA/buckets`, or `~/.cache/histojax/buckets`, and may be deleted at any time but while a
command uses them. What has not changed in the bucket is not read again.
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import threading
from collections.abc import Iterator

from histojax.core.directories import default_directory, expand_user
from histojax.core.locks import exclusive_lock
from histojax.storage import bucket
from histojax.storage.bucket import is_address
from histojax.storage.errors import BucketError
from histojax.storage.mirror import OWNER, Mirror
from histojax.storage.owner import OwnerObject

# An output with one of these endings is a file, beside which a command may write others of the same stem.
FILES = frozenset(
    {".csv", ".parquet", ".json", ".html", ".npz", ".h5", ".h5ad", ".safetensors", ".py", ".txt", ".pt", ".onnx"}
)
READ, WRITTEN, RUN = "read", "written", "run"  # each use of an address has a copy of its own
_EVERY = 60.0  # seconds between two times that an unfinished output is copied into the bucket
_LAST = "checkpoints/last/"  # what a run needs to resume; other commands read its best checkpoint
_log = logging.getLogger(__name__)


def mirror_of(address: str, use: str, only: str = "", without: str = "") -> Mirror:
    """Return the local copy of a folder in a bucket.

    Args:
      address: the folder.
      use: READ, WRITTEN or RUN.
      only, without: as for `Mirror`.
    """
    address = bucket.Bucket(address).address
    digest = hashlib.sha256(f"{use} {address} {only}".encode()).hexdigest()[:16]
    root = default_directory() / "buckets" / digest
    above, name = bucket.split(address)
    folder = root / above.rpartition("/")[2] / name if is_address(above) else root / name
    return Mirror(address, folder, root / "index.json", only, without)


def local(place: str | os.PathLike[str]) -> pathlib.Path:
    """Return a path, with `~` expanded, or the local copy of an address."""
    return local_copy(str(place)) if is_address(place) else expand_user(place)


def absolute(place: str | os.PathLike[str]) -> str:
    """Return a path as an absolute one, with `~` expanded and links resolved; an address stays as it is."""
    return str(place) if is_address(place) else str(expand_user(place).resolve())


def exists(place: str | os.PathLike[str]) -> bool:
    """Return whether there is a file or folder; of an address this is not asked."""
    return is_address(place) or expand_user(place).exists()


def local_copy(address: str) -> pathlib.Path:
    """Copy an object, or all objects of a folder, to this machine, and return the path of the copy.

    Args:
      address: an object, such as an archive, or a folder; of the folder of a run, only its best checkpoint is copied.

    Raises:
      BucketError: there is nothing at the address, or the bucket cannot be read.
    """
    above, name = bucket.split(address)
    if is_address(above) and bucket.Bucket(above).version(name) is not None:
        mirror, below = mirror_of(above, READ, only=name), name
    else:
        has_best = bool(bucket.Bucket(address).list("checkpoints/best/"))
        mirror, below = mirror_of(address, READ, without=_LAST if has_best else ""), ""
    with exclusive_lock(mirror.index.parent):
        _log.info("%s: copying to %s", address, mirror.folder / below)
        mirror.pull(below)
    path = mirror.folder / below
    if not path.is_file() and not any(path.iterdir()):
        raise BucketError(f"{address}: no such object or folder in the bucket")
    return path


@contextlib.contextmanager
def written(address: str) -> Iterator[pathlib.Path]:
    """Provide a local path for an output, which is copied into the bucket every minute and at the end.

    What an earlier, interrupted command has written there is fetched first, so that it can be resumed.

    Args:
      address: a folder, or a file with one of the endings in `FILES`.

    Raises:
      RunError: another process, on this machine or elsewhere, writes there.
      BucketError: the bucket cannot be read or written.
    """
    above, name = bucket.split(address)
    stem, suffix = os.path.splitext(name)
    is_file = suffix in FILES
    mirror = mirror_of(above, WRITTEN, only=stem) if is_file else mirror_of(address, WRITTEN)
    with owned(mirror) if not is_file else exclusive_lock(mirror.index.parent):
        mirror.pull()
        if not is_file and not any(mirror.folder.iterdir()):
            mirror.folder.rmdir()  # some commands want to create it
        with _pushing(mirror):
            yield mirror.folder / name if is_file else mirror.folder


@contextlib.contextmanager
def _pushing(mirror: Mirror) -> Iterator[None]:
    """Copy a folder into its bucket every minute and at the end, also after an error."""
    ended = threading.Event()

    def push() -> None:
        while not ended.wait(_EVERY):
            try:
                mirror.push()
            except BucketError as error:
                _log.warning("warning: %s. The command continues, and tries again in a minute", error)

    thread = threading.Thread(target=push, name="bucket", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        flush(mirror)
        _log.info("%s: written", mirror.bucket.address)


def flush(mirror: Mirror) -> None:
    """Bring a bucket up to date.

    Raises:
      BucketError: it cannot be written; the message says what is kept where.
    """
    try:
        mirror.push(announce=True)
    except BucketError as error:
        raise BucketError(
            f"{error}. Everything is in {mirror.folder} on this machine: once the bucket can be written, rerun the "
            "same command here, which resumes from there"
        ) from error


@contextlib.contextmanager
def owned(mirror: Mirror) -> Iterator[OwnerObject]:
    """Own a folder in a bucket that only one process may write to.

    Raises:
      RunError: a living process owns the folder; the message names it.
    """
    mirror.bucket.list(OWNER)  # of a bucket that does not exist, conditional writes say only that they failed
    owner = OwnerObject(mirror.bucket)
    with owner.held():
        yield owner
