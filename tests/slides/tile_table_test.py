"""The tile table on disk: WSInfer's columns first, nothing lost, invalid values refused."""

import pathlib

import numpy as np
import pandas as pd
import pytest

from histojax.slides import tile_table
from histojax.slides.tile_table import TileTableError
from tests.helpers.tile_tables import make_table


def test_the_columns_begin_like_wsinfers(tmp_path: pathlib.Path) -> None:
    csv, parquet = tile_table.write(make_table().assign(extra="a"), tmp_path)
    expected = "minx,miny,width,height,prob_tumor,prob_stroma,row,column,tissue,extra"
    assert csv.read_bytes().splitlines()[0].decode() == expected
    assert list(pd.read_parquet(parquet).columns) == expected.split(",")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiles.csv", "tiles.parquet"]


def test_both_files_return_the_table_in_order(tmp_path: pathlib.Path) -> None:
    table = make_table()
    csv, parquet = tile_table.write(table.iloc[::-1], tmp_path)
    for path, tolerance in ((csv, 1e-6), (parquet, 0.0)):
        back = tile_table.read(path)
        pd.testing.assert_frame_equal(
            back[table.columns], table, check_dtype=False, check_exact=False, rtol=0, atol=tolerance
        )
        assert back["minx"].dtype == np.int64


def test_a_slide_without_tissue_has_an_empty_table(tmp_path: pathlib.Path) -> None:
    for path in tile_table.write(make_table(0, 1), tmp_path):
        back = tile_table.read(path)
        assert len(back) == 0
        assert back["row"].dtype == np.int64
        assert "prob_tumor" in back.columns


def test_a_failed_write_keeps_the_old_files(tmp_path: pathlib.Path) -> None:
    csv, parquet = tile_table.write(make_table(), tmp_path)
    before = csv.read_bytes(), parquet.read_bytes()
    with pytest.raises(TileTableError, match=r"column prob_tumor: a value is outside 0 … 1"):
        tile_table.write(make_table(5, 5).assign(prob_tumor=np.nan), tmp_path)
    assert (csv.read_bytes(), parquet.read_bytes()) == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"minx,miny\n1,2\n", "missing columns width, height, row, column, tissue; present are minx, miny"),
        (b"minx,miny,width,height,row,column,tissue\n1,2,3,x,0,0,1\n", "column height: a value is not a number"),
        (b"minx,miny,width,height,row,column,tissue\n1,2,3,4,0.5,0,1\n", "column row: a value is not an integer"),
        (b"minx,miny,width,height,row,column,tissue\n1,2,3,inf,0,0,1\n", "column height: a value is not an integer"),
        (b"minx,miny,width,height,row,column,tissue\n1,2,3,4,0,0,1.5\n", r"column tissue: a value is outside 0 … 1"),
    ],
)
def test_a_malformed_table_is_refused_with_its_file(tmp_path: pathlib.Path, content: bytes, message: str) -> None:
    path = tmp_path / "tiles.csv"
    path.write_bytes(content)
    with pytest.raises(TileTableError, match=message) as raised:
        tile_table.read(path)
    assert str(path) in str(raised.value)


def test_damaged_and_missing_parquet_is_refused(tmp_path: pathlib.Path) -> None:
    path = tile_table.write(make_table(), tmp_path)[1]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TileTableError, match="cannot be read"):
        tile_table.read(path)
    with pytest.raises(TileTableError, match="cannot be read"):
        tile_table.read(tmp_path / "other.parquet")
