"""The table of a slide's tiles on disk, as CSV (for people, and for what reads WSInfer's tables) and as Parquet."""

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
    """A table that is no table of tiles; the message names the file, the column and the remedy."""


def write(table: pd.DataFrame, folder: str | os.PathLike[str]) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes `tiles.csv` and `tiles.parquet` into `folder`, each whole or not at all; returns both paths.

    The columns are WSInfer's first, `minx, miny, width, height, prob_<label>…`, then `row, column, tissue` and
    whatever else there is. Parquet keeps the numbers to the last bit, CSV seven digits of them. Raises TileTableError
    where `table` lacks a column or holds numbers that mean nothing.
    """
    csv, parquet = (pathlib.Path(folder) / f"tiles.{suffix}" for suffix in ("csv", "parquet"))
    table = _checked(table, "this table")
    first = [*BOX, *(name for name in table.columns if name.startswith(PREFIX)), *POSITION, _TISSUE]
    table = table[first + [name for name in table.columns if name not in first]]
    with atomic_write(parquet) as temporary:
        table.to_parquet(temporary, index=False)
    with atomic_write(csv) as temporary:
        table.to_csv(temporary, index=False, float_format="%.7g", lineterminator="\n")
    return csv, parquet


def read(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The table that `write` wrote, from either of its files, sorted by row, then column.

    Raises:
      TileTableError: unreadable, a missing column, a box that is not whole pixels, a share or a probability outside
        0 … 1.
    """
    path = pathlib.Path(path)
    try:
        table = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else pd.read_csv(path)
    # ParserError and UnicodeDecodeError are ValueErrors.
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise TileTableError(f"{path}: not readable as a table of tiles ({error})") from error
    return _checked(table, str(path)).sort_values(list(POSITION), ignore_index=True)


def _checked(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """The table with whole numbers and floats in the columns that it must have."""
    table = table.rename(columns=str)
    missing = [name for name in (*BOX, *POSITION, _TISSUE) if name not in table.columns]
    if missing:
        raise TileTableError(
            f"{where}: no column {', '.join(missing)}; it has {', '.join(table.columns)}. Expected is a tiles.csv or "
            "tiles.parquet of `histojax slide`"
        )
    for name in table.columns:
        if name in (*BOX, *POSITION):
            table[name] = _whole(table[name], where)
        elif name == _TISSUE or name.startswith(PREFIX):
            numbers = _numbers(table[name], where)
            if not ((numbers >= 0) & (numbers <= 1)).all():
                raise TileTableError(f"{where}, column {name}: a value is not in 0 … 1")
    return table


def _numbers(column: pd.Series, where: str) -> np.ndarray:
    try:
        return column.to_numpy(np.float64)
    except (ValueError, TypeError) as error:
        raise TileTableError(f"{where}, column {column.name}: not all are numbers ({error})") from None


def _whole(column: pd.Series, where: str) -> np.ndarray:
    numbers = _numbers(column, where)
    if not (np.isfinite(numbers) & (numbers == np.round(numbers))).all():
        raise TileTableError(f"{where}, column {column.name}: a value is no whole number")
    return numbers.astype(np.int64)
