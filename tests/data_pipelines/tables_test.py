"""Tables and lists of a user: cells, places and errors."""

import csv
import pathlib
import random

import pytest

from data_pipelines.audit import inputs
from data_pipelines.errors import DataError
from data_pipelines.liver_tiles import table
from data_pipelines.tables import path_in, read_table
from histojax.inference.predict import images
from histojax.slides import cohort_jobs
from tests.conftest import WriteImages

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]


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


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("seed", range(6))
def test_random_cells_come_back_in_any_format(tmp_path: pathlib.Path, encoding: str, seed: int) -> None:
    """Delimiters, quotes, line breaks and line separators inside cells, and any letters."""
    rng = random.Random(seed)
    parts = [*"aü中😀,;\t\"'\n\r\u2028\x85\x0b\\ ", "\r\n", "=1+1"]
    header = ["path", "label", "a b", "ö,,,,,;\tx"]
    rows = [["x" + "".join(rng.choices(parts, k=rng.randrange(6))) + "x" for _ in header] for _ in range(20)]
    path = tmp_path / "list.csv"
    with open(path, "w", newline="", encoding=encoding) as file:
        end, quoting = rng.choice([("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_MINIMAL)])
        writer = csv.writer(file, delimiter=rng.choice(",;\t"), lineterminator=end, quoting=quoting)
        writer.writerows([header, *rows])
    columns, found = read_table(path)
    assert columns == header
    assert [list(row.values()) for _, row in found] == rows


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_every_reader_takes_tables_that_windows_wrote(
    tmp_path: pathlib.Path, write_images: WriteImages, encoding: str, delimiter: str
) -> None:
    write_images(tmp_path, ["sub/dir/a.png"])

    def write(name: str, *rows: str) -> pathlib.Path:
        lines = "\r\n".join(row.replace(",", delimiter) for row in rows) + "\r\n"
        (tmp_path / name).write_bytes(lines.encode(encoding))
        return tmp_path / name

    image = tmp_path / "sub" / "dir" / "a.png"
    tiles = write("tiles.csv", "path,tumor,patient_id", r"sub\dir\a.png,1,Mü")
    (row,) = table.read(tiles, ["tumor"])
    assert (row["path"], row["patient_id"], row["labels"]) == (image, "Mü", ("tumor",))
    listed = write("list.csv", "path,label", r"sub\dir\a.png,x")
    (source,) = inputs.find(listed)
    assert source.path == image
    split = write("split.csv", "path,split", r"sub\dir\a.png,test")
    assert list(inputs.read_split(split, tmp_path, inputs.find(tmp_path / "sub"))[1].values()) == [["test"]]
    (ref,) = images.find([str(listed)])
    assert ref.path == str(image)
    (job,) = cohort_jobs.find([str(write("slides.csv", "slide", r"sub\dir\a.png"))])
    assert job.slide == image


def test_a_file_whose_name_holds_a_backslash_or_tilde_is_found(tmp_path: pathlib.Path) -> None:
    for name in (r"a\b.png", "~c.png", "~/d.png"):
        assert path_in(tmp_path, name) == tmp_path / name
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        assert path_in(tmp_path, name) == tmp_path / name
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.png").touch()
    assert path_in(tmp_path, r"a\b.png") == tmp_path / r"a\b.png"
    (tmp_path / r"a\b.png").unlink()
    assert path_in(tmp_path, r"a\b.png") == tmp_path / "a" / "b.png"


def test_a_text_that_is_not_utf8_names_the_remedy(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes("path,label\nMüller.png,x\n".encode("cp1252"))
    with pytest.raises(DataError, match="save it as CSV UTF-8"):
        list(read_table(path)[1])
    path.write_bytes("path,label\nx,y\n".encode("utf-16")[:-1])
    with pytest.raises(DataError, match="save it as CSV UTF-8"):
        list(read_table(path)[1])
