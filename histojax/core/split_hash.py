"""The hash of a split: results state it, and a split.csv that was kept beside them can be checked against it."""

import hashlib
from collections.abc import Iterable

# Fields of a record whose groups a split may keep together, the strictest first; "" stands for single images.
GROUP_FIELDS = ("case_id", "patient_id", "slide_id", "source_id", "site", "")


def split_hash(group_by: str, sides: Iterable[tuple[str, str]]) -> str:
    """Hash groups and sides, independent of their order.

    Args:
      group_by: one of `GROUP_FIELDS`.
      sides: image_id and side of each image; the side of an image that is left out is empty.

    Returns:
      Sixteen hexadecimal digits.
    """
    lines = sorted(f"{image_id},{side}" for image_id, side in sides)
    return hashlib.sha256("\n".join([group_by, *lines]).encode()).hexdigest()[:16]
