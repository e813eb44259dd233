"""Reading files of PyTorch without it: `torch.save`'s zip format, the one before PyTorch 1.6, and TorchScript archives.

A pickle describes the tensors (storage, offset, shape, strides); the file stores their bytes outside the pickle.
`pickle_machine` interprets the pickle with the stand-ins below for the few functions that build tensors. Every other
global is refused by name. Format: torch/serialization.py (`_save`, `_legacy_save`) and torch/_utils.py (`_rebuild_*`).
"""

from __future__ import annotations

import math
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from histojax.weights import pickle_machine
from histojax.weights.errors import Problem, short
from histojax.weights.pickle_machine import Global, Inert, Record

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MOST_AXES = 32

_DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
    "complex64": np.complex64,
    "complex128": np.complex128,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
_STORAGES: dict[str, str] = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
_OTHER_TORCH_NAMES = {"float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32"}
# Found next to tensors in checkpoints and never built: numpy numbers, byte strings, command-line options.
_INERT = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
    ("__builtin__", "set"),
    ("builtins", "set"),
    ("__builtin__", "bytes"),
    ("builtins", "bytes"),
    ("torch", "device"),
    ("argparse", "Namespace"),
    *(("torch.jit._pickle", f"build_{kind}list") for kind in ("int", "double", "bool", "tensor")),
    ("torch.jit._pickle", "restore_type_tag"),
}


@dataclass(frozen=True)
class Storage:
    """Bytes that tensors share.

    Attributes:
      key: name of the record in the file.
      dtype: type of the tensors that do not declare their own.
      start: first byte within the record.
      nbytes: number of bytes.
    """

    key: str
    dtype: np.dtype[Any]
    start: int
    nbytes: int


