"""The most stroma-rich field that has tumor at all four sides, by integral images over the grid of tiles."""

from typing import NamedTuple

import numpy as np

from histojax.evaluation.metrics import Array, divide

MIN_TISSUE = 0.5  # share of a field's cells that must be tissue tiles
STRIP = 4  # a border strip is this part of the field: a quarter of its side deep


class Field(NamedTuple):
    """A square of side × side cells of the grid, from its first row and column."""

    row: int
    column: int
    side: int

    def holds(self, rows: Array, columns: Array) -> Array:
        """Which grid positions (n,), (n,) lie in the field, (n,)."""
        row, column = rows - self.row, columns - self.column
        return (row >= 0) & (row < self.side) & (column >= 0) & (column < self.side)


def find_hot_spot(
    rows: Array, columns: Array, is_tumor: Array, tumor: Array, stroma: Array, side: int
) -> tuple[Field | None, str | None]:
    """The field with the greatest stroma percentage, or None and why there is none.

    `rows`, `columns`, `is_tumor`, areas `tumor` and `stroma` of the n > 0 tissue tiles, (n,); `side` of the field in
    cells. A field lies within the tiles' bounding box, at least half of its cells are tissue tiles, and each of
    its four border strips (north, east, south, west; a quarter of the side deep, at least a cell) has a tumor
    tile; a tile in a corner serves both its strips. Of equally rich fields: more tissue, then the northernmost,
    then the westernmost.
    """
    if side < 3:
        return None, f"the field is {side} tile(s) wide and needs three to have four sides: give a larger --hot_spot_um"
    top, left = int(rows.min()), int(columns.min())
    shape = int(rows.max()) - top + 1, int(columns.max()) - left + 1
    if min(shape) < side:
        return None, (
            f"the tissue spans {shape[0]} × {shape[1]} tiles and the field {side} × {side}: "
            "give a smaller --hot_spot_um"
        )

    def windows(values: Array, height: int, width: int) -> Array:
        grid = np.zeros(shape)
        grid[rows - top, columns - left] = values
        return _window_sums(grid, height, width)

    depth = max(1, side // STRIP)
    n_rows, n_columns = shape[0] - side + 1, shape[1] - side + 1
    far = side - depth
    lying, standing = windows(is_tumor, depth, side), windows(is_tumor, side, depth)
    sides = (
        lying[:n_rows], lying[far : far + n_rows], standing[:, :n_columns], standing[:, far : far + n_columns],
    )  # fmt: skip
    tissue = windows(np.ones(len(rows)), side, side)
    enough = tissue >= MIN_TISSUE * side * side
    tumor_sum, stroma_sum = windows(tumor, side, side), windows(stroma, side, side)
    # Integral images round in the last digits: equally rich fields must stay equal.
    share = np.round(divide(stroma_sum, tumor_sum + stroma_sum, undefined=0.0), 9)
    candidates = np.argwhere(enough & np.all([counts > 0 for counts in sides], axis=0))
    if not len(candidates):
        return None, (
            f"no field of {side} × {side} tiles has tumor tiles at its north, east, south and west and tissue on "
            f"{100 * MIN_TISSUE:g} % of it"
        )
    at = candidates[:, 0], candidates[:, 1]
    row, column = candidates[np.lexsort((at[1], at[0], -tissue[at], -share[at]))[0]]
    return Field(top + int(row), left + int(column), side), None


def _window_sums(grid: Array, height: int, width: int) -> Array:
    """Sum of every height × width window of a grid (h, w), (h − height + 1, w − width + 1)."""
    total = np.zeros((grid.shape[0] + 1, grid.shape[1] + 1))
    total[1:, 1:] = grid.cumsum(0).cumsum(1)
    return total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
