"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'X'?)" for the closest known name; "" if none is close."""
    found = closest(name, known)
    return f" (did you mean '{found}'?)" if found else ""


def closest(name: str, known: Iterable[str]) -> str:
    """Return the known name that a misspelt one most likely means; "" if none is close.

    Initials count as close: lr is learning_rate.
    """
    known = list(known)
    initials = [other for other in known if "_" in other and "".join(part[:1] for part in other.split("_")) == name]
    return next(iter(initials or difflib.get_close_matches(name, known, n=1)), "")
