"""Objects below a `gs://` or `s3://` address: read, write, list and delete, by the client of tensorstore.

Tensorstore is what orbax brings. It finds credentials as the programs of Google and Amazon do, repeats requests after
transient errors, and writes an object wholly or not at all.
"""

import dataclasses
import functools
import logging
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

from histojax.core.files import atomic_write
from histojax.storage import errors
from histojax.storage.errors import BucketError

SCHEMES = ("gs://", "s3://")
LARGEST = 5 << 30  # bytes that S3 takes in one request
_ADDRESS = re.compile(r"(gs|s3)://([A-Za-z0-9][A-Za-z0-9._-]{1,220}[A-Za-z0-9])(?:/(.*))?", re.DOTALL)
_PART = 16 << 20  # bytes read by one request
_RETRIES = {"max_retries": 6, "initial_delay": "500ms", "max_delay": "8s"}  # about half a minute in all
_WAITS = (1.0, 4.0)  # seconds before an action is repeated that the client has given up
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Found:
    """An object as it was read.

    Attributes:
      content: its bytes.
      version: changes whenever the object is written.
    """

    content: bytes
    version: bytes


class _ChangedError(Exception):
    """An object was written while its parts were read."""


def is_address(place: object) -> bool:
    """Return whether a path is an address in a bucket."""
    return str(place).startswith(SCHEMES)


def join(address: str, *parts: str) -> str:
    """Return the address of something below another address."""
    return "/".join([address.rstrip("/"), *parts])


def split(address: str) -> tuple[str, str]:
    """Return the address above an object or folder, and its own name."""
    above, _, name = address.rstrip("/").rpartition("/")
    return above, name


