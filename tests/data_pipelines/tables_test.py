"""Tables and lists of a user: cells, places and errors."""

import pathlib

import pytest

from data_pipelines.errors import DataError
from data_pipelines.tables import read_table


def test_rows_come_with_their_place_and_missing_cells_are_empty_if_asked(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(b'\xef\xbb\xbfpath,label\n"a,\nb.png",x\nc.png\n')
    columns, rows = read_table(path, pad=True)
    assert columns == ["path", "label"]
    assert list(rows) == [
        (f"{path}, line 3", {"path": "a,\nb.png", "label": "x"}),
        (f"{path}, line 4", {"path": "c.png", "label": ""}),
    ]
    with pytest.raises(DataError, match=r"line 4: 1 cells where the header has 2$"):
        list(read_table(path)[1])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_that_of_the_header(tmp_path: pathlib.Path, delimiter: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f"slide{delimiter}mpp\n\n a.svs {delimiter} 0.5\n")
    assert list(read_table(path)[1]) == [(f"{path}, line 3", {"slide": "a.svs", "mpp": "0.5"})]


def test_undecodable_paths_pass_through_if_asked(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(b"path\n\xff.png\n")
    ((_, row),) = read_table(path, errors="surrogateescape")[1]
    assert row["path"].encode(errors="surrogateescape") == b"\xff.png"
    with pytest.raises(DataError, match=r"list\.csv: cannot be read as UTF-8 text with cells"):
        list(read_table(path)[1])


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,a\n1,2\n", "column names repeat: a; make each unique"),
        ("a,b\n1,2\n1,2,3\n", "line 3: 3 cells where the header has 2; quote cells that contain the delimiter"),
        ("", "list.csv: empty"),
    ],
)
def test_malformed_files_are_refused(tmp_path: pathlib.Path, text: str, message: str, pad: bool) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_table(path, pad=pad)[1])


def test_a_missing_file_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path / "absent.csv")
