"""Checkpoints: the only file that uses orbax, but for what is private in it (`histojax.training.compat`).

A run keeps its last states in `checkpoints/last/<step>` and the best one in `checkpoints/best/<step>`. Orbax writes
in the background to a temporary name and renames it. After that we write `sha256.json`, the checksum of every file,
because orbax restores a flipped byte without an error. So:

* without `sha256.json`, the save was interrupted: the checkpoint is ignored with a warning, and deleted on resume.
* a file differs from its checksum: the checkpoint is damaged, and an error names the file and says what to do.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import logging
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from histojax.core.directories import expand_user
from histojax.core.errors import RunError
from histojax.core.files import atomic_write, flush_tree
from histojax.core.retries import with_backoff
from histojax.distributed import processes, sharding
from histojax.storage.mirror import SEAL
from histojax.training import array_shapes, compat

LAST, BEST = "last", "best"
FORMAT = 2  # version of a checkpoint's content; 1 had no thresholds
_log = logging.getLogger(__name__)
_FOLDER, _MODEL, _EMA, _TRAIN, _META = "checkpoints", "model", "ema", "train", "meta"
# Names of our own in the folder of a series, and of entries in a checkpoint.
_STEP = re.compile(r"0|[1-9][0-9]*", re.ASCII)
_PROBE = ".probe-"
_TEMPORARY = re.compile(rf"(0|[1-9][0-9]*)\.orbax-checkpoint-tmp.*|{re.escape(_PROBE)}.*", re.ASCII)
_ENTRIES = {_MODEL, _EMA, _TRAIN, _META, "_CHECKPOINT_METADATA", "commit_success.txt", "descriptor"}


class CheckpointError(RunError):
    """A checkpoint cannot be written or read; the message names the checkpoint and the remedy."""


class Checkpoints:
    """One series of checkpoints in a folder. Use it in a `with` statement, which waits for a save in progress.

    Args:
      folder: `<workdir>/checkpoints/last` or `…/best`.
      keep: number of checkpoints to keep; older ones are deleted.
      shared: whether all processes see the folder, so that each writes its part of the arrays. Otherwise process 0
        writes all of them, and the folders of the other processes are copies.
      sealed: called in process 0, in a thread, after each checkpoint is complete.

    Raises:
      CheckpointError: the folder cannot be created.
    """

    def __init__(
        self, folder: pathlib.Path, keep: int, *, shared: bool = True, sealed: Callable[[], None] = lambda: None
    ):
        self.folder = folder.absolute()
        self._shared, self._sealed = shared, sealed
        self._alone = not shared and processes.count() > 1
        self._manager = self._open(keep) if not self._alone or jax.process_index() == 0 else None
        self._sealing: concurrent.futures.Future[None] | None = None
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="seal-checkpoint")

    def _open(self, keep: int) -> compat.CheckpointManager:
        # Both series of a run may save at the same time. Each needs barriers of its own between the processes.
        own = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=self.folder.name)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, multiprocessing_options=own)
        if self._alone:
            own.active_processes = {0}
            options.create = False  # orbax wants it so where not all processes take part
            self.folder.mkdir(parents=True, exist_ok=True)
            compat.register_arrays(divide=False)
        # At exit, orbax would wait five minutes for an unhandled save in progress; close() prevents that.
        try:
            return compat.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise self._cannot_write(error) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and processes.count() > 1:
            self._pool.shutdown(wait=False, cancel_futures=True)
            return  # this process is ending; the others may be gone, and a save would wait for them
        try:
            self.wait()
        finally:
            self._pool.shutdown()
            # A failed save fails here again with orbax's message; `wait` has already raised ours.
            with contextlib.suppress(Exception):
                if self._manager:
                    self._manager.close()

    def save(self, step: int, trees: dict[str, Any], meta: dict[str, Any]) -> None:
        """Start saving; return once the arrays have left the devices, so that the next step may donate them.

        Args:
          step: updates done.
          trees: `model`, `train` and, with EMA, `ema`: pytrees of arrays.
          meta: everything else that defines the run, as values that JSON can hold.

        Raises:
          CheckpointError: this save or the previous one could not be written.
        """
        self.wait()
        if self._alone:
            trees = sharding.replicated(trees)
        if self._manager is None or step in self.steps():
            return  # a run that was killed after this save has reached it again, with the same state
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        try:
            # If the folder cannot be created, orbax's threads wait for five minutes, and again at exit.
            tempfile.TemporaryDirectory(prefix=_PROBE, dir=self.folder).cleanup()
            arguments = ocp.args.Composite(**items, **{_META: ocp.args.JsonSave(meta)})
            save = functools.partial(self._manager.save, step, args=arguments, force=True)
            with_backoff(str(self.folder), save)
        except Exception as error:  # orbax and tensorstore raise many types
            raise self._cannot_write(error) from error
        counts = {name: len(jax.tree.leaves(tree)) for name, tree in trees.items()}
        self._sealing = self._pool.submit(self._seal, step, counts)

    def wait(self) -> None:
        """Block until the save in progress is on disk with its checksums.

        Raises:
          CheckpointError: the checkpoint could not be written.
        """
        sealing, self._sealing = self._sealing, None
        if sealing is not None:
            try:
                sealing.result()
            except Exception as error:
                raise self._cannot_write(error) from error
            if self._shared:
                processes.barrier(f"sealed {self.folder.name}")  # so that all processes see the same checkpoints

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, ascending."""
        return complete_steps(self.folder)

    def discard_incomplete(self) -> None:
        """Delete the saves that a killed process left incomplete, with a warning for each, and no other folder.

        Raises:
          CheckpointError: a folder is named like a checkpoint and is none, so that later saves would collide with it.
        """
        self.wait()
        for path in _incomplete(self.folder) if jax.process_index() == 0 else ():
            _log.warning("%s: this save was interrupted; deleting it", path)
            shutil.rmtree(path, ignore_errors=True)
        processes.barrier(f"discarded in {self.folder.name}")
        if self._manager:
            self._manager.reload()

    def discard_after(self, step: int) -> bool:
        """Delete the checkpoints after a step, whose updates will now differ; return whether there were any."""
        later = [other for other in self.steps() if other > step]
        processes.barrier(f"listed {self.folder.name}")
        for other in later if jax.process_index() == 0 or not self._shared else ():
            _log.warning("%s/%d: made under another train.epochs; deleting it", self.folder, other)
            shutil.rmtree(self.folder / str(other), ignore_errors=not self._shared)  # two processes may share a copy
        processes.barrier(f"discarded after {step} in {self.folder.name}")
        if self._manager:
            self._manager.reload()
        return bool(later)

    def _seal(self, step: int, counts: dict[str, int]) -> None:
        assert self._manager is not None
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
        if jax.process_index() == 0:
            folder = self.folder / str(step)
            with_backoff(str(folder), lambda: _write_manifest(folder, counts))
            self._sealed()

    def _cannot_write(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.folder}: the checkpoint could not be written ({_first_line(error)}). "
            "Earlier checkpoints are intact: free some space or fix the folder, then rerun the same command to resume."
        )


