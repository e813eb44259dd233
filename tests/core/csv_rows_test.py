"""Rows of CSV files with a header: cells, places and errors."""

import pathlib

import pytest

from histojax.core.csv_rows import csv_rows
from histojax.core.errors import RunError


def test_rows_come_with_their_place_and_missing_cells_are_empty(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(b'\xef\xbb\xbfpath,label\n"a,\nb.png",x\nc.png\n')
    assert list(csv_rows(path, "list")) == [
        (f"{path}, line 3", {"path": "a,\nb.png", "label": "x"}),
        (f"{path}, line 4", {"path": "c.png", "label": ""}),
    ]


def test_undecodable_paths_pass_through_if_asked(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(b"path\n\xff.png\n")
    ((_, row),) = csv_rows(path, "list", errors="surrogateescape")
    assert row["path"].encode(errors="surrogateescape") == b"\xff.png"
    with pytest.raises(RunError, match=r"list\.csv: cannot be read as a list of slides"):
        list(csv_rows(path, "list of slides"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,a\n1,2\n", "column names repeat in a, a"), ("a,b\n1,2\n1,2,3\n", "line 3: more values than columns")],
)
def test_malformed_files_are_refused(tmp_path: pathlib.Path, text: str, message: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(RunError, match=message):
        list(csv_rows(path, "list"))


def test_a_missing_file_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        list(csv_rows(tmp_path / "absent.csv", "list"))
