"""CSV files: the encoding and delimiter of one that another program wrote, and the quotes of ours."""

import codecs
import csv
import dataclasses
import io
import pathlib
from collections.abc import Iterable
from typing import Literal

_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_DELIMITERS = ",;\t"
_START_BYTES = 1 << 16  # read to find the header


@dataclasses.dataclass(frozen=True)
class CsvFormat:
    """How to open a CSV file.

    Attributes:
      encoding: as for `open`; UTF-8 unless the file is UTF-16.
      delimiter: comma, semicolon or tab.
    """

    encoding: str
    delimiter: str


def csv_format(path: pathlib.Path) -> CsvFormat:
    """Detect the format from the first bytes: a byte order mark, else zero bytes (UTF-16); the header's delimiter.

    The delimiter is the most frequent one in the header outside quotes.

    Raises:
      OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(_START_BYTES)
    encoding = "utf-16" if start.startswith(_MARKS) else _without_mark(start)
    text = io.StringIO(start.decode(encoding, "replace"), newline=None)
    unquoted = "".join(text.readline().split('"')[::2])
    return CsvFormat(encoding, max(_DELIMITERS, key=unquoted.count))


def csv_quoting(texts: Iterable[object]) -> Literal[0, 2]:
    """Return the quoting with which cells can be read again whose lines end with a line feed.

    The csv module then leaves a lone carriage return unquoted, which readers take for the end of a row.
    """
    return csv.QUOTE_NONNUMERIC if any("\r" in text for text in texts if isinstance(text, str)) else csv.QUOTE_MINIMAL


def _without_mark(start: bytes) -> str:
    """Return the encoding of a file without a byte order mark of UTF-16, by the place of the zeros in ASCII letters."""
    if start[1:2] == b"\0" and start[:1] != b"\0":
        return "utf-16-le"
    if start[:1] == b"\0" and start[1:2] != b"\0":
        return "utf-16-be"
    return "utf-8-sig"  # spreadsheets start a file with a byte order mark
