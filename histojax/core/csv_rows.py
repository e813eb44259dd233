"""CSV files with a header line, such as a user's list of slides or images."""

import csv
import os
from collections.abc import Iterator

from histojax.core.errors import RunError


def csv_rows(
    path: str | os.PathLike[str], content: str, *, errors: str = "strict"
) -> Iterator[tuple[str, dict[str, str]]]:
    """Read the rows of a CSV file in UTF-8 whose first line names the columns.

    Args:
      path: the file.
      content: what the file should hold, for messages, such as "list of slides".
      errors: how undecodable bytes are handled, as for `open`; "surrogateescape" keeps paths that are not UTF-8.

    Yields:
      The place of a row for messages ("FILE, line N") and its cells by column name; a missing cell is empty.

    Raises:
      RunError: the file cannot be read, repeats a column name, or has a row with more cells than columns.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig", errors=errors) as file:
            reader = csv.DictReader(file, restval="")
            columns = list(reader.fieldnames or [])
            if len(set(columns)) < len(columns):
                raise RunError(f"{os.fspath(path)}: column names repeat in {', '.join(columns)}; make each unique")
            for row in reader:
                place = f"{os.fspath(path)}, line {reader.line_num}"
                if None in row:  # csv collects surplus cells under None
                    raise RunError(f"{place}: more values than columns; put quotes around a path that has a comma")
                yield place, {str(name): str(cell) for name, cell in row.items()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{os.fspath(path)}: cannot be read as a {content} ({error})") from error
