"""Comparison of saved settings with the current ones, and their hash."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def diff_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, str]:
    """Return a line for each setting whose values differ, by name; a setting may be absent on one side."""
    return {
        key: f"  {key}: saved {saved.get(key, 'absent')!r}, now {current.get(key, 'absent')!r}"
        for key in sorted(saved.keys() | current.keys())
        if saved.get(key) != current.get(key)
    }


def config_hash(config: Mapping[str, Any]) -> str:
    """Return sixteen hexadecimal digits that identify a config, given as JSON values."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
