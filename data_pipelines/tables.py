"""Reading a user's table or list of images or slides: CSV, TSV or Parquet with a header."""

import csv
import dataclasses
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow
import pyarrow.parquet

from data_pipelines.errors import DataError
from histojax.core.csv_format import csv_format
from histojax.core.printable import printable

T = TypeVar("T", bound=Any)
SUFFIXES = (".csv", ".tsv", ".parquet")
# The side of a split that a cell, or a folder's name, means.
SIDES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def read_table(
    path: pathlib.Path, errors: str = "strict", *, pad: bool = False
) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    """Read a table whose first line names the columns.

    The delimiter of a text file is a comma, semicolon or tab, whichever is most frequent in the header. Cells are
    stripped of surrounding spaces, may hold line breaks in quotes, and empty lines are skipped.

    Args:
      path: a `.parquet` file, or a text file in UTF-8 or UTF-16.
      errors: how undecodable bytes are handled, as for `open`; "surrogateescape" keeps paths that are not UTF-8.
      pad: whether cells missing at the end of a row are empty, as in a list with optional columns, not an error.

    Returns:
      The column names, and the rows: the place for messages ("FILE, line N") and the cells by column name.

    Raises:
      DataError: the file cannot be read, is empty, or repeats a column name; while iterating, a row with another number
        of cells than the header, or with a zero byte.
    """
    lines = _parquet_lines(path) if path.suffix.lower() == ".parquet" else _text_lines(path, errors)
    name = printable(path)
    header = next(lines, ("", []))[1]
    if not header:
        raise DataError(f"{name}: empty")
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise DataError(f"{name}: column names repeat: {printable(', '.join(repeated))}; make each unique")
    return header, _rows(name, header, lines, pad)


def list_tables(root: pathlib.Path) -> list[pathlib.Path]:
    """Return the tables in a folder, without those in its subfolders."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.name.lower().endswith(SUFFIXES) and not p.name.startswith("."))


def choose_table(
    root: pathlib.Path,
    name: str,
    tables: Sequence[pathlib.Path],
    field: str,
    fits: Callable[[pathlib.Path], bool] = lambda _: True,
) -> pathlib.Path:
    """Return the table to read: the named one, else the only one, else the only one that fits.

    Args:
      root: the folder.
      name: file name below it; empty: none is named.
      tables: those in the folder.
      field: of the config, which names the table; for messages.
      fits: whether a table is of the kind that is looked for.

    Raises:
      DataError: no table has that name, or there are several tables and no name is given.
    """
    if name:
        path = root / name
        if not path.is_file():
            raise DataError(f"{path}: no such file ({field})")
        return path
    listing = list(filter(fits, tables)) if len(tables) > 1 else tables
    if len(listing) != 1:
        names = ", ".join(printable(path.name) for path in listing or tables)
        raise DataError(f"{printable(root)}: several tables ({names}); choose with --config.{field}")
    return listing[0]


def usable_sides(items: Iterable[T]) -> tuple[list[T], Counter[str]]:
    """Drop the field `given_split` of items unless it makes a split: every item has one, and train and test occur.

    Args:
      items: instances of a dataclass with that field.

    Returns:
      The items, and a note with the number of sides that are ignored.
    """
    items = list(items)
    sides = Counter(item.given_split for item in items)
    if sides["train"] and sides["test"] and not sides[""]:
        return items, Counter()
    given = sum(sides.values()) - sides[""]
    note = "image whose given side is ignored: a split needs train and test, and a side for every image"
    return [dataclasses.replace(item, given_split="") for item in items], Counter({note: given} if given else {})


def read_side(place: str, cell: str) -> str:
    """Return the side that a cell of the column `split` means: train, val, test, or "" for an empty cell.

    Raises:
      DataError: the cell means no side.
    """
    if cell and cell.lower() not in SIDES:
        raise DataError(
            f"{place}, column split: '{printable(cell)}' is not one of {', '.join(SIDES)}, or empty for no side"
        )
    return SIDES.get(cell.lower(), "")


def path_in(folder: pathlib.Path, cell: str) -> pathlib.Path:
    """Return the file that a cell names, relative to the table's folder or absolute, also if Windows wrote the cell."""
    for spelling in (cell, os.path.expanduser(cell), cell.replace("\\", "/")):
        if os.path.lexists(folder / spelling):
            return folder / spelling
    return folder / cell


def _rows(
    name: str, header: Sequence[str], lines: Iterator[tuple[str, list[str]]], pad: bool
) -> Iterator[tuple[str, dict[str, str]]]:
    for line, cells in lines:
        place = f"{name}, {line}"
        if pad:
            cells = [*cells, *[""] * (len(header) - len(cells))]
        if len(cells) != len(header):
            remedy = "; quote cells that contain the delimiter" if len(cells) > len(header) else ""
            raise DataError(f"{place}: {len(cells)} cells where the header has {len(header)}{remedy}")
        if "\0" in "".join(cells):
            raise DataError(f"{place}: contains a zero byte")
        yield place, dict(zip(header, cells, strict=True))


def _text_lines(path: pathlib.Path, errors: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the header and the rows as stripped cells, each with its line number."""
    try:
        found = csv_format(path)
        if found.encoding.startswith("utf-16"):
            errors = "strict"
        with open(path, newline="", encoding=found.encoding, errors=errors) as file:
            reader = csv.reader(file, delimiter=found.delimiter)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield f"line {reader.line_num}", [cell.strip() for cell in cells]
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({error.strerror or error})") from error
    except (UnicodeError, csv.Error) as error:
        raise DataError(
            f"{printable(path)}: cannot be read as UTF-8 text with cells ({error}); save it as CSV UTF-8"
        ) from error


def _parquet_lines(path: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the header and the rows as stripped cells, each with its row number."""
    try:
        content = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{printable(path)}: cannot be read as Parquet ({error})") from error
    yield "header", [str(name).strip() for name in content.column_names]
    for number, row in enumerate(content.to_pylist()):
        # An integer column with missing values is read as floats: 12.0 is the patient "12".
        cells = [
            str(int(v)) if isinstance(v, float) and v.is_integer() else "" if v is None else v for v in row.values()
        ]
        yield f"row {number}", [str(cell).strip() for cell in cells]
