"""Where prepared data and compiled programs are kept."""

import os
import pathlib


def default_directory() -> pathlib.Path:
    """Where prepared datasets live unless told otherwise: `$HISTOJAX_DATA`, else `~/.cache/histojax`."""
    return pathlib.Path(os.environ.get("HISTOJAX_DATA") or "~/.cache/histojax").expanduser()
