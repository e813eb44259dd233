"""Words in pictures: a font that looks alike everywhere, and boxes for what it cannot draw."""

import functools

from matplotlib import font_manager

FONT = "DejaVu Sans"  # comes with matplotlib
_BOX = "\N{WHITE SQUARE}"


def printable(text: str) -> str:
    """The text with a box for each control character: XML has no way to say them, and pictures none to show them."""
    return "".join(c if c.isprintable() else _BOX for c in text)


def drawable(text: str) -> str:
    """The text with a box for each character that the font lacks: matplotlib would warn of every one."""
    return "".join(c if ord(c) in _drawn() else _BOX for c in printable(text))


@functools.cache
def _drawn() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont(FONT)).get_charmap())
