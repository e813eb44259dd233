"""The results so far, on disk: one line per image, in order, so that an interrupted program can resume.

The first line holds the settings. If a line was cut short, its image and all later ones are computed again.
"""

import contextlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from histojax.core.errors import RunError
from histojax.core.locks import OwnerFile
from histojax.core.settings import diff_settings

_log = logging.getLogger(__name__)

# Probabilities (of `embed`: one string, the features in base 64), or the reason why the image could not be read.
Prediction = list[Any] | str


def partial_path(output: pathlib.Path, *, redo: bool) -> pathlib.Path:
    """Return the path of the results so far of an output, whose folder is created.

    Args:
      output: the file that a command writes at its end.
      redo: whether to overwrite it.

    Raises:
      RunError: the output is complete, and `redo` is not set.
    """
    partial = output.with_name(f"{output.name}.partial")
    if output.exists() and not (redo or partial.exists()):
        raise RunError(f"{output} already exists: choose another --output, or overwrite it with --redo")
    output.parent.mkdir(parents=True, exist_ok=True)
    return partial


class PartialResults:
    """The results of this process and of interrupted ones before it. Use it in a `with` statement.

    Attributes:
      num_done: images that have a result or a reason.
    """

    def __init__(
        self, path: pathlib.Path, settings: Mapping[str, Any], batch_size: int, total: int, *, redo: bool = False
    ):
        """Open or create the file, and lock it.

        Args:
          path: file to write; only `remove` deletes it.
          settings: everything that the results depend on; must be serialisable as JSON.
          batch_size: images per batch. Whole batches are kept, so that a resumed run forms the same batches.
          total: images in all.
          redo: whether to discard existing results.

        Raises:
          RunError: the file has different settings, or another process is writing it.
        """
        self._path = path
        self._owner = OwnerFile(path.with_name(f"{path.name}.owner"))
        if other := self._owner.acquire():
            raise RunError(f"{path}: another process is writing this file ({other}); choose another --output")
        with contextlib.ExitStack() as stack:
            stack.callback(self._owner.release)
            self._file: IO[bytes] = stack.enter_context(open(path, "a+b"))
            if redo:
                self._file.truncate(0)
            self.num_done = self._resume(dict(json.loads(json.dumps(settings))), batch_size, total)
            self._stack = stack.pop_all()

    def __enter__(self) -> "PartialResults":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def append(self, predictions: Sequence[Prediction]) -> None:
        """Add the results of the next images."""
        self._file.write("".join(json.dumps(prediction) + "\n" for prediction in predictions).encode())
        self._file.flush()
        self.num_done += len(predictions)

    def read(self) -> Iterator[Prediction]:
        """Yield all results, in order."""
        self._file.flush()  # the settings, if there are no results
        with open(self._path, encoding="utf-8") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def remove(self) -> None:
        """Delete the file, once its content is in the output."""
        self._path.unlink()

    def _resume(self, settings: dict[str, Any], batch_size: int, total: int) -> int:
        """Truncate the file after its last complete batch; return the number of images that it then holds."""
        self._file.seek(0)
        first_line = self._file.readline()
        stored_settings = _parse_line(first_line)
        if first_line.endswith(b"\n") and not isinstance(stored_settings, dict):
            raise RunError(
                f"{self._path}: not the results of an interrupted command; delete it, or choose another --output"
            )
        if stored_settings is None:
            self._file.truncate(0)
            self._file.write(json.dumps(settings).encode() + b"\n")
            return 0
        _check_same(self._path, stored_settings, settings)
        count, end = 0, self._file.tell()
        whole_batches = (count, end)
        while count < total and _parse_line(line := self._file.readline()) is not None:
            count, end = count + 1, end + len(line)
            if count % batch_size == 0 or count == total:
                whole_batches = (count, end)
        self._file.truncate(whole_batches[1])
        self._file.seek(0, os.SEEK_END)
        if whole_batches[0]:
            _log.info("%s: resuming after %d finished images", self._path, whole_batches[0])
        return whole_batches[0]


def _parse_line(line: bytes) -> Any:
    """Return the JSON value of a line; None if the line was cut short."""
    if not line.endswith(b"\n"):
        return None
    try:
        return json.loads(line)
    except ValueError:
        return None


def _check_same(path: pathlib.Path, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    if differing := diff_settings(stored, current):
        remedy = "Resume with the same settings, choose another --output, or overwrite the results with --redo."
        raise RunError("\n".join([f"{path} was started with different settings:", *differing.values(), remedy]))
