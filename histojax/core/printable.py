"""Names as text: of files, and of many things."""

import os
from collections.abc import Iterable


def printable(name: str | os.PathLike[str]) -> str:
    """Return a file's name as text that any table can hold: bytes that are not UTF-8 become `\\xff`."""
    return os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def listed(names: Iterable[str], most: int) -> str:
    """Join the first `most` names, and count the others: `a, b and 3 more`."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
