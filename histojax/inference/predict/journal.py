"""What was answered so far, on disk: a line an image, in order, so that a killed program goes on where it was.

The first line says what was asked and how. A line that was cut short, and everything behind it, is asked again.
"""

import fcntl
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from histojax.core.errors import RunError
from histojax.core.settings import diff_settings

_log = logging.getLogger(__name__)

Answer = list[float] | str  # probabilities, or why there are none


class Journal:
    """The answers of one run of the program, and of those before it that were cut short; use it in a `with`.

    Attributes:
      done: images that are answered.

    Args:
      path: of the file, removed by `remove` only.
      settings: JSON-able: everything that the answers depend on.
      unit: images that are asked at a time; what is kept is a multiple, so that batches are the same ones again.
      total: images in all.
      redo: whether answers that are there are thrown away.

    Raises:
      RunError: begun with other settings, or another process is writing.
    """

    def __init__(self, path: pathlib.Path, settings: Mapping[str, Any], unit: int, total: int, *, redo: bool = False):
        self._path = path
        self._file: IO[bytes] = open(path, "a+b")  # noqa: SIM115 (closed by __exit__)
        try:
            self._lock()
            if redo:
                self._file.truncate(0)
            self.done = self._resume(dict(json.loads(json.dumps(settings))), unit, total)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, answers: Sequence[Answer]) -> None:
        """Adds the answers of the next images."""
        self._file.write("".join(json.dumps(answer) + "\n" for answer in answers).encode())
        self._file.flush()
        self.done += len(answers)

    def answers(self) -> Iterator[Answer]:
        """All answers, in order."""
        with open(self._path, encoding="utf-8") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def remove(self) -> None:
        """Deletes the file: what it held is elsewhere."""
        self._path.unlink()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel unlocks it if we are killed
        except BlockingIOError as error:
            raise RunError(f"{self._path}: another process is writing it; choose another --output") from error

    def _resume(self, settings: dict[str, Any], unit: int, total: int) -> int:
        """Cuts the file behind the last batch that is whole; how many images that makes."""
        self._file.seek(0)
        first = self._file.readline()
        there = _parsed(first)
        if first.endswith(b"\n") and not isinstance(there, dict):
            raise RunError(f"{self._path}: not written by histojax predict; delete it, or choose another --output")
        if there is None:
            self._file.truncate(0)
            self._file.write(json.dumps(settings).encode() + b"\n")
            return 0
        _check_same(self._path, there, settings)
        done, end = 0, self._file.tell()
        whole = (done, end)
        while done < total and _parsed(line := self._file.readline()) is not None:
            done, end = done + 1, end + len(line)
            if done % unit == 0 or done == total:
                whole = (done, end)
        self._file.truncate(whole[1])
        self._file.seek(0, os.SEEK_END)
        if whole[0]:
            _log.info("%s: going on behind %d images that are answered", self._path, whole[0])
        return whole[0]


def _parsed(line: bytes) -> Any:
    """What a whole line says; None for one that was cut short."""
    if not line.endswith(b"\n"):
        return None
    try:
        return json.loads(line)
    except ValueError:
        return None


def _check_same(path: pathlib.Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    if differing := diff_settings(there, here):
        remedy = "Go on in that way, choose another --output, or begin anew with --redo."
        raise RunError("\n".join([f"{path} was begun in another way:", *differing.values(), remedy]))
