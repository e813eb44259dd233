"""The default folder of prepared data and compiled programs."""

import os
import pathlib


def default_directory() -> pathlib.Path:
    """Return `$HISTOJAX_DATA`, or `~/.cache/histojax` if it is not set."""
    return pathlib.Path(os.environ.get("HISTOJAX_DATA") or "~/.cache/histojax").expanduser()
