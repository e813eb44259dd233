"""What something was made with, against what is asked for now."""

from collections.abc import Mapping
from typing import Any


def diff_settings(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """Of each name whose values differ, by name, a line that says so; a name may be on one side only."""
    return {
        key: f"  {key}: {there.get(key, 'absent')!r} there, {here.get(key, 'absent')!r} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    }
