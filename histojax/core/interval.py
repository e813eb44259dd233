"""Intervals of legal numbers, written as in mathematics: "[0, 1)" includes 0 and excludes 1."""

import math
import re

_INTERVAL = re.compile(r"([\[(])(\S+), (\S+)([\])])")


def contains(interval: str, number: float) -> bool:
    """Return whether a number lies in an interval."""
    left, low, high, right = parse(interval)
    return (number > low if left == "(" else number >= low) and (number < high if right == ")" else number <= high)


def describe(interval: str) -> str:
    """Return what a number in an interval is, for messages: "at least 1", "above 0", "in [0, 1)"."""
    left, low, high, _ = parse(interval)
    if high < math.inf:
        return f"in {interval}"
    return f"above {low:g}" if left == "(" else f"at least {low:g}"


def parse(interval: str) -> tuple[str, float, float, str]:
    """Return the left bracket, the two bounds and the right bracket of an interval.

    Raises:
      ValueError: the text is not an interval.
    """
    match = _INTERVAL.fullmatch(interval)
    if match is None:
        raise ValueError(f"'{interval}' is not an interval such as '[0, 1)'")
    left, low, high, right = match.groups()
    return left, float(low), float(high), right
