"""The mark of the process that owns a folder in a bucket."""

import contextlib
from collections.abc import Hashable

from histojax.core.locks import Owner
from histojax.storage.bucket import Bucket
from histojax.storage.errors import BucketError
from histojax.storage.mirror import OWNER


class OwnerObject(Owner):
    """A mark in an object, written only if no other process has written it meanwhile.

    Args:
      bucket: the folder.
    """

    def __init__(self, bucket: Bucket):
        super().__init__(bucket.address)
        self._bucket = bucket
        self._beats = 0

    def release(self) -> None:
        """Remove the mark, if the bucket can be reached."""
        with contextlib.suppress(BucketError):  # the mark counts as dead in 45 s; the bucket has said why already
            super().release()

    def _create(self, content: str) -> bool:
        return self._bucket.write_if(OWNER, self._marked(content), None) is not None

    def _read(self) -> tuple[str, Hashable] | None:
        found = self._bucket.read(OWNER)
        if found is None:
            return None
        content, _, beats = found.content.decode(errors="replace").partition("\n")
        return content + "\n", beats

    def _take_over(self, dead: str, content: str) -> bool:
        found = self._bucket.read(OWNER)
        if found is None or not found.content.decode(errors="replace").startswith(dead):
            return False
        return self._bucket.write_if(OWNER, self._marked(content), found.version) is not None

    def _touch(self) -> None:
        found = self._bucket.read(OWNER)
        if found is not None:
            content = found.content.decode(errors="replace").partition("\n")[0]
            self._beats += 1
            self._bucket.write_if(OWNER, self._marked(f"{content}\n"), found.version)

    def _remove(self) -> None:
        self._bucket.delete([OWNER])

    def _marked(self, content: str) -> bytes:
        """Return a mark with the number of its renewals, so that each renewal changes it."""
        return f"{content}{self._beats}\n".encode()
