"""A table of tiles: `path`, a column of 0 and 1 for each label, and what is known of patient, slide and split."""

import csv
import difflib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow
import pyarrow.parquet

from data_pipelines.errors import DataError

SUFFIXES = (".csv", ".tsv", ".parquet")
SIDES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_OPTIONAL = ("patient_id", "slide_id", "source_id", "split")
_TRUTH = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def list_tables(root: pathlib.Path) -> list[pathlib.Path]:
    """The tables in a folder, not below it."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.name.lower().endswith(SUFFIXES) and not p.name.startswith("."))


def choose(root: pathlib.Path, name: str, tables: Sequence[pathlib.Path]) -> pathlib.Path:
    """The table to read: the one named, else the only one.

    Raises:
      DataError: none of that name, or several and no name.
    """
    if name:
        path = root / name
        if not path.is_file():
            raise DataError(f"{path}: no such file (data.tiles.table)")
        return path
    if len(tables) > 1:
        raise DataError(
            f"{root}: several tables ({', '.join(path.name for path in tables)}); choose with --config.data.tiles.table"
        )
    return tables[0]


def read(path: pathlib.Path, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The fields of an `Item` for each row, in the table's order; paths are relative to the table's folder.

    Raises:
      DataError: unreadable, a missing column, a cell that is neither 0 nor 1, a path that occurs twice.
    """
    lines = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path)
    header = next(lines)[1]
    doubled = {name for name in header if header.count(name) > 1}
    if doubled:
        raise DataError(f"{path}: the column {', '.join(sorted(doubled))} stands twice")
    missing = [name for name in ("path", *labels) if name not in header]
    if missing:
        close = difflib.get_close_matches(missing[0], header, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise DataError(
            f"{path}: no column {', '.join(missing)}{hint}; it has {', '.join(header)}. Expected are path and a column "
            "for each label, named by --config.data.tiles.labels=\"('a','b')\"; optional are " + ", ".join(_OPTIONAL)
        )
    rows: list[dict[str, Any]] = []
    seen: dict[pathlib.Path, str] = {}
    for where, cells in lines:
        if len(cells) != len(header):
            raise DataError(f"{path}, {where}: {len(cells)} cells where the header has {len(header)}")
        row = dict(zip(header, cells, strict=True))
        if not row["path"]:
            raise DataError(f"{path}, {where}, column path: empty")
        image = path.parent / row["path"]
        if image in seen:
            raise DataError(f"{path}, {where}, column path: '{row['path']}' stands in {seen[image]}, too")
        seen[image] = where
        rows.append(
            {
                "path": image,
                "labels": tuple(name for name in labels if _truth(path, where, name, row[name])),
                "given_split": _side(path, where, row.get("split", "")),
            }
            | {name: row.get(name, "") for name in _OPTIONAL[:3]}
        )
    if not rows:
        raise DataError(f"{path}: no row below the header")
    return rows


def _truth(path: pathlib.Path, where: str, column: str, cell: str) -> bool:
    if cell.lower() not in _TRUTH:
        raise DataError(
            f"{path}, {where}, column {column}: '{cell}' is neither 0 nor 1; of every tile every label must be known"
        )
    return _TRUTH[cell.lower()]


def _side(path: pathlib.Path, where: str, cell: str) -> str:
    if cell and cell.lower() not in SIDES:
        raise DataError(f"{path}, {where}, column split: '{cell}' is none of {', '.join(SIDES)}")
    return SIDES.get(cell.lower(), "")


def _csv_rows(path: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """Header and rows as text, each with its place; blank lines are left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets begin a file with a byte order mark
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: not readable as UTF-8 text ({error})") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    empty = True
    for cells in reader:
        if any(cell.strip() for cell in cells):
            empty = False
            yield f"line {reader.line_num}", [cell.strip() for cell in cells]
    if empty:
        raise DataError(f"{path}: empty")


def _parquet_rows(path: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    try:
        content = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as Parquet ({error})") from error
    yield "header", [str(name).strip() for name in content.column_names]
    for number, row in enumerate(content.to_pylist()):
        # A column of whole numbers with a gap comes as floats: 12.0 is the patient "12".
        cells = [
            str(int(v)) if isinstance(v, float) and v.is_integer() else "" if v is None else v for v in row.values()
        ]
        yield f"row {number}", [str(cell).strip() for cell in cells]