def series(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Return the folder of the series `last` or `best` of a work directory."""
    return workdir / _FOLDER / name


def complete_steps(folder: pathlib.Path) -> list[int]:
    """Return the steps of the complete checkpoints in the folder of a series, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if _STEP.fullmatch(p.name) and (p / SEAL).is_file())


def find(path: pathlib.Path) -> pathlib.Path:
    """Return the checkpoint that a path refers to: the newest best checkpoint, else the newest last one.

    Args:
      path: a checkpoint, which is returned itself, or a series, a `checkpoints` folder or a work directory.

    Raises:
      CheckpointError: the path has no complete checkpoint.
    """
    path = expand_user(path).absolute()
    if (path / SEAL).is_file():
        return path
    for folder in (path, path / BEST, path / LAST, series(path, BEST), series(path, LAST)):
        if folder.is_dir():
            for incomplete in sorted(filter(_is_unsealed, folder.iterdir())):
                _log.warning("%s: this save was interrupted; ignoring it", incomplete)
        if steps := complete_steps(folder):
            return folder / str(steps[-1])
    problem = "has no complete checkpoint" if path.exists() else "does not exist"
    raise CheckpointError(f"{path} {problem}; give the work directory of a histojax run, or one of its checkpoints")


def run_of(checkpoint: pathlib.Path) -> pathlib.Path | None:
    """Return the work directory that contains a checkpoint; None for a copy elsewhere."""
    folder = checkpoint.parent.parent
    return folder.parent if folder.name == _FOLDER else None


def digest(checkpoint: pathlib.Path) -> str:
    """Return sixteen hexadecimal digits that identify a checkpoint: a hash of its files' checksums."""
    return hashlib.sha256((checkpoint / SEAL).read_bytes()).hexdigest()[:16]


def verify(checkpoint: pathlib.Path, item: str = "") -> None:
    """Compare every file of a checkpoint, or of one item in it, with its checksum.

    Args:
      checkpoint: folder of the checkpoint.
      item: prefix of the files to compare; empty: all.

    Raises:
      CheckpointError: a file is missing or differs, or the folder is not a checkpoint.
    """
    if jax.process_index() != 0:
        return  # one process reads all files; if it raises, the others end with it
    try:
        recorded: dict[str, str] = json.loads((checkpoint / SEAL).read_text())
    except OSError as error:
        raise _unreadable(checkpoint, error) from error
    except ValueError as error:
        raise _damaged(checkpoint, SEAL, "is damaged: it is not valid JSON") from error
    actual = _checksums(checkpoint, item)
    for name in sorted(recorded.keys() | actual.keys()):
        if name not in actual:
            if name.startswith(item):
                raise _damaged(checkpoint, name, "is missing")
        elif name in recorded and actual[name] != recorded[name]:
            problem = "is damaged: its content differs from the checksum taken when it was written"
            raise _damaged(checkpoint, name, problem)


