"""Files that divide a dataset: tables, JSON of other programs, and BreakHis's published folds."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.official_folds import read_folds
from data_pipelines.tables import SIDES, read_side, read_table
from histojax.core.printable import printable

NAME_COLUMNS = ("image_id", "path", "image", "image_path", "filename", "file_name", "file", "name")
_LISTS = ("images", "image_ids", "paths", "files", "filenames", "names")  # where JSON lists the images of a side
_FOLD_FILE = re.compile(r"dsfold([1-5])\.txt")
_FOLDS = range(1, 6)
_JSON_FORMS = (
    'expected {"train": [NAME, …], "test": […]}, {"train": {"images": [NAME, …]}, …}, {NAME: SIDE, …}, '
    '[{"image": NAME, "split": SIDE}, …], or several of these by name'
)


@dataclasses.dataclass(frozen=True)
class SplitRow:
    """One image of a split.

    Attributes:
      place: where it is written, for messages: "FILE, line N".
      name: the image's name or path.
      side: train, val or test; empty: on no side.
      patient_id: empty: not in the file.
      case_id: empty: not in the file.
    """

    place: str
    name: str
    side: str
    patient_id: str = ""
    case_id: str = ""


def read(path: pathlib.Path) -> dict[str, list[SplitRow]]:
    """Read a file with one or several splits.

    Args:
      path: a table (.csv, .tsv, .parquet) with a name of `NAME_COLUMNS` and `split`; a .json file; `dsfoldN.txt`; or a
        folder with such fold files.

    Returns:
      The splits by name: the file's name, or the names that tell its splits apart. An image may have several rows.

    Raises:
      DataError: the file cannot be read, or has another form.
    """
    if path.is_dir():
        present = [fold for fold in _FOLDS if (path / f"dsfold{fold}.txt").is_file()] or [_FOLDS[0]]
        return {f"fold {fold}": _fold_rows(path, fold) for fold in present}
    if match := _FOLD_FILE.fullmatch(path.name):
        return {f"fold {match[1]}": _fold_rows(path.parent, int(match[1]))}
    if path.suffix.lower() == ".json":
        return _read_json(path)
    rows = list(_table_rows(path))
    if not rows:
        raise DataError(f"{printable(path)}: no row below the header")
    return {printable(path.name): rows}


def _fold_rows(folder: pathlib.Path, fold: int) -> list[SplitRow]:
    place = printable(folder / f"dsfold{fold}.txt")
    return [SplitRow(place, name, side) for name, side in read_folds(folder, fold).items()]


def _table_rows(path: pathlib.Path) -> Iterator[SplitRow]:
    for place, row in read_table(path, errors="surrogateescape")[1]:
        yield _row_of(place, row)


def _row_of(place: str, row: Mapping[str, str]) -> SplitRow:
    """Read one row of a table or one record of a JSON file.

    Raises:
      DataError: no name, or no or an unknown side.
    """
    name = next((row[column] for column in NAME_COLUMNS if row.get(column)), "")
    if not name or "split" not in row:
        raise DataError(f"{place}: a split needs the columns image_id (or path) and split, with a name in each row")
    known = [printable(row.get(column, "")) for column in ("patient_id", "case_id")]
    return SplitRow(place, name, read_side(place, row["split"]), *known)


def _read_json(path: pathlib.Path) -> dict[str, list[SplitRow]]:
    shown = printable(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{shown}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise DataError(f"{shown}: not JSON in UTF-8 ({error})") from error
    if rows := _json_rows(shown, content):
        return {printable(path.name): rows}
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    splits: dict[str, list[SplitRow]] = {}
    for key, value in parts:
        if rows := _json_rows(f"{shown}, {printable(str(key))}", value):
            splits[printable(str(key)) if isinstance(key, str) else f"split {key}"] = rows
        elif isinstance(value, dict | list):  # {"splits": [{"train": …}, …]}
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            found = {f"{key} {name}": _json_rows(f"{shown}, {key}, {name}", one) for name, one in inner}
            splits |= {printable(name): rows for name, rows in found.items() if rows}
    if not splits:
        raise DataError(f"{shown}: no split in this JSON; {_JSON_FORMS}")
    return splits


def _json_rows(place: str, content: Any) -> list[SplitRow]:
    """Read one split; empty if the value is none."""
    if isinstance(content, list) and content and all(isinstance(one, dict) and "split" in one for one in content):
        records = [{key: "" if cell is None else str(cell) for key, cell in one.items()} for one in content]
        return [_row_of(f"{place}, entry {number}", record) for number, record in enumerate(records)]
    if not isinstance(content, dict) or not content:
        return []
    sides = {key: SIDES[key.lower()] for key in content if key.lower() in SIDES}
    if len(sides) >= 2:
        return [
            SplitRow(f"{place}, {key}", name, side) for key, side in sides.items() for name in _names_in(content[key])
        ]
    if all(isinstance(side, str) and side.lower() in SIDES for side in content.values()):
        return [SplitRow(place, name, SIDES[side.lower()]) for name, side in content.items()]
    return []


def _names_in(value: Any) -> list[str]:
    """Return the names in the value of one side: a list of names or records, or a dict that holds one."""
    if isinstance(value, dict):
        value = next((value[key] for key in _LISTS if key in value), list(value))
    names = []
    for one in value if isinstance(value, list) else ():
        if isinstance(one, dict):
            one = next((one[column] for column in NAME_COLUMNS if one.get(column)), None)
        if isinstance(one, str) and one:
            names.append(one)
    return names