@dataclass(frozen=True)
class Tensor:
    """A pickle's description of a tensor, checked against its storage. Offset and strides are in elements."""

    storage: Storage
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, data: bytes, big_endian: bool) -> np.ndarray:
        """Return the array in the record's bytes: contiguous, in native byte order, read-only unless it was copied."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        count = self.storage.nbytes // self.dtype.itemsize
        flat = np.frombuffer(data, self.dtype, count, self.storage.start)
        if big_endian != (sys.byteorder == "big"):
            flat = flat.byteswap()
        steps = [stride * self.dtype.itemsize for stride in self.strides]
        # `_tensor` compared the extent with the storage.
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, steps, writeable=False)
        # ascontiguousarray gives a scalar an axis; reshape removes it.
        return np.ascontiguousarray(view).reshape(self.shape)


def describe(dtype: Any) -> Global:
    """Return the stand-in for a torch type, such as `torch.float32`."""
    return Global(f"torch.{dtype}", value=np.dtype(_DTYPES[dtype]))


def find(module: str, name: str) -> Global:
    """Return the stand-in for a global in a pickle.

    Raises:
      Problem: tensors do not need this global; the message names it.
    """
    full = f"{short(module)}.{short(name)}"
    if (module, name) in _INERT:
        return Global(full, lambda _: Inert(full))
    if module.partition(".")[0] == "__torch__":  # a module of a TorchScript program, of which only the tensors are read
        return Global(full, lambda _: Record(full))
    if (module, name) in _BUILDERS:
        return Global(full, _BUILDERS[module, name])
    if module in ("torch", "torch.cuda", "torch.storage") and name in _STORAGES:
        return Global(full, value=np.dtype(_DTYPES[_STORAGES[name]]))
    if module == "torch" and (dtype := _OTHER_TORCH_NAMES.get(name, name)) in _DTYPES:
        return describe(dtype)
    if (module == "torch" and name.endswith("Storage")) or (module == "torch._utils" and name.startswith("_rebuild")):
        raise Problem(f"it holds {full}, which is not a plain tensor", "Save plain, dense tensors only")
    raise Problem(
        f"this file would run code: {full}",
        "It was not run. Save `model.state_dict()` alone, or as safetensors, where you trust the file",
    )


def _count(value: Any, what: str, most: int = 2**62) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise Problem(f"its pickle is damaged: {what} is {short(value)}")
    return value


def _tensor(dtype: np.dtype[Any] | None, storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple | list) or not isinstance(strides, tuple | list):
        raise Problem("its pickle is damaged: a tensor without storage, shape or strides")
    if len(shape) != len(strides) or len(shape) > _MOST_AXES:
        raise Problem(f"its pickle is damaged: a tensor of {len(shape)} axes with {len(strides)} strides")
    shape = tuple(_count(size, "an axis") for size in shape)
    strides = tuple(_count(stride, "a stride") for stride in strides)
    dtype = storage.dtype if dtype is None else dtype
    held = storage.nbytes // dtype.itemsize
    offset = _count(offset, "an offset")
    if 0 in shape:
        # The shape of an empty tensor can also be too large for numpy.
        if max(shape) > 2**32 or math.prod(size for size in shape if size) > 2**62:
            raise Problem(f"its pickle is damaged: an empty tensor of shape {shape}")
        return Tensor(storage, dtype, 0, shape, strides)
    needed = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    # A stride of 0 can repeat elements without limit; weights never do.
    if needed > held or math.prod(shape) > held:
        raise Problem(f"it is damaged: a tensor of shape {short(shape)}, but storage {storage.key} holds {held} values")
    return Tensor(storage, dtype, offset, shape, strides)


def _rebuild(arguments: tuple[Any, ...]) -> Tensor:
    return _tensor(None, *arguments[:4])


def _rebuild_v3(arguments: tuple[Any, ...]) -> Tensor:
    dtype = arguments[6]
    if not isinstance(dtype, Global) or not isinstance(dtype.value, np.dtype):
        raise Problem("its pickle is damaged: a tensor without type")
    return _tensor(dtype.value, *arguments[:4])


def _parameter(arguments: tuple[Any, ...]) -> Tensor:
    if not isinstance(arguments[0], Tensor):
        raise Problem("its pickle is damaged: a parameter that is no tensor")
    return arguments[0]


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    items: dict[Any, Any] = {}
    pairs = arguments[0] if arguments else []
    if not isinstance(pairs, list):
        raise Problem("its pickle is damaged: an OrderedDict of no list")
    taken, pairs[:] = pairs[:], []  # emptied, because a pickle could otherwise copy one long list again and again
    for pair in taken:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise Problem("its pickle is damaged: an item that is no pair")
        pickle_machine.put(items, list(pair))
    return items


def _size(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    sizes = arguments[0] if arguments else ()
    if not isinstance(sizes, tuple | list) or len(sizes) > _MOST_AXES:
        raise Problem("its pickle is damaged: a torch.Size of too many axes")
    return tuple(sizes)


_BUILDERS: dict[tuple[str, str], Callable[[tuple[Any, ...]], Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch", "Size"): _size,
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
}


def load(file: BinaryIO, choose: Callable[[Any], dict[str, Tensor]]) -> dict[str, np.ndarray]:
    """Read some of the tensors of a file. Records of other tensors, such as optimizer states, are not read.

    Args:
      file: the file, opened for reading.
      choose: selects tensors by name from the pickled object.

    Returns:
      Contiguous arrays by name. They may be read-only.

    Raises:
      Problem: the file is damaged, of another kind, or would run code.
      OSError: reading failed.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(512)
    file.seek(0)
    if start.startswith(b"PK"):
        return _load_zip(file, size, choose)
    if start.startswith(b"\x80"):
        return _load_legacy(file, size, choose)
    if start.startswith(b"version https://git-lfs"):
        raise Problem("it is a pointer of Git LFS, not the weights", "Fetch them with `git lfs pull`")
    if start.lstrip()[:1] == b"<":
        raise Problem("it is a web page, not the weights", "Download the file that the page links to")
    if start[257:262] == b"ustar":
        raise Problem("it is a tar archive, PyTorch's format before 2017", "Load it with PyTorch and save it again")
    if start[8:9] == b"{":
        raise Problem("it is a safetensors file by its content", "Rename it to end in .safetensors")
    raise Problem("it is neither a zip archive nor a pickle, so not written by torch.save")


def _load_zip(file: BinaryIO, size: int, choose: Callable[[Any], dict[str, Tensor]]) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(file) as archive:
            records = _records(archive, size)
            order = archive.read(records["byteorder"]) if "byteorder" in records else b"little"
            if order not in (b"little", b"big"):
                raise Problem(f"it is damaged: its byte order is {short(order)}")

            def persistent(saved: Any) -> Storage:
                storage, view = _storage(saved)
                record = records.get(f"data/{storage.key}")
                if view is not None or record is None or record.file_size < storage.nbytes:
                    held = "missing" if record is None else f"{record.file_size} bytes"
                    raise Problem(f"it is damaged: storage {storage.key} of {storage.nbytes} bytes is {held}")
                return storage

            tree = pickle_machine.loads(archive.read(records["data.pkl"]), find, persistent)
            chosen = choose(_state_dict(tree) if isinstance(tree, Record) else tree)
            data = {key: archive.read(records[f"data/{key}"]) for key in {t.storage.key for t in chosen.values()}}
            return {name: tensor.array(data[tensor.storage.key], order == b"big") for name, tensor in chosen.items()}
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError) as error:
        raise Problem(f"its zip archive is cut short or damaged ({short(str(error))})") from error


def _state_dict(program: Record) -> dict[str, Tensor]:
    """Return the tensors of a TorchScript program by their names; a module that occurs twice has its first name."""
    found: dict[str, Tensor] = {}
    seen, waiting = set[int](), [("", program)]
    while waiting:
        prefix, module = waiting.pop()
        seen.add(id(module))
        for name, value in reversed(module.attributes.items()):
            if isinstance(value, Tensor):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, Record) and id(value) not in seen:
                waiting.append((f"{prefix}{name}.", value))
    if not found:
        raise Problem(
            "it is a TorchScript program whose parameters are constants without names (torch.jit.freeze)",
            "Use the file of weights that it was made from",
        )
    return found


