"""The table of a slide's tiles on disk: CSV for people and for tools that read WSInfer's tables, and Parquet."""

import os
import pathlib

import numpy as np
import pandas as pd
import pyarrow

from histojax.core.errors import RunError
from histojax.core.files import atomic_write
from histojax.slides.labels import PREFIX

BOX = ("minx", "miny", "width", "height")
POSITION = ("row", "column")
_TISSUE = "tissue"


class TileTableError(RunError):
    """A malformed tile table; the message names the file, the column and the remedy."""


def write(table: pd.DataFrame, folder: str | os.PathLike[str]) -> tuple[pathlib.Path, pathlib.Path]:
    """Write `tiles.csv` and `tiles.parquet` into `folder`, each atomically.

    WSInfer's columns come first, `minx, miny, width, height, prob_<label>…`, then `row, column, tissue` and the rest.
    Parquet keeps every bit of the numbers, CSV seven digits.

    Args:
      table: one row per tile, with the columns above.
      folder: an existing folder.

    Returns:
      The paths of the CSV and the Parquet file.

    Raises:
      TileTableError: a column is missing or holds an invalid number.
    """
    csv, parquet = (pathlib.Path(folder) / f"tiles.{suffix}" for suffix in ("csv", "parquet"))
    table = _validated(table, "the tile table")
    first = [*BOX, *(name for name in table.columns if name.startswith(PREFIX)), *POSITION, _TISSUE]
    table = table[first + [name for name in table.columns if name not in first]]
    with atomic_write(parquet) as temporary:
        table.to_parquet(temporary, index=False)
    with atomic_write(csv) as temporary:
        table.to_csv(temporary, index=False, float_format="%.7g", lineterminator="\n")
    return csv, parquet


def read(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a table from either file that `write` wrote, sorted by row, then column.

    Raises:
      TileTableError: the file cannot be read, a column is missing, a box is not in whole pixels, or a tissue fraction
        or probability is outside 0 … 1.
    """
    path = pathlib.Path(path)
    try:
        table = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else pd.read_csv(path)
    # ParserError and UnicodeDecodeError are ValueErrors.
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise TileTableError(f"{path}: cannot be read as a tile table ({error})") from error
    return _validated(table, str(path)).sort_values(list(POSITION), ignore_index=True)


def _validated(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """A copy of the table with integers and floats in the required columns; `where` names it in messages."""
    table = table.rename(columns=str)
    missing = [name for name in (*BOX, *POSITION, _TISSUE) if name not in table.columns]
    if missing:
        raise TileTableError(
            f"{where}: missing columns {', '.join(missing)}; present are {', '.join(table.columns)}. "
            "Use a tiles.csv or tiles.parquet written by `histojax slide`"
        )
    for name in table.columns:
        if name in (*BOX, *POSITION):
            table[name] = _integers(table[name], where)
        elif name == _TISSUE or name.startswith(PREFIX):
            numbers = _numbers(table[name], where)
            if not ((numbers >= 0) & (numbers <= 1)).all():
                raise TileTableError(f"{where}, column {name}: a value is outside 0 … 1")
    return table


def _numbers(column: pd.Series, where: str) -> np.ndarray:
    try:
        return column.to_numpy(np.float64)
    except (ValueError, TypeError) as error:
        raise TileTableError(f"{where}, column {column.name}: a value is not a number ({error})") from None


def _integers(column: pd.Series, where: str) -> np.ndarray:
    numbers = _numbers(column, where)
    if not (np.isfinite(numbers) & (numbers == np.round(numbers))).all():
        raise TileTableError(f"{where}, column {column.name}: a value is not an integer")
    return numbers.astype(np.int64)
