"""Names of files as text."""

import os


def printable(name: str | os.PathLike[str]) -> str:
    """Return a file's name as text that any table can hold: bytes that are not UTF-8 become `\\xff`."""
    return os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
