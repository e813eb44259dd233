"""Tables as text: the one layout of every table that the program prints, and numbers in their cells."""

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Lay out rows of cells in columns, two spaces apart.

    Args:
      rows: the cells, the header first; every row has the same number of cells.
      right: positions of the columns that are aligned to the right, such as numbers.

    Returns:
      One line per row, without trailing spaces.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        return "  ".join(cells).rstrip()

    return [line(row) for row in rows]


def byte_size(count: float) -> str:
    """Format a number of bytes with a unit, in powers of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
