"""The most stroma-rich field with tumor at all four sides, found with integral images over the tile grid."""

from typing import NamedTuple

import numpy as np

from histojax.evaluation.metrics import Array, divide

MIN_TISSUE = 0.5  # fraction of a field's cells that must be tissue tiles
STRIP = 4  # the depth of a border strip is a quarter of the field's side


class Field(NamedTuple):
    """A square of side × side grid cells, starting at its first row and column."""

    row: int
    column: int
    side: int

    def holds(self, rows: Array, columns: Array) -> Array:
        """Whether grid positions (n,), (n,) lie in the field: boolean (n,)."""
        row, column = rows - self.row, columns - self.column
        return (row >= 0) & (row < self.side) & (column >= 0) & (column < self.side)


def find_hot_spot(
    rows: Array, columns: Array, is_tumor: Array, tumor: Array, stroma: Array, side: int
) -> tuple[Field | None, str | None]:
    """Find the field with the highest stroma percentage.

    A field lies within the tiles' bounding box. At least half of its cells are tissue tiles. Each of its four border
    strips (north, east, south, west; a quarter of the side deep, at least one cell) has a tumor tile, and a corner tile
    counts for both its strips. Ties go to the field with more tissue, then to the northernmost, then the westernmost.

    Args:
      rows: grid rows of the n > 0 tissue tiles, (n,).
      columns: grid columns, (n,).
      is_tumor: whether each tile is tumor, (n,).
      tumor: tumor area of each tile, (n,).
      stroma: stroma area of each tile, (n,).
      side: side of the field in cells.

    Returns:
      The field or None, and the reason if there is none.
    """
    if side < 3:
        return (
            None,
            f"the field is {side} tile(s) wide but needs at least three to have four sides: increase --hot_spot_um",
        )
    top, left = int(rows.min()), int(columns.min())
    shape = int(rows.max()) - top + 1, int(columns.max()) - left + 1
    if min(shape) < side:
        return None, (
            f"the tissue spans only {shape[0]} × {shape[1]} tiles, the field {side} × {side}: decrease --hot_spot_um"
        )

    def windows(values: Array, height: int, width: int) -> Array:
        grid = np.zeros(shape)
        grid[rows - top, columns - left] = values
        return _window_sums(grid, height, width)

    depth = max(1, side // STRIP)
    n_rows, n_columns = shape[0] - side + 1, shape[1] - side + 1
    far = side - depth
    horizontal, vertical = windows(is_tumor, depth, side), windows(is_tumor, side, depth)
    sides = (
        horizontal[:n_rows], horizontal[far : far + n_rows],
        vertical[:, :n_columns], vertical[:, far : far + n_columns],
    )  # fmt: skip
    tissue = windows(np.ones(len(rows)), side, side)
    enough = tissue >= MIN_TISSUE * side * side
    tumor_sum, stroma_sum = windows(tumor, side, side), windows(stroma, side, side)
    # Integral images have rounding errors in the last digits; fields of equal richness must stay equal.
    share = np.round(divide(stroma_sum, tumor_sum + stroma_sum, undefined=0.0), 9)
    candidates = np.argwhere(enough & np.all([counts > 0 for counts in sides], axis=0))
    if not len(candidates):
        return None, (
            f"no field of {side} × {side} tiles has tumor tiles at its north, east, south and west sides and tissue on "
            f"{100 * MIN_TISSUE:g} % of its area"
        )
    at = candidates[:, 0], candidates[:, 1]
    row, column = candidates[np.lexsort((at[1], at[0], -tissue[at], -share[at]))[0]]
    return Field(top + int(row), left + int(column), side), None


def _window_sums(grid: Array, height: int, width: int) -> Array:
    """The sum of every height × width window of a grid (h, w): (h − height + 1, w − width + 1)."""
    total = np.zeros((grid.shape[0] + 1, grid.shape[1] + 1))
    total[1:, 1:] = grid.cumsum(0).cumsum(1)
    return total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
