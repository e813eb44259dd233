"""Benchmark results as text."""

from collections.abc import Mapping
from typing import Any

from histojax.core.text_table import text_table

_COLUMNS = {
    "images/s": lambda row: f"{row['images_per_second']['median']:.4g}",
    "quartiles": lambda row: "{q25:.4g} … {q75:.4g}".format(**row["images_per_second"]),
    "ms": lambda row: f"{row['seconds']['median'] * 1e3:.1f}",
    "cores": lambda row: f"{row['cores']['median']:.2f}",
    "GFLOP/s": lambda row: f"{row['flops_per_second'] / 1e9:.1f}",
    "of matmul": lambda row: f"{row['share_of_matmul']:.0%}",
    "matmul GFLOP/s": lambda row: f"{row['matmul_flops_per_second'] / 1e9:.0f}",
    "copy GB/s": lambda row: f"{row['copy_bytes_per_second'] / 1e9:.1f}",
    "memory GiB": lambda row: f"{row['memory_bytes'] / (1 << 30):.2f}",
    "start s": lambda row: f"{row['start_seconds']:.1f}",
    "cold s": lambda row: f"{row['cold_start_seconds']:.1f}",
    "compile s": lambda row: f"{row['compile_seconds']:.1f}",
}
_DISTURBED = 0.1  # cores kept busy by other programs


def table(result: Mapping[str, Any]) -> str:
    """Format a row per side, then the ratios to each peer, then the largest batch and the profile if measured."""
    sides = result["contestants"]
    columns = [column for column in _COLUMNS if any(_cell(column, row) for row in sides.values())]
    rows = [[name, *(_cell(column, row) or "-" for column in columns)] for name, row in sides.items()]
    lines = text_table([["", *columns], *rows], right=range(1, len(columns) + 1))
    ours = next(iter(sides))
    for peer, ratio in result["ratios"].items():
        paired = "{median:.3f}, quartiles {q25:.3f} … {q75:.3f}".format(**ratio["paired"])
        lines.append(f"{ours} / {peer}: {ratio['of_medians']:.3f} of medians; of paired rounds {paired}")
    others = max((row["others"]["median"] for row in sides.values() if "others" in row), default=0.0)
    if others > _DISTURBED:
        lines.append(f"DISTURBED: other programs kept {others:.2f} cores busy meanwhile; do not quote these figures")
    if "share_of_copy" in sides[ours]:
        rate, share = sides[ours]["bytes_per_second"] / 1e9, sides[ours]["share_of_copy"]
        lines.append(f"{ours}: its operations read and write {rate:.1f} GB/s, {share:.0%} of the speed of copying")
    if "fit" in result:
        keys = ("foretold_bytes", "limit_bytes", "peak_bytes")
        predicted, limit, peak = (f"{result['fit'][key] / (1 << 30):.2f} GiB" for key in keys)
        size = result["fit"]["batch_size"]
        lines.append(f"largest batch: {size} images (predicted: {predicted} of {limit}; measured in a run: {peak})")
    if "profile" in result:
        lines += ["", f"trace in {result['profile']['folder']}", result["profile"]["table"]]
    return "\n".join(lines)


def _cell(column: str, row: Mapping[str, Any]) -> str:
    try:
        return _COLUMNS[column](row)
    except (KeyError, TypeError, ValueError):  # not measured, or not on this side
        return ""
