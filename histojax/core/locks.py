"""Locks between processes that share a folder."""

import abc
import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Hashable, Iterator
from typing import TextIO

from histojax.core.errors import RunError
from histojax.core.machine import is_running, process_space

_FILE = ".lock"
OWNER_FILE = ".owner"
_NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.EBADF}
_POLL = 0.2  # seconds between two looks at another process's lock
_BEAT, _LOST = 10.0, 45.0  # seconds: between two signs of life; without one, until an owner elsewhere counts as dead
_SETTLE = 0.1  # seconds in which another process may take over the same dead owner's lock
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def exclusive_lock(folder: pathlib.Path) -> Iterator[None]:
    """Hold a folder's lock, so that one process prepares data in it while the others wait and find the work done.

    A folder that cannot be written is not locked: it may hold data that was prepared earlier. The operating system
    releases the lock when the process that holds it dies. On storage without such locks, `OwnerFile` takes its place.

    Args:
      folder: created if it does not exist.
    """
    file = None
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / _FILE, "a")  # noqa: SIM115 (closed below)
    with file or contextlib.nullcontext():
        if file is None or _flock(file, folder):
            yield
            return
        owner = OwnerFile(folder / OWNER_FILE)
        if owner.acquire():
            _log_wait(folder)
            while owner.acquire():
                time.sleep(_POLL)
        try:
            yield
        finally:
            owner.release()


def _flock(file: TextIO, folder: pathlib.Path) -> bool:
    """Lock a file, waiting for other processes; False if the storage has no such locks."""
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log_wait(folder)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        return False
    return True


def _log_wait(folder: pathlib.Path) -> None:
    _log.info("waiting for another process that is preparing data in %s", folder)


