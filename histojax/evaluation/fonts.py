"""Text in images: one font on every machine, and boxes for the characters that it lacks."""

import functools

from matplotlib import font_manager

FONT = "DejaVu Sans"  # comes with matplotlib
_BOX = "\N{WHITE SQUARE}"


def printable(text: str) -> str:
    """Replace each control character by a box: XML cannot encode it and an image cannot show it."""
    return "".join(c if c.isprintable() else _BOX for c in text)


def drawable(text: str) -> str:
    """Replace each character that the font lacks by a box: matplotlib would warn about each one."""
    return "".join(c if ord(c) in _drawn() else _BOX for c in printable(text))


@functools.cache
def _drawn() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont(FONT)).get_charmap())
