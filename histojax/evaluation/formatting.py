"""Numbers as text: the one format of metrics and their intervals in tables, pages, cards and plots."""

from collections.abc import Mapping


def number(value: float | None, digits: int = 3, undefined: str = "nan") -> str:
    """Format a number with a fixed count of decimals, never as "-0.000"; None gives `undefined`."""
    return undefined if value is None else f"{value:z.{digits}f}"


def interval(estimate: Mapping[str, float | None], digits: int = 3) -> str:
    """Format the interval of an estimate as `[low, high]`; empty where it has none."""
    low, high = estimate.get("low"), estimate.get("high")
    return "" if low is None or high is None else f"[{low:z.{digits}f}, {high:z.{digits}f}]"


def with_interval(estimate: Mapping[str, float | None], digits: int = 3, undefined: str = "nan") -> str:
    """Format an estimate as `value [low, high]`, without brackets where it has no interval."""
    if estimate["value"] is None:
        return undefined
    return f"{number(estimate['value'], digits)} {interval(estimate, digits)}".rstrip()
