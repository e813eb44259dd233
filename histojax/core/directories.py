"""Folders of the user: their home, and the default folder of prepared data and compiled programs."""

import os
import pathlib

from histojax.core.errors import RunError


def default_directory() -> pathlib.Path:
    """Return `$HISTOJAX_DATA`, or `~/.cache/histojax` if it is not set.

    Raises:
      RunError: it is not set, and the user has no home directory.
    """
    if chosen := os.environ.get("HISTOJAX_DATA"):
        return expand_user(chosen)
    try:
        return pathlib.Path("~/.cache/histojax").expanduser()
    except RuntimeError as error:
        raise RunError(
            "this user has no home directory: set HISTOJAX_DATA to a folder for prepared data and compiled programs"
        ) from error


def expand_user(path: str | os.PathLike[str]) -> pathlib.Path:
    """Return a path with a leading `~` or `~USER` replaced by the home directory; a file may also have such a name.

    Raises:
      RunError: the home directory is not known, as in a container that runs under a number without a name.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        if os.path.lexists(path):
            return pathlib.Path(path)
        raise RunError(f"{os.fspath(path)}: the home directory is not known; write the whole path") from error
