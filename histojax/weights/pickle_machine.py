"""A pickle interpreter that cannot run code: it supports data opcodes only and calls only the caller's stand-ins.

`pickle.Unpickler` with a guarded `find_class` would still set attributes, call `__setstate__`, and allocate as much as
a header declares. This interpreter refuses every opcode that is not in its table, resolves globals only with `find`,
and compares each declared length with the remaining bytes before it uses it. Opcodes: CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from histojax.weights.errors import Problem, short

_LONGEST_INT = 64  # bytes; sizes and counters need eight
_PLAIN_KEYS = (str, int, float, bool, bytes, type(None))
_UNMARKED = "its pickle is damaged: it ends without its beginning"


@dataclass(frozen=True)
class Global:
    """A stand-in for a class or function named in a pickle.

    Attributes:
      name: the global's full name.
      make: maps a tuple of arguments to a value; None: the global is only a name, such as a type.
      value: for the caller's use.
    """

    name: str
    make: Callable[[tuple[Any, ...]], Any] | None = None
    value: Any = None


class Inert:
    """A placeholder for an object that is not needed, such as a numpy number. The object itself is never built."""

    def __init__(self, name: str):
        self.name = name


class Record(Inert):
    """A stand-in for an object whose attributes are kept as a dictionary. The object itself is never built."""

    def __init__(self, name: str):
        super().__init__(name)
        self.attributes: dict[Any, Any] = {}


Find = Callable[[str, str], Global]


def load(file: BinaryIO, size: int, find: Find, persistent: Callable[[Any], Any]) -> Any:
    """Interpret one pickle at the current position of `file`, and leave the position after it.

    Args:
      file: a buffered binary file.
      size: size of the whole file in bytes.
      find: maps module and name to a stand-in, or raises Problem.
      persistent: maps a persistent id to a value, or raises Problem.

    Returns:
      The pickled value.

    Raises:
      Problem: the pickle is truncated, damaged, or uses opcodes that data does not need.
    """
    machine = _Machine(file, size, find, persistent)
    try:
        return machine.run()
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
        raise Problem(f"its pickle is damaged ({type(error).__name__} at byte {file.tell()})") from error


class _Machine:
    def __init__(self, file: BinaryIO, size: int, find: Find, persistent: Callable[[Any], Any]) -> None:
        self.file = file
        self.size = size
        self.find = find
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            opcode = self.read(1)
            if opcode == pickle.STOP:
                if self.marked or len(self.stack) != 1:
                    raise Problem("its pickle is damaged: it does not leave one value")
                return self.stack.pop()
            step = _STEPS.get(opcode)
            if step is None:
                self.refuse(opcode)
            else:
                step(self)

    def refuse(self, opcode: bytes) -> None:
        # INST contains the name of its global. Report it like any other, because the user must know it.
        if opcode == pickle.INST:
            self.find(self.line(), self.line())
        if opcode in (pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4):
            raise Problem(
                f"this file would run code: its pickle makes an object by opcode {opcode!r}",
                "Do not load it with other programs unless you trust where it comes from",
            )
        raise Problem(f"its pickle has opcode {opcode!r} at byte {self.file.tell() - 1}, which no weights file needs")

    def read(self, count: int) -> bytes:
        # Find a declared length beyond the file's end before anything is allocated for it.
        if count > 255 and count > self.size - self.file.tell():
            raise Problem(f"it is cut short or damaged: {count} bytes are declared at byte {self.file.tell()}")
        data = self.file.read(count)
        if len(data) != count:
            raise Problem(f"it is cut short: it ends at byte {self.file.tell()} in the middle of a value")
        return data

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def line(self) -> str:
        data = self.file.readline(1000)
        if not data.endswith(b"\n"):
            raise Problem("it is cut short or damaged: a name has no end")
        return data[:-1].decode("utf-8")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Any]:
        if not self.marked:
            raise Problem(_UNMARKED)
        items, self.stack = self.stack, self.marked.pop()
        return items

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise Problem(_UNMARKED)
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def text(self, form: str, encoding: str = "utf-8") -> None:
        self.push(self.read(self.number(form)).decode(encoding, "surrogatepass" if encoding == "utf-8" else "strict"))

    def integer(self, form: str) -> None:
        count = self.number(form)
        if not 0 <= count <= _LONGEST_INT:
            raise Problem(f"its pickle is damaged: an integer of {count} bytes")
        self.push(int.from_bytes(self.read(count), "little", signed=True))

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise Problem(f"its pickle is damaged: it appends to a {type(target).__name__}")

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            put(target, items)
        elif not isinstance(target, Inert):
            raise Problem(f"its pickle is damaged: it sets items of a {type(target).__name__}")

    def named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Problem("its pickle is damaged: a global's name is not a string")
        self.push(self.find(module, name))

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        # Only stand-ins are called, never strings, tensors or other values on the stack.
        if not isinstance(function, Global) or function.make is None or not isinstance(arguments, tuple):
            what = function.name if isinstance(function, Global) else type(function).__name__
            raise Problem(f"its pickle is damaged: it calls {short(what)}")
        self.push(function.make(arguments))

    def build(self) -> None:
        # The state of an OrderedDict (a module's `_metadata`) or of a placeholder is dropped, not set.
        state = self.stack.pop()
        if isinstance(self.stack[-1], Record) and isinstance(state, dict):
            self.stack[-1].attributes = state
        if not isinstance(self.stack[-1], dict | Inert):
            raise Problem(f"its pickle is damaged: it sets the state of a {type(self.stack[-1]).__name__}")


def put(target: dict[Any, Any], items: list[Any]) -> None:
    """Set the items key, value, key, value, … of a dictionary.

    Raises:
      Problem: the number of items is odd.
    """
    if len(items) % 2:
        raise Problem("its pickle is damaged: a key has no value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Nested tuples can take exponentially long to hash, and no tensor is named by one.
        target[key if isinstance(key, _PLAIN_KEYS) else Inert(type(key).__name__)] = value


def _dictionary(machine: _Machine) -> None:
    made: dict[Any, Any] = {}
    put(made, machine.to_mark())
    machine.push(made)


def _set(machine: _Machine) -> None:
    machine.to_mark()
    machine.push(Inert("frozenset"))


def _two_lines(machine: _Machine) -> None:
    module = machine.line()
    machine.named(module, machine.line())


def _two_strings(machine: _Machine) -> None:
    name = machine.stack.pop()
    machine.named(machine.stack.pop(), name)


def _protocol(machine: _Machine) -> None:
    if not 2 <= (version := machine.number("<B")) <= 5:
        raise Problem(f"its pickle is damaged, or of protocol {version}, which is not known")


def _item(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.update([key, value])


def _append(machine: _Machine) -> None:
    item = machine.stack.pop()
    machine.extend([item])


_STEPS: dict[bytes, Callable[[_Machine], Any]] = {
    pickle.PROTO: _protocol,
    pickle.FRAME: lambda m: m.read(8),
    pickle.MARK: _Machine.mark,
    pickle.POP: lambda m: m.stack.pop() if m.stack else m.to_mark(),
    pickle.POP_MARK: _Machine.to_mark,
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("<B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.LONG1: lambda m: m.integer("<B"),
    pickle.LONG4: lambda m: m.integer("<i"),
    pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
    # Python 2's strings: names in files of 2017.
    pickle.SHORT_BINSTRING: lambda m: m.text("<B", "latin-1"),
    pickle.BINSTRING: lambda m: m.text("<I", "latin-1"),
    pickle.SHORT_BINUNICODE: lambda m: m.text("<B"),
    pickle.BINUNICODE: lambda m: m.text("<I"),
    pickle.BINUNICODE8: lambda m: m.text("<Q"),
    pickle.SHORT_BINBYTES: lambda m: m.push(m.read(m.number("<B"))),
    pickle.BINBYTES: lambda m: m.push(m.read(m.number("<I"))),
    pickle.BINBYTES8: lambda m: m.push(m.read(m.number("<Q"))),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE: lambda m: m.push(tuple(m.to_mark())),
    pickle.TUPLE1: lambda m: m.tuple_of(1),
    pickle.TUPLE2: lambda m: m.tuple_of(2),
    pickle.TUPLE3: lambda m: m.tuple_of(3),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.LIST: lambda m: m.push(m.to_mark()),
    pickle.APPEND: _append,
    pickle.APPENDS: lambda m: m.extend(m.to_mark()),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.DICT: _dictionary,
    pickle.SETITEM: _item,
    pickle.SETITEMS: lambda m: m.update(m.to_mark()),
    pickle.EMPTY_SET: lambda m: m.push(Inert("set")),
    pickle.ADDITEMS: lambda m: m.extend(m.to_mark()),
    pickle.FROZENSET: _set,
    pickle.BINGET: lambda m: m.push(m.memo[m.number("<B")]),
    pickle.LONG_BINGET: lambda m: m.push(m.memo[m.number("<I")]),
    pickle.BINPUT: lambda m: m.remember(m.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.remember(m.number("<I")),
    pickle.MEMOIZE: lambda m: m.remember(len(m.memo)),
    pickle.GLOBAL: _two_lines,
    pickle.STACK_GLOBAL: _two_strings,
    pickle.REDUCE: _Machine.reduce,
    pickle.NEWOBJ: _Machine.reduce,
    pickle.BUILD: _Machine.build,
    pickle.BINPERSID: lambda m: m.push(m.persistent(m.stack.pop())),
}


def loads(data: bytes, find: Find, persistent: Callable[[Any], Any]) -> Any:
    """Interpret the single pickle in `data`.

    Raises:
      Problem: as `load`, or bytes follow the pickle.
    """
    file = io.BytesIO(data)
    value = load(file, len(data), find, persistent)
    if file.tell() != len(data):
        raise Problem(f"its pickle is damaged: {len(data) - file.tell()} bytes follow its end")
    return value
