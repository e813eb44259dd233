"""The one exception of this room: bad data, told in words."""

import pathlib
from collections.abc import Mapping

_SHOWN = 50  # bad files that an error message lists by name


class DataError(ValueError):
    """Something is wrong with the user's data; the message names the file, the fact and the remedy."""


def bad_images_message(root: pathlib.Path, bad: Mapping[str, str]) -> str:
    """What is wrong with which images, file -> reason, and the remedy."""
    lines = [f"  {path}: {reason}" for path, reason in sorted(bad.items())[:_SHOWN]]
    if len(bad) > _SHOWN:
        lines.append(f"  … and {len(bad) - _SHOWN} more")
    noun = "image" if len(bad) == 1 else "images"
    remedy = "leave them out with --config.data.on_bad_image=skip (the results then say how many)."
    return "\n".join([f"{root}: {len(bad)} bad {noun}:", *lines, f"Mend or remove them, or {remedy}"])