def read_meta(checkpoint: pathlib.Path) -> dict[str, Any]:
    """Read what a checkpoint holds besides arrays: config, classes, normalisation, split, progress.

    Raises:
      CheckpointError: the folder is not a checkpoint of histojax, or the checkpoint is damaged.
    """
    verify(checkpoint, f"{_META}/")
    try:
        with _reader() as reader:
            restored = reader.restore(checkpoint, args=ocp.args.Composite(**{_META: ocp.args.JsonRestore()}))
        meta: dict[str, Any] = restored[_META]
    except Exception as error:
        raise _unreadable(checkpoint, error) from error
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{checkpoint}: written by another version of histojax (format {meta.get('format')}; this version reads "
            f"{FORMAT}): use that version, or train again"
        )
    return meta


def restore(checkpoint: pathlib.Path, abstract: dict[str, Any]) -> dict[str, Any]:
    """Read trees of a checkpoint.

    Args:
      checkpoint: folder of the checkpoint.
      abstract: shapes, types, shardings and memory layouts of the trees to read, by name; `ema` and `train` may be
        left out.

    Raises:
      CheckpointError: the checkpoint is damaged, or holds another model; the message names every array that is
        missing, unexpected or of another shape.
    """
    verify(checkpoint)
    with _reader() as reader:
        stored = reader.metadata(checkpoint).item_metadata
        for name, tree in abstract.items():
            _compare(checkpoint, name, stored.get(name), tree)
        try:
            arguments = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
            restored = dict(reader.restore(checkpoint, args=ocp.args.Composite(**arguments)).items())
        except Exception as error:
            raise CheckpointError(f"{checkpoint}: cannot be restored ({_first_line(error)})") from error
    return sharding.in_memory_as(abstract, restored)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """Drop what orbax logs about a failed save: tracebacks of all its threads. Our own exception says the same."""
    return record.levelno < logging.ERROR or "orbax" not in pathlib.Path(record.pathname).parts


compat.register_arrays()
logging.getLogger("absl").addFilter(_is_not_of_orbax)
compat.take_folder_names_literally()


def _is_unsealed(path: pathlib.Path) -> bool:
    return _STEP.fullmatch(path.name) is not None and not (path / SEAL).is_file()


def _incomplete(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the saves in the folder of a series that were interrupted: our own folders without checksums.

    Raises:
      CheckpointError: a folder is named like a checkpoint and is none.
    """
    found = []
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            continue
        if _TEMPORARY.fullmatch(path.name):
            found.append(path)
        elif _is_unsealed(path):
            entries = {entry.name.partition(".orbax")[0] for entry in path.iterdir()}
            if path.is_symlink() or not entries <= _ENTRIES:
                raise CheckpointError(
                    f"{path}: named like a checkpoint of this run and holds other files. Move it out of {folder}, then "
                    "rerun the same command to resume"
                )
            found.append(path)
    return found


def _write_manifest(folder: pathlib.Path, counts: dict[str, int]) -> None:
    """Seal a checkpoint, once its arrays (`counts` in each item) can be found and are on the disk."""
    for name, count in counts.items():
        if (found := compat.count_arrays(folder / name)) != count:
            raise OSError(f"of {count} arrays in {folder / name}, {found} can be read back")
    flush_tree(folder)
    content = json.dumps(_checksums(folder), indent=1)
    with atomic_write(folder / SEAL) as temporary:
        temporary.write_text(content)


def _reader() -> ocp.Checkpointer:
    arrays = {name: ocp.StandardCheckpointHandler() for name in (_MODEL, _EMA, _TRAIN)}
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(**arrays, **{_META: ocp.JsonCheckpointHandler()}))


def _compare(checkpoint: pathlib.Path, name: str, stored: Any, wanted: Any) -> None:
    """Raise if the arrays that a tree should have and those that are stored differ in name or shape."""
    if problems := array_shapes.differences({} if stored is None else getattr(stored, "tree", stored), wanted):
        shown = "\n  ".join(problems[:20] + [f"… and {len(problems) - 20} more"] * (len(problems) > 20))
        raise CheckpointError(f"{checkpoint}: its '{name}' belongs to another model or optimizer:\n  {shown}")


def _damaged(checkpoint: pathlib.Path, name: str, problem: str) -> CheckpointError:
    # A copy may have any name, and need not lie in a series.
    step = int(checkpoint.name) if _STEP.fullmatch(checkpoint.name) else 0
    earlier = [other for other in complete_steps(checkpoint.parent) if other < step]
    remedy = f"resume from step {earlier[-1]}" if earlier else "start from scratch"
    return CheckpointError(
        f"{checkpoint}: the file {name} {problem}. Restore the folder from a copy, or delete it to {remedy}."
    )


def _unreadable(checkpoint: pathlib.Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{checkpoint}: cannot be read as a histojax checkpoint ({_first_line(error)})")


def _checksums(folder: pathlib.Path, item: str = "") -> dict[str, str]:
    sums = {}
    for path in sorted(p for p in (folder / item).rglob("*") if p.is_file()):
        if path.name != SEAL:
            with open(path, "rb") as file:
                sums[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0] if lines else ''}"
    # The operating system's message, such as "No space left on device", comes last.
    return text if len(text) <= 300 else f"{text[:140]} … {text[-150:]}"
