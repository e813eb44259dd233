"""Exceptions for images and datasets that cannot be used."""

import pathlib
from collections.abc import Mapping

from histojax.core.printable import printable

_MAX_LISTED = 50  # bad files that an error message lists by name


class DataError(ValueError):
    """The user's data have a problem; the message names the file, says what is wrong, and what to do."""


class BadImageError(ValueError):
    """A file or its bytes cannot be used as an 8-bit RGB image; the message says why."""


def bad_images_message(root: pathlib.Path, bad: Mapping[str, str]) -> str:
    """Describe bad images.

    Args:
      root: the folder that holds them.
      bad: file -> reason.

    Returns:
      Several lines: the number of bad images, the first of them with their reasons, and what to do.
    """
    lines = [f"  {path}: {reason}" for path, reason in sorted(bad.items())[:_MAX_LISTED]]
    if len(bad) > _MAX_LISTED:
        lines.append(f"  … and {len(bad) - _MAX_LISTED} more")
    noun = "image" if len(bad) == 1 else "images"
    remedy = "skip them with --config.data.on_bad_image=skip (the results then give their number)."
    return "\n".join([f"{printable(root)}: {len(bad)} bad {noun}:", *lines, f"Repair or remove them, or {remedy}"])
