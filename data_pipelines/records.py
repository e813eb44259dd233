"""The table of a prepared dataset: one row per image, without its pixels."""

import csv
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from data_pipelines.errors import DataError
from histojax.core.files import atomic_write

SPLIT = "full"  # the one split that TFDS stores; data_pipelines.splits divides it later


@dataclasses.dataclass(frozen=True)
class Record:
    """One image of a prepared dataset.

    Attributes:
      image_id: unique name.
      label: class name of the binary task; for multi-label tiles, the names of the tile's labels joined by "+" in
        the order of the labels, and empty for a tile without a label.
      subtype: class name of the finer task; empty if there is none.
      patient_id: what the dataset calls a patient (BreakHis: the slide folder); empty: unknown.
      case_id: the unit whose images certainly share tissue (BreakHis: the accession number without letters); empty:
        unknown.
      magnification: such as `100X`; empty: unknown.
      pixel_hash: equal for identical pixels.
      slide_id: the slide that a tile comes from; empty: unknown.
      source_id: the image that a tile was cut from, named by its content; empty: unknown.
      given_split: the side in the dataset's own table: train, val or test; empty: none.
      site: the hospital or scanner; empty: unknown.
      mpp: µm per pixel, as text; empty: unknown.
      further: cells of the user's table that mean nothing to the program, a JSON object by column; empty: none.
    """

    image_id: str
    label: str
    subtype: str
    patient_id: str
    case_id: str
    magnification: str
    pixel_hash: str
    slide_id: str = ""
    source_id: str = ""
    given_split: str = ""
    site: str = ""
    mpp: str = ""
    further: str = ""

    @property
    def identity(self) -> tuple[str, ...]:
        """What the hash of a dataset is made of; without a site, the same as before sites, `mpp` and `further`."""
        fields = dataclasses.astuple(self)[:_IDENTITY]
        return fields if self.site else fields[:-1]


def join_labels(labels: Iterable[str]) -> str:
    """Return the label names of one image as a record stores them."""
    return "+".join(labels)


def label_set(label: str) -> tuple[str, ...]:
    """Split a record's label into names: one for a single class, none for an empty label."""
    return tuple(label.split("+")) if label else ()


FIELDS = tuple(field.name for field in dataclasses.fields(Record))
_IDENTITY = FIELDS.index("mpp")


class Records:
    """An immutable sequence of records; its columns are numpy arrays of `str`."""

    def __init__(self, rows: Iterable[Record]):
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._rows)

    def __getitem__(self, index: int) -> Record:
        return self._rows[index]

    def column(self, name: str) -> np.ndarray:
        """Return the values of one field, `str [n]`."""
        return np.array([getattr(row, name) for row in self._rows], dtype=np.str_)

    def further_columns(self) -> dict[str, list[str]]:
        """Return what only some tables say: column -> the cell of each image, empty if it has none.

        These are `mpp`, if it is known of any image, and the further columns of the user's table as `table_NAME`. The
        prefix keeps them apart from the columns of results, whatever the user calls them.
        """
        mpp = [row.mpp for row in self._rows]
        rows = [json.loads(row.further or "{}") for row in self._rows]
        names = dict.fromkeys(name for row in rows for name in row)
        further = {f"table_{name}": [row.get(name, "") for row in rows] for name in names}
        return {"mpp": mpp, **further} if any(mpp) else further

    def take(self, indices: Iterable[int]) -> "Records":
        """Return the rows at these positions, in this order."""
        return Records(self._rows[int(i)] for i in indices)

    def write_csv(self, path: pathlib.Path) -> None:
        """Write the table, atomically."""
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(FIELDS)
            writer.writerows(dataclasses.astuple(row) for row in self._rows)

    @classmethod
    def read_csv(cls, path: pathlib.Path) -> "Records":
        """Read a table that `write_csv` wrote.

        Raises:
          DataError: the columns differ, a row has another length, or a cell is longer than CSV readers allow.
        """
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if tuple(header) != FIELDS:
                raise DataError(f"{path}: columns {header}, expected {list(FIELDS)}")
            rows = []
            try:
                for row in reader:
                    if len(row) != len(FIELDS):
                        raise DataError(f"{path}, line {reader.line_num}: {len(row)} cells, expected {len(FIELDS)}")
                    rows.append(Record(*row))
            except csv.Error as error:
                raise DataError(f"{path}, line {reader.line_num}: {error}") from error
            return cls(rows)
