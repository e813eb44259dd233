"""What modules of the user and installed packages add: models, sources of images, losses and more, by name."""

import contextlib
import importlib
import logging
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from importlib import metadata
from typing import Any, Generic, Protocol, TypeVar

from histojax.core.errors import RunError
from histojax.core.suggestions import did_you_mean

_log = logging.getLogger(__name__)


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Item = TypeVar("Item", bound=_Named)


class Registry(Generic[Item]):
    """Things of one kind by their names: those that were registered, and those of installed packages.

    A package provides them by entry points, each of which refers to one thing or to a sequence of them.

    Args:
      kind: class of the things; they have a `name`.
      noun: what messages call one of them.
      group: the entry-point group.
      reserved: names that are taken, although nothing is registered under them.

    Attributes:
      items: what is registered, by name.
    """

    def __init__(self, kind: type[Item], noun: str, group: str, reserved: Collection[str] = ()):
        self._kind, self._noun, self._group, self._reserved = kind, noun, group, reserved
        self._loaded = False
        self.items: dict[str, Item] = {}

    def register(self, item: Item) -> Item:
        """Make a thing available under its name, and return it. Registering the same one again has no effect.

        Raises:
          ValueError: it is of another class, or another one has this name.
        """
        if not isinstance(item, self._kind):
            raise ValueError(f"{item!r} is no {self._noun}: register a {self._kind.__module__}.{self._kind.__name__}")
        if item.name in self._reserved or self.items.setdefault(item.name, item) is not item:
            raise ValueError(f"a {self._noun} named {item.name!r} is already registered; choose another name")
        return item

    def names(self) -> tuple[str, ...]:
        """Return the names of all registered things, including those of installed packages."""
        if not self._loaded:
            self._loaded = True
            for point in metadata.entry_points(group=self._group):
                self._load(point)
        return tuple(self.items)

    def find(self, name: str) -> Item:
        """Return a thing by its name.

        Raises:
          ValueError: there is none of this name; the message lists the names.
        """
        if name not in self.items and name not in self.names():
            plural = self._noun + ("es" if self._noun.endswith("s") else "s")
            raise ValueError(
                f"unknown {self._noun} {name!r}{did_you_mean(name, self.items)}; {plural}: "
                f"{', '.join(self.items) or 'none'}. The field `plugins` names modules that register others"
            )
        return self.items[name]

    def _load(self, point: metadata.EntryPoint) -> None:
        """Register what an entry point refers to. A package that is broken is left out, with a warning."""
        try:
            loaded = point.load()
            for item in [loaded] if isinstance(loaded, self._kind) else loaded:
                self.register(item)
        except Exception as error:
            _log.warning("entry point %s of %s is left out: %s", point.name, self._group, error)


def load(modules: Iterable[str]) -> None:
    """Import the modules that `config.plugins` names; they register what they add.

    Only importable module names are accepted, not paths of files: a checkpoint stores this field, and loading somebody
    else's checkpoint must not run a file that came with it.

    Raises:
      RunError: not a module name, or the module cannot be imported.
    """
    for name in modules:
        if not all(part.isidentifier() for part in str(name).split(".")):
            raise RunError(f"plugins: {name!r} is not the name of a Python module, such as my_models or lab.models")
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise RunError(
                f"plugins: {name!r} cannot be imported ({error}); install it, or add its folder to PYTHONPATH"
            ) from error
        except Exception as error:
            raise RunError(f"plugins: importing {name!r} failed: {_describe(error)}") from error


def qualified_name(function: Callable[..., Any]) -> str:
    """Return a function's name with that of its module, such as `my_losses.poly`."""
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def described(value: Any) -> str:
    """Return type and shape of an array, or the class of another value, for messages."""
    return f"{value.dtype} {list(value.shape)}" if hasattr(value, "shape") else type(value).__name__


@contextlib.contextmanager
def blaming(where: str, function: Callable[..., Any]) -> Iterator[None]:
    """Turn an exception of the body into an error of the function of the user's own that the body calls.

    Args:
      where: field and name that select the function.
      function: the function.

    Raises:
      RunError: the body raised an exception; the message names the function, and file and line of its failure.
    """
    try:
        yield
    except Exception as error:
        file = getattr(getattr(function, "__code__", None), "co_filename", "")
        raise RunError(f"{where}: {qualified_name(function)} failed: {_describe(error, file)}") from error


def _describe(error: Exception, file: str = "") -> str:
    """Return place, type and first line of an exception; the place is the last one in the file, if it is given."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
    message = next(iter(str(error).strip().splitlines()), "")
    return f"{last.filename}:{last.lineno}: {type(error).__name__}: {message}"
