"""The table of a prepared dataset: a row an image, without its pixels."""

import csv
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from data_pipelines.errors import DataError
from histojax.core.files import atomic_write

SPLIT = "full"  # what TFDS stores; who trains on what is decided later, by data_pipelines.splits


@dataclasses.dataclass(frozen=True)
class Record:
    """One image of a prepared dataset.

    Attributes:
      image_id: unique name.
      label: class name of the binary task; of tiles with several labels the names of those that are there, joined
        by "+" in the order of the labels, and empty for none.
      subtype: class name of the finer task; empty where there is none.
      patient_id: what the dataset calls a patient (BreakHis: the slide folder); empty: unknown.
      case_id: the unit that certainly shares tissue (BreakHis: the accession number without letters); empty: unknown.
      magnification: such as `100X`; empty: unknown.
      pixel_hash: equal for identical pixels.
      slide_id: the slide that a tile is from; empty: unknown.
      source_id: the image that a tile was cut from, named by its content; empty: unknown.
      given_split: the side that the dataset's own table gives: train, val or test; empty: none.
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


def join_labels(labels: Iterable[str]) -> str:
    """The names of the labels of one image as a record holds them."""
    return "+".join(labels)


def label_set(label: str) -> tuple[str, ...]:
    """The names in a record's label: of a single class itself, of none nothing."""
    return tuple(label.split("+")) if label else ()


FIELDS = tuple(field.name for field in dataclasses.fields(Record))


class Records:
    """An immutable sequence of records with columns as numpy arrays of `str`."""

    def __init__(self, rows: Iterable[Record]):
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._rows)

    def __getitem__(self, index: int) -> Record:
        return self._rows[index]

    def column(self, name: str) -> np.ndarray:
        """The values of one field, `str [n]`."""
        return np.array([getattr(row, name) for row in self._rows], dtype=np.str_)

    def take(self, indices: Iterable[int]) -> "Records":
        """The rows at these positions, in this order."""
        return Records(self._rows[int(i)] for i in indices)

    def write_csv(self, path: pathlib.Path) -> None:
        """Writes the table, to a temporary name first."""
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(FIELDS)
            writer.writerows(dataclasses.astuple(row) for row in self._rows)

    @classmethod
    def read_csv(cls, path: pathlib.Path) -> "Records":
        """Reads what `write_csv` wrote.

        Raises:
          DataError: other columns, or a row of another length.
        """
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if tuple(header) != FIELDS:
                raise DataError(f"{path}: columns {header}, expected {list(FIELDS)}")
            rows = []
            for row in reader:
                if len(row) != len(FIELDS):
                    raise DataError(f"{path}, line {reader.line_num}: {len(row)} cells, expected {len(FIELDS)}")
                rows.append(Record(*row))
            return cls(rows)