class Bucket:
    """The objects whose keys begin with an address; keys are relative to it.

    Args:
      address: such as `s3://bucket/runs/dala` or `gs://bucket`.

    Raises:
      BucketError: the address is none.
    """

    def __init__(self, address: str):
        match = _ADDRESS.fullmatch(address)
        prefix = (match[3] or "").removesuffix("/") if match else ""
        if match is None or (prefix and {"", ".", ".."} & set(prefix.split("/"))):
            raise BucketError(f"{address}: not an address in a bucket: write gs://BUCKET/PATH or s3://BUCKET/PATH")
        self.address = f"{match[1]}://{match[2]}" + (f"/{prefix}" if prefix else "")
        self._store = _open(match[1], match[2], f"{prefix}/" if prefix else "")

    def read(self, key: str, *, unless: bytes | None = None) -> Found | None:
        """Return an object; None if there is none.

        Args:
          key: the object.
          unless: a version; None is also returned for an object that still has it.

        Raises:
          BucketError: the bucket cannot be read.
        """
        found = self._call(key, lambda: self._store.read(key, if_not_equal=unless))
        return Found(bytes(found.value), bytes(found.stamp.generation)) if found.state == "value" else None

    def version(self, key: str) -> bytes | None:
        """Return the version of an object without reading it; None if there is none."""
        try:
            found = self._call(key, lambda: self._store.read(key, byte_range=slice(0, 0)))
        except errors.BehindTheEndError:  # of an empty object there is no range
            found = self._call(key, lambda: self._store.read(key))
        return bytes(found.stamp.generation) if found.state == "value" else None

    def write(self, key: str, content: bytes) -> bytes:
        """Write an object, and return its version; readers see the old object or the new one, never a part.

        Raises:
          BucketError: the bucket cannot be written.
        """
        return bytes(self._call(key, lambda: self._store.write(key, content)).generation)

    def write_if(self, key: str, content: bytes, version: bytes | None) -> bytes | None:
        """Write an object if it has a version, or with None if there is no such object.

        Returns:
          The new version; None if another process was faster, or this one, where the answer got lost on its way.
        """
        expected = _no_object() if version is None else version
        written = self._call(key, lambda: self._store.write(key, content, if_equal=expected))
        return bytes(written.generation) or None

    def list(self, below: str = "") -> list[str]:
        """Return the keys that begin with `below`, sorted."""
        import tensorstore

        # The keys from `below` up to the first one that does not begin with it.
        behind = below.encode()[:-1] + bytes([below.encode()[-1] + 1]) if below else b""
        keys = tensorstore.KvStore.KeyRange(below.encode(), behind)
        return sorted(key.decode() for key in self._call(below, lambda: self._store.list(keys)))

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, one after the other; those that do not exist are left out."""
        for key in keys:
            self._call(key, functools.partial(self._store.write, key, None))

    def upload(self, key: str, file: pathlib.Path) -> bytes:
        """Write a file as an object, and return its version.

        Raises:
          BucketError: the bucket cannot be written, or the file is too large.
          OSError: the file cannot be read.
        """
        if (size := file.stat().st_size) > LARGEST:
            raise BucketError(
                f"{file}: has {size / 2**30:.1f} GiB, and an object can have 5: name a folder of a disk as the output"
            )
        return self.write(key, file.read_bytes())

    def download(self, key: str, file: pathlib.Path) -> bytes | None:
        """Write an object to a file, atomically, and return its version; None if there is no such object.

        A large object is read in parts, which are all of the same version.

        Raises:
          BucketError: the bucket cannot be read, or the object changes again and again.
          OSError: the file cannot be written.
        """
        for _ in range(3):
            try:
                return self._download(key, file)
            except _ChangedError:
                _log.warning("%s: changed while it was read; reading it again", join(self.address, key))
        raise BucketError(f"{join(self.address, key)}: changes while it is read; rerun once its writer has ended")

    def part(self, key: str, start: int) -> Found | None:
        """Return the 16 MiB of an object from `start` on, fewer at its end, none behind it; None without an object."""
        wanted: slice
        for wanted in (slice(start, start + _PART), slice(start, None)):
            try:
                found = self._call(key, functools.partial(self._store.read, key, byte_range=wanted))
            except errors.BehindTheEndError:
                continue  # a range that ends behind the object's end is an error
            return Found(bytes(found.value), bytes(found.stamp.generation)) if found.state == "value" else None
        version = self.version(key)
        return None if version is None else Found(b"", version)

    def _download(self, key: str, file: pathlib.Path) -> bytes | None:
        found = self.part(key, 0)
        if found is None:
            return None
        version, start = found.version, _PART
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as temporary, open(temporary, "wb") as target:
            target.write(found.content)
            while len(found.content) == _PART:
                found = self.part(key, start)
                if found is None or found.version != version:
                    raise _ChangedError
                target.write(found.content)
                start += _PART
        return version

    def _call(self, key: str, action: Callable[[], Any]) -> Any:
        """Return the result of a request; repeat it where the client has given up on an error that may pass.

        Raises:
          BucketError: it failed.
        """
        for wait in (*_WAITS, None):
            try:
                return action().result()
            except (ValueError, OSError) as error:
                failure = errors.in_words(join(self.address, key) if key else self.address, str(error))
                if wait is None or not isinstance(failure, errors.NoAnswerError):
                    raise failure from error
                _log.warning("%s; trying again in %g s", failure, wait)
                time.sleep(wait)
        raise AssertionError


@functools.cache
def _no_object() -> bytes:
    """Return the version of an object that does not exist."""
    import tensorstore

    store = tensorstore.KvStore.open({"driver": "memory"}).result()
    return bytes(store.read("nothing").result().stamp.generation)


@functools.cache
def _open(scheme: str, bucket: str, prefix: str) -> Any:
    """Open tensorstore's client. Endpoints and credentials come from the environment."""
    where = os.environ
    where.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "30")  # a connection without a byte counts as broken
    where.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    spec: dict[str, Any] = {"bucket": bucket, "path": prefix}
    if scheme == "gs":
        if emulator := where.get("STORAGE_EMULATOR_HOST"):
            where["TENSORSTORE_GCS_HTTP_URL"] = emulator if "://" in emulator else f"http://{emulator}"
            where.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "emulator")
        spec |= {"driver": "gcs", "context": {"gcs_request_retries": _RETRIES}}
    else:
        spec |= {"driver": "s3", "context": {"s3_request_retries": _RETRIES}}
        if endpoint := where.get("AWS_ENDPOINT_URL_S3") or where.get("AWS_ENDPOINT_URL"):
            spec["endpoint"] = endpoint
        if region := where.get("AWS_REGION") or where.get("AWS_DEFAULT_REGION"):
            spec["aws_region"] = region
        if "AWS_ACCESS_KEY_ID" in where:  # looking for files that need not exist would print lines
            spec["aws_credentials"] = {"type": "environment"}
    # Its own messages about each failed attempt; what fails in the end is raised.
    where.setdefault("ABSL_MIN_LOG_LEVEL", "3")
    import tensorstore

    try:
        return tensorstore.KvStore.open(spec).result()
    except (ValueError, OSError) as error:
        raise errors.in_words(f"{scheme}://{bucket}/{prefix}", str(error)) from error
