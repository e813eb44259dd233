"""Errors of this package, and shortening of names from files for messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from histojax.core.errors import RunError
from histojax.core.printable import listed

# How a user chooses one of several networks in a file.
PREFIX_OPTION = "--config.model.pretrained_prefix=PREFIX (histojax convert: --prefix=PREFIX)"
_SHOWN = 20


class WeightsError(RunError):
    """A file of weights cannot be used; the message names the file, the problem and the remedy."""


class MismatchError(WeightsError):
    """The weights belong to another model.

    The message lists the first names of each kind; the attributes hold all of them.

    Attributes:
      missing: names, with shapes, that the model needs and the file does not have.
      unexpected: names, with shapes, that the model does not have.
      misshapen: descriptions of arrays of another shape or type.
    """

    def __init__(
        self, head: str, missing: Sequence[str], unexpected: Sequence[str], misshapen: Sequence[str], remedy: str
    ):
        self.missing, self.unexpected, self.misshapen = tuple(missing), tuple(unexpected), tuple(misshapen)
        lines = [head]
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)):
            lines += [f"  {kind} {name}" for name in names[:_SHOWN]]
            if len(names) > _SHOWN:
                lines.append(f"  … and {len(names) - _SHOWN} more that are {kind}")
        super().__init__("\n".join([*lines, remedy]))


class Problem(Exception):
    """A problem inside a file and its remedy. `files` adds the file's name and raises a `WeightsError`."""

    def __init__(self, what: str, remedy: str = "Download or copy it again"):
        super().__init__(f"{what}. {remedy}.")


def short(name: object) -> str:
    """Return a name from a file, shortened for a message."""
    if isinstance(name, str):
        text = name
    elif isinstance(name, bytes):
        text = repr(name[:200])
    elif name is None or isinstance(name, int | float) or _is_shape(name):
        text = repr(name)
    else:
        # Not its repr, which can be of any length for a few nested tuples from a pickle.
        text = f"a {type(name).__name__}"
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"


def some(names: Iterable[str]) -> str:
    """Join the first eight names, and count the others."""
    return listed(map(short, names), 8)


def _is_shape(value: object) -> bool:
    return isinstance(value, tuple) and len(value) <= 64 and all(isinstance(item, int) for item in value)
