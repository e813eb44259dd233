"""A table of tiles: `path`, a column of 0 and 1 per label, and optionally patient, slide, source and split."""

import pathlib
from collections.abc import Sequence
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.tables import path_in, read_side, read_table
from histojax.core.suggestions import did_you_mean

_GROUPS = ("patient_id", "slide_id", "source_id")
_OPTIONAL = (*_GROUPS, "split")
_LABEL_CELLS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def has_paths(path: pathlib.Path) -> bool:
    """Return whether a table can be read and has a column `path`: a run writes tables without one beside its data."""
    try:
        return "path" in read_table(path)[0]
    except DataError:
        return False


def read(path: pathlib.Path, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Read the fields of an `Item` from each row, in the table's order.

    Args:
      path: the table; the paths in it are relative to its folder.
      labels: names of the label columns.

    Raises:
      DataError: the table cannot be read, a column is missing, a label cell is neither 0 nor 1, or a path repeats.
    """
    header, lines = read_table(path)
    missing = [name for name in ("path", *labels) if name not in header]
    if missing:
        hint = did_you_mean(missing[0], header)
        raise DataError(
            f"{path}: no column {', '.join(missing)}{hint}; it has {', '.join(header)}. Required are path and a column "
            "per label, named by --config.data.tiles.labels=\"('a','b')\"; optional are " + ", ".join(_OPTIONAL)
        )
    rows: list[dict[str, Any]] = []
    seen: dict[pathlib.Path, str] = {}
    for place, row in lines:
        if not row["path"]:
            raise DataError(f"{place}, column path: empty")
        image = path_in(path.parent, row["path"])
        if image in seen:
            raise DataError(f"{place}, column path: '{row['path']}' is already in {seen[image]}")
        seen[image] = place
        rows.append(
            {
                "path": image,
                "labels": tuple(name for name in labels if _has_label(place, name, row[name])),
                "given_split": read_side(place, row.get("split", "")),
            }
            | {name: row.get(name, "") for name in _GROUPS}
        )
    if not rows:
        raise DataError(f"{path}: no row below the header")
    return rows


def _has_label(place: str, column: str, cell: str) -> bool:
    if cell.lower() not in _LABEL_CELLS:
        raise DataError(
            f"{place}, column {column}: '{cell}' is neither 0 nor 1; every label of every tile must be known"
        )
    return _LABEL_CELLS[cell.lower()]
