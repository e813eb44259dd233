"""Results in the pages: tables and figures from the files of `benchmarks/results`.

A page shows a table between `<!-- results: NAME -->` and `<!-- end -->`. NAME is a file of `benchmarks/results`, or
NAME/TABLE where that file has several tables. One figure inside a sentence stands between
`<!-- value: NAME.ROW.KEY:FORMAT -->` and `<!-- end -->`, never at the start of a line: there GitHub would end the
paragraph. `docs/generate.py` rewrites what stands between the markers.

A file has `rows`, the measurements by name, and `tables`, each with its `columns`: the heading and a template of the
cell, such as `"accuracy": "{accuracy:.3f}"`. A template names keys of the row, or NAME.ROW.KEY of any file.
"""

import json
import pathlib
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.record_results import FOLDER
from histojax.evaluation import formatting

ROOT = pathlib.Path(__file__).parent.parent
# A pair of markers with what it shows: a table on lines of its own, or a figure.
BLOCK = re.compile(r"(<!-- results: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
VALUE = re.compile(r"(<!-- value: (\S+) -->)(.*?)(<!-- end -->)", re.DOTALL)


class Results(string.Formatter):
    """The results files of a folder, and their tables and figures as Markdown.

    Attributes:
      files: content of each file by its name without the suffix.
      used: names of the files whose rows were shown so far.

    Args:
      folder: folder of the results files.
    """

    def __init__(self, folder: pathlib.Path = FOLDER):
        self.files: dict[str, dict[str, Any]] = {
            path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))
        }
        self.used: set[str] = set()

    def fill(self, text: str) -> str:
        """Return the text of a page with its tables and figures as the files state them.

        Raises:
          ValueError: a marker begins a line, or names a file, table, row or key that does not exist.
        """
        if leading := re.search(r"^[ *>-]*<!-- value: (\S+) -->", text, re.MULTILINE):
            raise ValueError(f"value: {leading[1]}: put a word before the marker; GitHub ends the paragraph there")
        text = BLOCK.sub(lambda found: found[1] + "\n" + "\n".join(self.table(found[2])) + "\n\n" + found[4], text)
        return VALUE.sub(lambda found: found[1] + self.text(f"{{{found[2]}}}") + found[4], text)

    def table(self, name: str) -> list[str]:
        """Return the lines of the table `NAME` or `NAME/TABLE`, and below it the file that it comes from."""
        file, _, chosen = name.partition("/")
        if file not in self.files:
            raise ValueError(f"results: {name}: there is no {file}.json in {FOLDER}")
        content = self.files[file]
        tables = content["tables"]
        if chosen not in tables and (chosen or len(tables) != 1):
            raise ValueError(f"results: {name}: name one of its tables, such as {file}/{next(iter(tables))}")
        table = tables[chosen] if chosen else next(iter(tables.values()))
        self.used.add(file)
        rows = {row: content["rows"][row] for row in table.get("rows", content["rows"])}
        cells = [[self._cell(f"{file}.{row}", template) for template in table["columns"].values()] for row in rows]
        lines = markdown_table(list(table["columns"]), cells)
        return [*lines, "", f"Source: `benchmarks/results/{file}.json`."] if "provenance" in content else lines

    def text(self, template: str, row: Mapping[str, Any] | None = None) -> str:
        """Fill a template with figures of a row, or of any file."""
        return self.vformat(template, (), {"row": row or {}})

    def _cell(self, row: str, template: str) -> str:
        """Fill the template of a cell; empty where one of its figures is null."""
        file, name = row.split(".")
        try:
            return self.text(template, self.files[file]["rows"][name])
        except _NullError:
            return ""
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{file}.json: row '{name}', cell '{template}': {error}") from error

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        """Return the figure that a template names: `KEY.KEY` of its row, or `NAME.ROW.KEY`."""
        row, (first, *rest) = kwargs["row"], field_name.split(".")
        if first in row:
            node = row[first]
        elif first in self.files and rest:
            node = self.files[first]["rows"]
            self.used.add(first)
        else:
            raise ValueError(f"'{field_name}' is neither a key of the row nor NAME.ROW.KEY of a results file")
        for key in rest:
            if node is None:
                raise _NullError
            if key not in node:
                raise ValueError(f"'{field_name}': there is no '{key}'; known: {', '.join(node)}")
            node = node[key]
        if isinstance(node, str):
            node = self.vformat(node, args, kwargs)
        return node, first

    def format_field(self, value: Any, format_spec: str) -> str:
        """Format a figure: a number, an estimate with its interval, a mean with its sd, a median with its quartiles."""
        if value is None:
            raise _NullError
        if isinstance(value, str):
            return value
        if not isinstance(value, Mapping):
            return _number(value, format_spec)
        note = f" {value['note']}" if "note" in value else ""
        if "sd" in value:
            sd = "" if value["sd"] is None else f" ± {_number(value['sd'], format_spec)}"
            return _number(value["mean"], format_spec) + sd + note
        if "median" in value:
            median, q25, q75 = (_number(value[key], format_spec) for key in ("median", "q25", "q75"))
            return f"{median} ({q25} … {q75})" + note
        digits = int(format_spec.removeprefix(".").removesuffix("f"))
        return formatting.with_interval(value, digits) + note


class _NullError(Exception):
    """A template names a figure that is null."""


def _number(value: float, spec: str) -> str:
    """Format a number; powers of ten without a leading zero, and a space before %."""
    return re.sub(r"e([+-])0", r"e\1", format(value, spec)).replace("e+", "e").replace("%", " %")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lay out a table in Markdown."""
    cells = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(row)} |".replace("|  |", "| |").replace("|  |", "| |") for row in cells]


def pages() -> dict[pathlib.Path, str]:
    """Return the text of every page that shows results, by path."""
    results = Results()
    return {path: results.fill(text) for path, text in marked_pages()}


def marked_pages() -> Iterator[tuple[pathlib.Path, str]]:
    """Yield path and committed text of the pages with markers."""
    folders = (ROOT / "docs", ROOT / "launch", ROOT / "benchmarks")
    for path in [ROOT / "README.md", *(page for folder in folders for page in sorted(folder.rglob("*.md")))]:
        text = path.read_text(encoding="utf-8")
        if "<!-- results: " in text or "<!-- value: " in text:
            yield path, text
