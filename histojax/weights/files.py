"""Reading weight files (safetensors, npz and `torch.save`) as arrays by name, without PyTorch."""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from histojax.core.printable import listed
from histojax.weights import onnx_file, shards, torch_pickle
from histojax.weights.errors import PREFIX_OPTION, Problem, WeightsError, short, some
from histojax.weights.pickle_machine import Global, Inert

TORCH = (".pth", ".pt", ".bin", ".ckpt")
SUFFIXES = (".safetensors", ".npz", *TORCH, ".onnx")
# Keys under which training programs store the state dict meant for others. Without one of them the user must choose.
WRAPPERS = ("state_dict", "model", "model_state_dict", "teacher")
_COUNTER = "num_batches_tracked"  # an integer in torch's batch norms, which only `momentum=None` needs
_DEEPEST = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contents:
    """Contents of a weight file.

    Attributes:
      path: the file.
      arrays: by the file's names.
      wrapper: path of keys to the arrays, such as "state_dict"; empty if they are at the top level.
      left_out: names of everything else in the file: numbers, optimizer states, batch counters.
    """

    path: pathlib.Path
    arrays: dict[str, np.ndarray]
    wrapper: str = ""
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        inside = f" in {self.wrapper!r}" if self.wrapper else ""
        beside = f"; left out: {listed(self.left_out, 10)}" if self.left_out else ""
        return f"{self.path}: {len(self.arrays)} arrays{inside}{beside}"


def read(path: str | os.PathLike[str], *, prefix: str = "") -> dict[str, np.ndarray]:
    """Read the arrays of a weight file and log a summary, which `inspect` returns.

    Args:
      path: see `inspect`.
      prefix: see `inspect`.

    Returns:
      Arrays by name, in the file's layout and types (bfloat16 as in ml_dtypes). They may be read-only.

    Raises:
      WeightsError: as `inspect`.
    """
    contents = inspect(path, prefix=prefix)
    _log.info("%s", contents)
    return contents.arrays


def inspect(path: str | os.PathLike[str], *, prefix: str = "") -> Contents:
    """Read a weight file completely. Nothing in it is executed.

    Args:
      path: ends in one of SUFFIXES, or in `.index.json`: the index of several such files beside it.
      prefix: chooses one of several state dicts in a torch file: its keys, joined by dots ("ema.model"). It may
        end with a prefix of the names in that state dict, which `fitting.fit` uses.

    Returns:
      The arrays, and what else is in the file.

    Raises:
      WeightsError: the file is missing, of another kind, truncated or damaged; it would run code; or it holds no state
        dict, or several.
    """
    path = pathlib.Path(path)
    reader = {".safetensors": _safetensors, ".npz": _npz, ".onnx": _onnx}.get(path.suffix.lower(), _torch)
    if shards.is_index(path):
        reader = _shards
    elif path.suffix.lower() not in SUFFIXES:
        raise WeightsError(f"{path}: weights are read from files that end in {', '.join((*SUFFIXES, shards.SUFFIX))}")
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise Problem("it is empty")
        contents = reader(path, prefix)
    except Problem as error:
        raise WeightsError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist; name a file of weights") from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}). Is it a file, and yours?") from error
    counters = [name for name in contents.arrays if name.endswith(_COUNTER)]
    arrays = {name: array for name, array in contents.arrays.items() if not name.endswith(_COUNTER)}
    if not arrays:
        raise WeightsError(f"{path}: it holds no tensors by name. Save `model.state_dict()`.")
    noted = (f"{len(counters)} × {_COUNTER}",) if counters else ()
    return Contents(path, arrays, contents.wrapper, contents.left_out + noted)


