"""The folder of a run: one that all processes see, or on each host a copy of one in a bucket.

In a bucket, process 0 writes everything to its own disk, and a thread brings the bucket up to date after each
checkpoint, so that no step waits for it. The other hosts fetch what they need when the run starts and before its final
evaluation.
"""

import concurrent.futures
import contextlib
import logging
import pathlib
from collections.abc import Iterator

import jax

from histojax.core.directories import expand_user
from histojax.core.locks import Owner, exclusive_lock
from histojax.distributed import processes
from histojax.storage import places
from histojax.storage.errors import BucketError
from histojax.storage.mirror import Mirror, StoppedError

_log = logging.getLogger(__name__)


class RunFolder:
    """A folder on disk; this class is for one that all processes see, where there is nothing to do.

    Attributes:
      path: the folder on this host.
      place: what the user calls it: a path, or an address in a bucket.
      shared: whether all processes see the same folder.
    """

    shared = True

    def __init__(self, path: pathlib.Path, place: str):
        self.path, self.place = path, place

    def publish(self) -> None:
        """Start bringing the bucket up to date."""

    def fetch(self, below: str) -> None:
        """On all hosts, get the files that process 0 has written; all processes must call this.

        Args:
          below: the beginning of their paths.
        """

    def verify(self) -> None:
        """Check that this run still owns the folder."""


class _BucketFolder(RunFolder):
    """A copy of a folder in a bucket."""

    shared = False

    def __init__(self, mirror: Mirror, owner: Owner | None):
        super().__init__(mirror.folder, mirror.bucket.address)
        self._mirror, self._owner = mirror, owner
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._waiting: concurrent.futures.Future[None] | None = None
        self._stop = False

    def publish(self) -> None:
        # At most one push waits for the running one: it writes the newest state.
        if self._owner is not None and (self._waiting is None or self._waiting.running() or self._waiting.done()):
            self._waiting = self._pool.submit(self._push)

    def fetch(self, below: str) -> None:
        if self._owner is not None:
            self.flush()
        processes.barrier(f"published {self.place}")
        if self._owner is None:
            with exclusive_lock(self._mirror.index.parent):  # two processes of a host share the copy
                self._mirror.pull(below)
        processes.barrier(f"fetched {self.place}")

    def verify(self) -> None:
        if self._owner is not None:
            with contextlib.suppress(BucketError):  # the run continues, and publishes later
                self._owner.verify()

    def flush(self) -> None:
        """Wait until the bucket is up to date.

        Raises:
          BucketError: the bucket cannot be written; the folder on disk has everything.
        """
        self._stop = True  # an older checkpoint need not be written any more
        self._pool.shutdown(cancel_futures=True)
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._stop = False
        places.flush(self._mirror)

    def _push(self) -> None:
        try:
            self._mirror.push(lambda: self._stop)
        except StoppedError:
            pass  # `flush` pushes the newest state
        except BucketError as error:
            _log.warning("warning: %s. The run continues, and tries again after the next checkpoint", error)


def path_of(place: str | pathlib.Path) -> pathlib.Path:
    """Return the folder of a run on this host."""
    return (
        places.mirror_of(str(place), places.RUN).folder if places.is_address(place) else expand_user(place).absolute()
    )


@contextlib.contextmanager
def run_folder(place: str | pathlib.Path) -> Iterator[RunFolder]:
    """Open the folder of a run; at the end, also after an error, a bucket is brought up to date.

    Args:
      place: a path, or an address in a bucket.

    Raises:
      RunError: another process owns the folder in the bucket.
      BucketError: the bucket cannot be read or written.
    """
    if not places.is_address(place):
        path = path_of(place)
        yield RunFolder(path, str(path))
        return
    mirror = places.mirror_of(str(place), places.RUN)
    with contextlib.ExitStack() as stack:
        owner = stack.enter_context(places.owned(mirror)) if jax.process_index() == 0 else None
        processes.barrier(f"owned {place}")
        with exclusive_lock(mirror.index.parent):
            _log.info("%s: the run works in %s", mirror.bucket.address, mirror.folder)
            mirror.pull()
        processes.barrier(f"pulled {place}")  # before process 0 changes a copy that others of its host share
        folder = _BucketFolder(mirror, owner)
        try:
            yield folder
        except Exception:  # whatever stopped the run, the bucket gets what it has reached
            if owner is not None:
                with contextlib.suppress(BucketError):  # the first error says what is wrong
                    folder.flush()
            raise
        if owner is not None:
            folder.flush()