def _records(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the archive's members by name without their common folder, including `data.pkl`. Nothing is unpacked."""
    infos = archive.infolist()
    roots = [info.filename.removesuffix("data.pkl") for info in infos if info.filename.split("/")[1:] == ["data.pkl"]]
    if len(roots) != 1:
        raise Problem("it is a zip archive without data.pkl, so not written by torch.save", "Is it the right file?")
    records: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename.removeprefix(roots[0])
        if name.startswith("code/"):
            continue  # of a TorchScript program; it is never read
        if name in records:
            raise Problem(f"it is damaged: its archive holds {short(name)} twice")
        # torch.save does not compress, so the declared sizes can be compared with the file's.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise Problem(f"its record {short(name)} is compressed or encrypted", "Save it again with torch.save")
        records[name] = info
    if sum(info.file_size for info in records.values()) > size:
        raise Problem("it is cut short or damaged: its records declare more bytes than the file has")
    return records


def _storage(saved: Any) -> tuple[Storage, tuple[Any, ...] | None]:
    """Return storage and view of a persistent id ("storage", type, key, location, number of elements[, view])."""
    if isinstance(saved, tuple) and saved and saved[0] in ("module", b"module"):
        raise Problem("it holds a whole model with its code", "Save `model.state_dict()` instead")
    if not isinstance(saved, tuple) or len(saved) not in (5, 6) or saved[0] not in ("storage", b"storage"):
        raise Problem("its pickle is damaged: an unknown kind of storage")
    kind, key, _, count = saved[1:5]
    if not isinstance(kind, Global) or not isinstance(kind.value, np.dtype) or not isinstance(key, str):
        raise Problem("its pickle is damaged: a storage without type or key")
    nbytes = _count(count, "a storage's size") * kind.value.itemsize
    return Storage(short(key), kind.value, 0, nbytes), saved[5] if len(saved) == 6 else None


def _load_legacy(file: BinaryIO, size: int, choose: Callable[[Any], dict[str, Tensor]]) -> dict[str, np.ndarray]:
    def nothing(saved: Any) -> Any:
        raise Problem("its pickle is damaged: a storage before the tensors")

    def part() -> Any:
        return pickle_machine.load(file, size, find, nothing)

    if part() != _MAGIC or part() != _PROTOCOL:
        raise Problem("it is a pickle, but not one of torch.save", "Save `model.state_dict()` with torch.save")
    part()  # facts about the machine that wrote the file; the bytes are little-endian on every machine
    storages: dict[str, Storage] = {}

    def persistent(saved: Any) -> Storage:
        root, view = _storage(saved)
        # The first reference to a storage sets its size and type; later ones may view it as another type.
        if storages.setdefault(root.key, root).nbytes != root.nbytes:
            raise Problem(f"it is damaged: storage {root.key} has two sizes")
        if root.nbytes > size:
            raise Problem(f"it is cut short or damaged: storage {root.key} of {root.nbytes} bytes")
        if view is None:
            return root
        if not isinstance(view, tuple) or len(view) != 3:
            raise Problem(f"its pickle is damaged: a view of storage {root.key}")
        start, nbytes = (_count(count, "a view") * root.dtype.itemsize for count in view[1:])
        if start + nbytes > root.nbytes:
            raise Problem(f"it is damaged: a view beyond storage {root.key}")
        return Storage(root.key, root.dtype, start, nbytes)

    chosen = choose(pickle_machine.load(file, size, find, persistent))
    keys = part()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Problem("its pickle is damaged: the list of its storages")
    keys = [short(key) for key in keys]
    if len(set(keys)) != len(keys) or set(keys) != set(storages):
        raise Problem("it is damaged: its storages are not those that its tensors name")
    wanted = {tensor.storage.key for tensor in chosen.values()}
    data = {}
    for key in keys:
        head = file.read(8)
        if len(head) < 8:
            raise Problem(f"it is cut short: storage {key} is missing")
        nbytes = struct.unpack("<q", head)[0] * storages[key].dtype.itemsize
        if nbytes != storages[key].nbytes or nbytes > size - file.tell():
            raise Problem(f"it is cut short or damaged: storage {key} declares {nbytes} bytes")
        if key in wanted:
            data[key] = file.read(nbytes)
        else:
            file.seek(nbytes, os.SEEK_CUR)
    if file.tell() != size:
        raise Problem(f"it is damaged: {size - file.tell()} bytes follow the last tensor")
    return {name: tensor.array(data[tensor.storage.key], big_endian=False) for name, tensor in chosen.items()}
