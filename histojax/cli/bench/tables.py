"""What a benchmark found, as text."""

from collections.abc import Mapping
from typing import Any

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
_DISTURBING = 0.1  # cores


def table(result: Mapping[str, Any]) -> str:
    """A row for each contestant, then ours over each of the others, then the profile if there is one."""
    contestants = result["contestants"]
    cells = {name: {column: _cell(column, row) for column in _COLUMNS} for name, row in contestants.items()}
    columns = [column for column in _COLUMNS if any(cells[name][column] for name in cells)]
    first = max(len(name) for name in cells)
    widths = {column: max(len(column), *(len(row[column]) for row in cells.values())) for column in columns}
    lines = [" " * first + "".join(f"  {column:>{widths[column]}}" for column in columns)]
    lines += [
        f"{name:<{first}}" + "".join(f"  {row[column] or '-':>{widths[column]}}" for column in columns)
        for name, row in cells.items()
    ]
    ours = next(iter(contestants))
    for peer, ratio in result["ratios"].items():
        paired = "{median:.3f}, quartiles {q25:.3f} … {q75:.3f}".format(**ratio["paired"])
        lines.append(f"{ours} / {peer}: {ratio['of_medians']:.3f} of medians; of paired rounds {paired}")
    others = max((row["others"]["median"] for row in contestants.values() if "others" in row), default=0.0)
    if others > _DISTURBING:
        lines.append(f"DISTURBED: other programs kept {others:.2f} cores busy meanwhile; these are no figures to quote")
    if "share_of_copy" in contestants[ours]:
        rate, share = contestants[ours]["bytes_per_second"] / 1e9, contestants[ours]["share_of_copy"]
        lines.append(f"{ours}: its operations take and give {rate:.1f} GB/s, {share:.0%} of what copying does")
    if "fit" in result:
        words = "largest batch: {batch_size} images ({:.2f} GiB foretold of {:.2f} GiB; it ran and took {:.2f} GiB)"
        found = result["fit"]
        sizes = (found[key] / (1 << 30) for key in ("foretold_bytes", "limit_bytes", "peak_bytes"))
        lines.append(words.format(*sizes, batch_size=found["batch_size"]))
    if "profile" in result:
        lines += ["", f"trace in {result['profile']['folder']}", result["profile"]["table"]]
    return "\n".join(lines)


def _cell(column: str, row: Mapping[str, Any]) -> str:
    try:
        return _COLUMNS[column](row)
    except (KeyError, TypeError, ValueError):  # not measured, or not of this side
        return ""