def sha256(path: pathlib.Path) -> str:
    """Return the sha256 of a file of weights, 64 hexadecimal digits; of an index: of it and its files, in order."""
    digest = hashlib.sha256()
    for part in [path, *(path.with_name(name) for name in (shards.read_index(path) if shards.is_index(path) else ()))]:
        with open(part, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _safetensors(path: pathlib.Path, prefix: str) -> Contents:
    del prefix  # such files nest nothing
    with open(path, "rb") as file:
        if file.read(20).startswith(b"version https://git"):
            raise Problem("it is a pointer of Git LFS, not the weights", "Fetch them with `git lfs pull`")
    try:
        # The library compares the sizes and offsets in the header with the file's size before it reads.
        return Contents(path, safetensors.numpy.load_file(path))
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
        raise Problem(f"it is cut short, damaged or no safetensors file ({short(str(error))})") from error


def _npz(path: pathlib.Path, prefix: str) -> Contents:
    del prefix  # such files nest nothing
    try:
        _check_npz(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, KeyError, SyntaxError) as error:
        raise Problem(f"it is cut short, damaged or no npz file of numbers ({short(str(error))})") from error
    # numpy has no name for bfloat16 and writes it as two bytes without a type.
    return Contents(
        path, {n: a.view(ml_dtypes.bfloat16) if a.dtype == np.dtype("V2") else a for n, a in arrays.items()}
    )


def _onnx(path: pathlib.Path, prefix: str) -> Contents:
    del prefix  # such files nest nothing
    arrays, left_out = onnx_file.read(path)
    return Contents(path, arrays, left_out=left_out)


def _shards(path: pathlib.Path, prefix: str) -> Contents:
    arrays: dict[str, np.ndarray] = {}
    left_out: tuple[str, ...] = ()
    for file, names in shards.read_index(path).items():
        part = inspect(path.with_name(file), prefix=prefix)
        if missing := [name for name in names - part.arrays.keys() if not name.endswith(_COUNTER)]:
            raise Problem(f"{file} lacks {some(sorted(missing))}, which the index names", "Download that file again")
        arrays, left_out = arrays | part.arrays, left_out + part.left_out
    return Contents(path, arrays, left_out=left_out)


def _check_npz(path: pathlib.Path) -> None:
    """Compare the sizes that headers declare with the archive's, because numpy allocates before it reads."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        # Trained weights hardly compress, so an archive that grows twentyfold does not hold any.
        if (unpacked := sum(info.file_size for info in archive.infolist())) > 20 * size + 2**26:
            raise Problem(f"it would unpack to {unpacked} bytes from {size}", "Is it the right file?")
        for info in archive.infolist():
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = header(member)
            if dtype.hasobject:
                raise Problem(
                    f"this file would run code: {short(info.filename)} holds pickled objects", "Do not use it"
                )
            declared = dtype.itemsize
            for axis in shape:
                declared *= axis
            if min(shape, default=0) < 0 or declared > info.file_size:
                raise Problem(f"it is damaged: {short(info.filename)} declares shape {short(shape)}")


def _torch(path: pathlib.Path, prefix: str) -> Contents:
    found: dict[str, Any] = {}

    def choose(tree: Any) -> dict[str, torch_pickle.Tensor]:
        keys, left_out = _select(tree, prefix)
        found.update(keys=keys, left_out=left_out)
        return _tensors(_at(tree, keys))

    with open(path, "rb") as file:
        arrays = torch_pickle.load(file, choose)
    return Contents(path, arrays, ".".join(found["keys"]), found["left_out"])


def _tensors(node: Mapping[Any, Any]) -> dict[str, torch_pickle.Tensor]:
    return {k: v for k, v in node.items() if isinstance(k, str) and isinstance(v, torch_pickle.Tensor)}


def _at(tree: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        tree = tree[key]
    return tree


def _select(tree: Any, prefix: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the keys to the state dict and the names of everything else; raise Problem if the choice is ambiguous."""
    if not isinstance(tree, dict):
        kind = "a single tensor" if isinstance(tree, torch_pickle.Tensor) else f"a {_kind(tree)}"
        raise Problem(f"it holds {kind}, not tensors by name", "Save `model.state_dict()`")
    candidates = dict(_state_dicts(tree))
    known = [keys for keys in candidates if keys and all(key in WRAPPERS for key in keys)]
    chosen = [keys for keys in candidates if keys and f"{prefix.rstrip('.')}.".startswith(f"{'.'.join(keys)}.")]
    if chosen:
        keys = max(chosen, key=len)
    elif () in candidates:
        keys = ()
    elif len(candidates) == 1 or len(known) == 1:
        keys = (known or list(candidates))[0]
    elif candidates:
        raise Problem("it holds several state dicts", f"Choose one with {PREFIX_OPTION}: {_listed(candidates)}")
    else:
        raise Problem("it holds no tensors by name", "Save `model.state_dict()`")
    left_out = []
    for depth in range(len(keys) + 1):
        node, taken = _at(tree, keys[:depth]), keys[depth] if depth < len(keys) else None
        for key, value in node.items():
            if key != taken and (taken is not None or not isinstance(value, torch_pickle.Tensor)):
                left_out.append(f"{'.'.join([*keys[:depth], short(key)])} ({_kind(value)})")
    return keys, tuple(left_out)


def _state_dicts(tree: dict[Any, Any]) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """Yield keys and value of every dictionary of tensors whose path consists of strings.

    The states of optimizers have numbers as keys and are not among them.
    """
    waiting: deque[tuple[tuple[str, ...], dict[Any, Any]]] = deque([((), tree)])
    seen = set()
    while waiting:
        keys, node = waiting.popleft()
        # A pickle can contain a dictionary inside itself, in many places, or at any depth.
        if id(node) in seen or len(keys) > _DEEPEST:
            continue
        seen.add(id(node))
        if _tensors(node):
            yield keys, node
        waiting += [((*keys, k), v) for k, v in node.items() if isinstance(k, str) and isinstance(v, dict)]


def _listed(candidates: Mapping[tuple[str, ...], Any]) -> str:
    return ", ".join(repr(short(".".join(keys))) for keys in list(candidates)[:20])


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Inert | Global) else type(value).__name__
