"""Text in images: one font on every machine, and boxes for the characters that it lacks."""

import functools

from matplotlib import font_manager

FONT = "DejaVu Sans"  # comes with matplotlib
_BOX = "\N{WHITE SQUARE}"
_EM = 100.0  # pixels of the size in which widths are measured


def printable(text: str) -> str:
    """Replace each control character by a box: XML cannot encode it and an image cannot show it."""
    return "".join(c if c.isprintable() else _BOX for c in text)


def drawable(text: str) -> str:
    """Replace each character that the font lacks by a box: matplotlib would warn about each one."""
    return "".join(c if ord(c) in _drawn() else _BOX for c in printable(text))


def wrap(text: str, inches: float, points: float) -> list[str]:
    """Break a text into lines that are no wider than `inches` in a font of `points`, at spaces where possible.

    Characters that cannot be drawn become boxes.
    """
    lines = [""]
    for word in drawable(text).split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if _width(joined, points) <= inches:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for character in word:
            if lines[-1] and _width(lines[-1] + character, points) > inches:
                lines.append("")
            lines[-1] += character
    return lines


def _width(text: str, points: float) -> float:
    """Width of drawable text in inches, at most: hinting widens a small font by up to 3 %."""
    return 1.03 * sum(map(_advance, text)) * points / 72


@functools.cache
def _advance(character: str) -> float:
    """Width of a character, as a fraction of the font's size."""
    font = font_manager.get_font(font_manager.findfont(FONT))
    font.set_size(_EM, 72)
    return float(font.load_char(ord(character)).linearHoriAdvance / 2**16 / _EM)


@functools.cache
def _drawn() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont(FONT)).get_charmap())