@contextlib.contextmanager
def owned(folder: pathlib.Path, *, enabled: bool = True) -> Iterator["OwnerFile"]:
    """Own a folder that only one process may write to.

    Args:
      folder: created if it does not exist, and removed at the end if it is new and still empty.
      enabled: False on all processes of a run but the first.

    Raises:
      RunError: a living process owns the folder; the message names it.
    """
    owner = OwnerFile(folder / OWNER_FILE)
    if not enabled:
        yield owner
        return
    new = not folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with owner.held():
            yield owner
    finally:
        if new:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def living_owner(folder: pathlib.Path) -> str:
    """Describe the process that owns a folder; "" if there is none, or if it was of this machine and is dead.

    An owner on another machine counts as living, because that takes long to find out.
    """
    try:
        owner = _parse((folder / OWNER_FILE).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    dead = owner.get("machine") == process_space() and not _is_alive(owner["pid"], owner["start"])
    return "" if dead or not owner else _describe(owner)


class Owner(abc.ABC):
    """A mark that says which process owns a folder; subclasses say where the mark is kept.

    An owner on this machine is dead if no process has its number and its start time. An owner elsewhere is dead if it
    has not renewed the mark for 45 s; such a mark is watched, so that clocks of different machines need not agree.

    Args:
      place: the folder, for messages.
    """

    def __init__(self, place: str):
        self._place = place
        self._token = secrets.token_hex(8)
        self._held = False
        self._ended = threading.Event()

    def acquire(self) -> str:
        """Try to become the owner; return "" on success, else a description of the living owner."""
        watched: tuple[str, Hashable] | None = None
        since = 0.0
        while not self._create(self._content()):
            found = self._read()
            if found is None:
                continue  # it was released just now
            owner = _parse(found[0])
            if owner.get("token") == self._token:
                break  # it was written, and the storage's answer got lost
            here = owner.get("machine") == process_space()
            if here and _is_alive(owner["pid"], owner["start"]):
                return _describe(owner)
            if not here and (watched is None or watched[0] != found[0]):
                _log.info("%s: waiting for a sign of life of its owner (%s)", self._place, _describe(owner))
                watched, since = found, time.monotonic()
            elif not here and watched != found:
                return _describe(owner)
            if (here or time.monotonic() - since > _LOST) and self._take_over(found[0], self._content()):
                break
            time.sleep(_POLL)
        self._held = True
        self._ended.clear()
        threading.Thread(target=self._beat, name="folder-owner", daemon=True).start()
        return ""

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Be the owner within a `with` block.

        Raises:
          RunError: a living process owns the folder; the message names it.
        """
        if other := self.acquire():
            raise RunError(
                f"{self._place} is in use by another process ({other}): wait until it ends, stop it, or choose another "
                "folder"
            )
        try:
            yield
        finally:
            self.release()

    def verify(self) -> None:
        """Check that this process, if it has become the owner, still is.

        Raises:
          RunError: another process took over, because this one was suspended for long.
        """
        if self._held and not self._is_ours():
            raise RunError(
                f"{self._place}: another process has taken over, because this one gave no sign of life for "
                f"{_LOST:.0f} s. This process stops and leaves the folder to the other one"
            )

    def release(self) -> None:
        """Remove the mark, so that another process may become the owner."""
        self._ended.set()
        if self._held and self._is_ours():
            self._remove()
        self._held = False

    @abc.abstractmethod
    def _create(self, content: str) -> bool:
        """Write the mark if there is none; return whether it was written."""

    @abc.abstractmethod
    def _read(self) -> tuple[str, Hashable] | None:
        """Return the mark's content, and something that changes with `_touch`; None if there is no mark."""

    @abc.abstractmethod
    def _take_over(self, dead: str, content: str) -> bool:
        """Replace the mark of a dead owner, whose content is `dead`; False if another process did so before."""

    @abc.abstractmethod
    def _touch(self) -> None:
        """Renew the mark, as a sign of life."""

    @abc.abstractmethod
    def _remove(self) -> None:
        """Remove the mark."""

    def _content(self) -> str:
        facts = {
            "machine": process_space(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "start": _start_time(os.getpid()),
            "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "token": self._token,
        }
        return json.dumps(facts) + "\n"

    def _is_ours(self) -> bool:
        found = self._read()
        return found is not None and _parse(found[0]).get("token") == self._token

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT):
            with contextlib.suppress(OSError, RunError):  # the storage may answer again later
                if not self._is_ours():
                    return
                self._touch()


class OwnerFile(Owner):
    """A mark in a file of the folder, or beside one; it works on any storage that is mounted."""

    def __init__(self, path: pathlib.Path):
        super().__init__(str(path.parent))
        self._path = path

    def _create(self, content: str) -> bool:
        try:
            handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(handle, content.encode())
        except OSError as error:
            error.filename = str(self._path)  # the disk is full
            self._path.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
        return True

    def _take_over(self, dead: str, content: str) -> bool:
        temporary = self._path.with_name(f"{self._path.name}.{self._token}")
        try:
            temporary.write_text(content, encoding="utf-8")
            found = self._read()
            if found is None or found[0] != dead:
                return False
            os.replace(temporary, self._path)
        finally:
            temporary.unlink(missing_ok=True)
        time.sleep(_SETTLE)
        return self._is_ours()

    def _read(self) -> tuple[str, Hashable] | None:
        try:
            # Opening makes network storage ask the server, where looking up the name may show an old state.
            with open(self._path, encoding="utf-8", errors="replace") as file:
                return file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None

    def _touch(self) -> None:
        os.utime(self._path)

    def _remove(self) -> None:
        self._path.unlink(missing_ok=True)


def _parse(content: str) -> dict[str, str]:
    """Return the facts of an owner; none if the content is empty or damaged, as a power cut leaves it."""
    try:
        facts = json.loads(content)
        return {key: str(facts[key]) for key in ("machine", "host", "pid", "start", "since", "token")}
    except (ValueError, KeyError, TypeError):
        return {}


def _describe(owner: dict[str, str]) -> str:
    return f"pid {owner['pid']} on {owner['host']}, since {owner['since']}" if owner else "unknown"


def _is_alive(pid: str, start: str) -> bool:
    """Return whether a process of this machine runs that has the number and the start time."""
    try:
        number = int(pid)
    except ValueError:
        return False
    return is_running(number) and _start_time(number) == start


def _start_time(pid: int) -> str:
    """Return when a process started, in ticks since the machine's start; "" if it is unknown or the process ended."""
    try:
        # The second field is the program's name, which may contain spaces and brackets.
        state, *fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else fields[18]
