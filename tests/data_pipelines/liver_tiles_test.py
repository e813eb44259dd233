"""Multi-label tiles: labels from a table, names or folders; errors in them; the stored images and records."""

import io
import pathlib
import tarfile
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.images import check_image, decode_rgb
from data_pipelines.liver_tiles.scan import scan, stored_bytes
from data_pipelines.liver_tiles.spec import LIVER_LABELS, TilesSpec
from data_pipelines.prepare import open_images, prepare
from tests.conftest import WriteImages
from tests.helpers.tile_scans import labels_of

HEADER = "path,interstitial,necrosis,non_tumor,tumor"


def write_table(root: pathlib.Path, *lines: str, name: str = "tiles.csv") -> pathlib.Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


# --- Table --------------------------------------------------------------------------------------------------


@pytest.fixture
def table_root(tmp_path: pathlib.Path, write_images: WriteImages) -> pathlib.Path:
    root = tmp_path / "root"
    write_images(root, ["a.png", "sub/b.png", "sub/c.png"])
    return root


def test_a_table_gives_labels_groups_and_sides(table_root: pathlib.Path) -> None:
    lines = ["a.png,1,0,0,1,P1,S1,train", "sub/b.png,0,0,0,0,P2,S2,TEST", "sub/c.png,True,1.0,false,0,P1,S1,train"]
    write_table(table_root, f"\ufeff{HEADER},patient_id,slide_id,split", *lines)
    found = scan(table_root, TilesSpec())
    assert found.summary["layout"] == "table"
    assert found.summary["labels"] == list(LIVER_LABELS)
    assert labels_of(found) == {"a": "interstitial+tumor", "sub/b": "", "sub/c": "interstitial+necrosis"}
    records = [tile.record for tile in found.tiles]
    assert [(r.patient_id, r.slide_id, r.source_id, r.given_split) for r in records] == [
        ("P1", "S1", "", "train"),
        ("P2", "S2", "", "test"),
        ("P1", "S1", "", "train"),
    ]
    assert [stored_bytes(tile) for tile in found.tiles] == [tile.path.read_bytes() for tile in found.tiles]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_are_read(table_root: pathlib.Path, delimiter: str) -> None:
    write_table(table_root, HEADER.replace(",", delimiter), delimiter.join(["a.png", "0", "1", "0", "0"]))
    assert labels_of(scan(table_root, TilesSpec())) == {"a": "necrosis"}


def test_parquet_is_read_like_csv(table_root: pathlib.Path) -> None:
    frame = pd.DataFrame({"path": ["a.png", "sub/b.png"], "fat": [1, 0], "vessel": [True, True]})
    frame["patient_id"] = [12.0, None]  # pandas stores integers with a missing one as floats
    frame.to_parquet(table_root / "tiles.parquet")
    found = scan(table_root, TilesSpec(labels=("fat", "vessel")))
    assert labels_of(found) == {"a": "fat+vessel", "sub/b": "vessel"}
    assert [tile.record.patient_id for tile in found.tiles] == ["12", ""]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["path,interstitial,necrosis,nontumor,tumor"],
            r"no column non_tumor \(did you mean 'nontumor'\?\); it has path,",
        ),
        ([HEADER, "a.png,1,0,0"], "line 2: 4 cells where the header has 5"),
        ([HEADER, "", "a.png,1,0,2,0"], "line 3, column non_tumor: '2' is neither 0 nor 1"),
        ([HEADER, "a.png,1,,0,0"], "line 2, column necrosis: '' is neither 0 nor 1"),
        ([HEADER, "a.png,1,0,0,0", "a.png,0,0,0,0"], "line 3, column path: 'a.png' is already in .*line 2"),
        ([HEADER, ",1,0,0,0"], "line 2, column path: empty"),
        ([f"{HEADER},split", "a.png,1,0,0,0,holdout"], "line 2, column split: 'holdout' is not one of train"),
        ([f"{HEADER},tumor", "a.png,1,0,0,0,1"], "column names repeat: tumor"),
        ([HEADER], "no row below the header"),
        ([""], "tiles.csv: empty"),
    ],
)
def test_an_invalid_table_is_refused_with_line_and_column(
    table_root: pathlib.Path, lines: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        scan(write_table(table_root, *lines), TilesSpec())


def test_an_undecodable_table_is_refused(table_root: pathlib.Path) -> None:
    (table_root / "tiles.csv").write_bytes(b"path,\xff\xfe")
    with pytest.raises(DataError, match=r"tiles\.csv: cannot be read as UTF-8"):
        scan(table_root, TilesSpec())
    (table_root / "tiles.csv").rename(table_root / "tiles.parquet")
    with pytest.raises(DataError, match=r"tiles\.parquet: cannot be read as Parquet"):
        scan(table_root, TilesSpec())


def test_several_tables_need_a_choice(table_root: pathlib.Path) -> None:
    write_table(table_root, HEADER, "a.png,1,0,0,0")
    write_table(table_root, HEADER, "a.png,0,0,0,1", name="other.csv")
    with pytest.raises(DataError, match=r"several tables \(other\.csv, tiles\.csv\); choose with"):
        scan(table_root, TilesSpec())
    assert labels_of(scan(table_root, TilesSpec(table="other.csv"))) == {"a": "tumor"}
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        scan(table_root, TilesSpec(table="none.csv"))


def test_what_a_run_writes_beside_its_data_is_no_table_of_tiles(table_root: pathlib.Path) -> None:
    write_table(table_root, HEADER, "a.png,1,0,0,0")
    write_table(table_root, "image_id,split", "a,test", name="split.csv")
    assert labels_of(scan(table_root, TilesSpec())) == {"a": "interstitial"}
    (table_root / "tiles.csv").unlink()
    with pytest.raises(DataError, match=r"split\.csv: no column path, interstitial"):
        scan(table_root, TilesSpec())
    (table_root / "sub").rename(table_root / "tumor")
    assert set(labels_of(scan(table_root, TilesSpec(), "skip"))) == {"tumor/b", "tumor/c"}


def test_a_listed_file_that_does_not_exist_is_a_bad_image(table_root: pathlib.Path) -> None:
    write_table(table_root, HEADER, "a.png,1,0,0,0", "gone.png,1,0,0,0")
    with pytest.raises(DataError, match=r"1 bad image:\n  gone\.png: listed in the table, but the file does not exist"):
        scan(table_root, TilesSpec())
    found = scan(table_root, TilesSpec(), "skip")
    assert list(labels_of(found)) == ["a"]
    assert list(found.summary["bad_images"]) == ["gone.png"]


def test_names_that_differ_only_in_their_suffix_are_two_tiles(
    tmp_path: pathlib.Path, write_images: WriteImages
) -> None:
    write_images(tmp_path, ["a.png", "a.jpg"])
    write_table(tmp_path, HEADER, "a.png,1,0,0,0", "a.jpg,0,0,0,1")
    assert labels_of(scan(tmp_path, TilesSpec())) == {"a.jpg": "tumor", "a.png": "interstitial"}


# --- Names and folders --------------------------------------------------------------------------------------


def test_labels_are_read_from_file_names(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    write_images(
        tmp_path, ["P1_S1_7[1 0 0 1].png", "P1_S2-8-[0001].png", "x/P2_S3[0,1,1,0].jpg", "P2_S3 [0 0 0 0].png"]
    )
    found = scan(tmp_path, TilesSpec(group_pattern=r"(?P<patient>P\d+)_(?P<slide>S\d+)"))
    assert found.summary["layout"] == "names"
    assert sorted(labels_of(found).values()) == ["", "interstitial+tumor", "necrosis+non_tumor", "tumor"]
    groups = {(tile.record.patient_id, tile.record.slide_id) for tile in found.tiles}
    assert groups == {("P1", "S1"), ("P1", "S2"), ("P2", "S3")}


def test_another_number_of_digits_in_a_name_is_refused(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    write_images(tmp_path, ["a[1 0 1].png", "b.png"])
    with pytest.raises(DataError, match=r"3 digits in the name, but 4 labels .* --config\.data\.tiles\.labels"):
        scan(tmp_path, TilesSpec())
    spec = TilesSpec(labels=("tumor", "stroma", "normal"))
    with pytest.raises(DataError, match=r"b\.png: its name has no labels such as \[0 0 0\]"):
        scan(tmp_path, spec)
    assert labels_of(scan(tmp_path, spec, "skip")) == {"a[1 0 1]": "tumor+normal"}


def test_the_group_pattern_must_match_every_name(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    write_images(tmp_path, ["P1[1 0 0 1].png", "Q2[1 0 0 1].png"])
    with pytest.raises(DataError, match=r"Q2\[1 0 0 1\]\.png: its name does not match data\.tiles\.group_pattern"):
        scan(tmp_path, TilesSpec(group_pattern=r"(?P<patient>P\d+)"))


def test_class_folders_may_lie_in_train_and_test_folders(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    names = ["training/tumor/a.png", "training/tumor+necrosis/deep/b.png", "test/non_tumor/c.png", "test/misc/d.png"]
    write_images(tmp_path, names)
    with pytest.raises(DataError, match=r"test/misc/d\.png: none of its folders is named after a label"):
        scan(tmp_path, TilesSpec())
    found = scan(tmp_path, TilesSpec(), "skip")
    assert found.summary["layout"] == "folders"
    assert sorted(labels_of(found).values()) == ["necrosis+tumor", "non_tumor", "tumor"]
    assert [tile.record.given_split for tile in found.tiles] == ["test", "train", "train"]


def test_a_folder_that_is_spelt_otherwise_than_its_label_is_hinted(
    tmp_path: pathlib.Path, write_images: WriteImages
) -> None:
    write_images(tmp_path, ["Tumor/a.png", "Non-Tumor/b.png"])
    hint = (
        r"the folder 'Non-Tumor' is not the label 'non_tumor'; the folder 'Tumor' is not the label 'tumor': rename it"
    )
    with pytest.raises(DataError, match=hint):
        scan(tmp_path, TilesSpec())
    write_images(tmp_path, ["necrosis/c.png"])
    with pytest.raises(DataError, match=r"Tumor/a\.png: none of .*; the folder 'Tumor' is not the label 'tumor'"):
        scan(tmp_path, TilesSpec())
    # The remedy works.
    labels = ("Tumor", "Non-Tumor", "necrosis")
    assert len(scan(tmp_path, TilesSpec(labels=labels)).tiles) == 3


def test_the_innermost_label_folder_gives_the_label(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    write_images(tmp_path, ["necrosis/tumor/a.png", "tumor/necrosis/2019/b.png"])
    assert list(labels_of(scan(tmp_path, TilesSpec())).values()) == ["tumor", "necrosis"]


def test_a_train_folder_without_a_test_folder_is_no_split(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    write_images(tmp_path, ["train/tumor/a.png", "train/necrosis/b.png"])
    found = scan(tmp_path, TilesSpec())
    assert {tile.record.given_split for tile in found.tiles} == {""}
    assert sum(found.summary["notes"].values()) == 2


# --- Any layout ---------------------------------------------------------------------------------------------


def test_a_root_without_images_is_refused_with_the_expected_layouts(
    tmp_path: pathlib.Path, write_images: WriteImages
) -> None:
    with pytest.raises(DataError, match=r"expected a table .*; or images named like .*Found no image"):
        scan(tmp_path, TilesSpec())
    write_images(tmp_path, ["stuff/a.png"])
    with pytest.raises(DataError, match=r"Found 1 images, in the folders stuff"):
        scan(tmp_path, TilesSpec())
    with pytest.raises(DataError, match=r"expected images in img/ with masks"):
        scan(tmp_path, TilesSpec(layout="masks"))
    with pytest.raises(DataError, match="no such folder"):
        scan(tmp_path / "none", TilesSpec())


def test_bad_files_are_listed_or_skipped(table_root: pathlib.Path) -> None:
    write_table(table_root, HEADER, "a.png,1,0,0,0", "sub/b.png,0,0,0,1", "sub/c.png,0,0,0,1")
    (table_root / "a.png").write_bytes((table_root / "a.png").read_bytes()[:-20])
    (table_root / "sub/b.png").write_bytes(b"GIF89a" + b"x" * 99)
    with pytest.raises(DataError, match=r"2 bad images:\n  a\.png: truncated PNG.*\n  sub/b\.png: not a PNG"):
        scan(table_root, TilesSpec())
    assert list(labels_of(scan(table_root, TilesSpec(), "skip"))) == ["sub/c"]
    (table_root / "sub/c.png").write_bytes(b"")
    with pytest.raises(DataError, match="no usable tile"):
        scan(table_root, TilesSpec(), "skip")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layout": "folder"}, r"layout='folder' is not one of auto, table"),
        ({"labels": ("a", "a")}, r"a name is repeated"),
        ({"labels": ("a+b",)}, r"'a\+b' is not a plain name"),
        ({"size": 0}, r"size=0"),
        ({"stride": -1}, r"stride=-1"),
        ({"min_share": 0.0}, r"min_share=0.0 is not in \(0, 1\]"),
        ({"mask_values": (1, 300)}, r"mask_values=\(1, 300\)"),
        ({"labels": ("a", "b"), "mask_values": (1,)}, r"has 1 values for 2 labels"),
        ({"group_pattern": "(x"}, r"is not a regular expression"),
        ({"group_pattern": "(?P<person>x)"}, r"must name the groups"),
        ({"table": "x.csv", "layout": "masks"}, r"table='x.csv' cannot be combined"),
    ],
)
def test_an_invalid_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"^data\.tiles\..*{message}"):
        TilesSpec(**fields)


def test_stored_tiles_match_their_files(table_root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(table_root / "d.tiff")
    Image.fromarray(pixels).save(table_root / "e.jpg")
    lines = ["a.png,1,0,0,1,P1", "d.tiff,0,0,0,0,P2", "e.jpg,0,1,0,0,P1"]
    write_table(table_root, f"{HEADER},patient_id", *lines)
    first = prepare("liver_tiles", str(table_root), magnification="", directory=str(tmp_path / "base"))
    assert first.description == f"tiles of {table_root}"
    assert not first.synthetic
    stored = open_images(first.directory)
    by_id = {record.image_id: (stored[i]["image"], record) for i, record in enumerate(first.records)}
    assert {name: record.label for name, (_, record) in by_id.items()} == {
        "a": "interstitial+tumor", "d": "", "e": "necrosis",
    }  # fmt: skip
    assert by_id["a"][0] == (table_root / "a.png").read_bytes()
    assert by_id["e"][0] == (table_root / "e.jpg").read_bytes()
    np.testing.assert_array_equal(decode_rgb(by_id["d"][0]), pixels)  # a TIFF file is stored as PNG
    assert [by_id[name][1].patient_id for name in "ade"] == ["P1", "P2", "P1"]
    assert first.summary["labels"] == list(LIVER_LABELS)

    again = prepare("liver_tiles", str(table_root / "tiles.csv"), magnification="", directory=str(tmp_path / "base"))
    assert list(again.records) == list(first.records)
    write_table(table_root, f"{HEADER},patient_id", *lines[:2])
    changed = prepare("liver_tiles", str(table_root), magnification="", directory=str(tmp_path / "base"))
    assert len(changed.records) == 2
    other = prepare(
        "liver_tiles", str(table_root), magnification="", directory=str(tmp_path / "base"),
        tiles=TilesSpec(labels=("tumor", "necrosis")),
    )  # fmt: skip
    assert {record.label for record in other.records} == {"tumor", ""}
    with pytest.raises(DataError, match=r"data\.magnification='40X' does not apply"):
        prepare("liver_tiles", str(table_root), magnification="40X", directory=str(tmp_path / "base"))


def test_an_archive_is_extracted_with_its_table(table_root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    write_table(table_root, HEADER, "a.png,1,0,0,1")
    (table_root / "run.sh").write_text("rm")
    with tarfile.open(tmp_path / "tiles.tar.gz", "w:gz") as tar:
        tar.add(table_root, "set")
        info = tarfile.TarInfo("set/more.csv.exe")
        tar.addfile(info, io.BytesIO())
    prepared = prepare(
        "liver_tiles", str(tmp_path / "tiles.tar.gz"), magnification="", directory=str(tmp_path / "base")
    )
    assert [(record.image_id, record.label) for record in prepared.records] == [("a", "interstitial+tumor")]
    extracted = {path.name for path in (tmp_path / "base" / "extracted").rglob("*") if path.is_file()}
    assert {name for name in extracted if name[0] != "."} == {"a.png", "b.png", "c.png", "tiles.csv"}


def test_truncated_and_grey_jpeg_files_are_refused(tmp_path: pathlib.Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "b.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    assert check_image(data).height == 64
    for content, message in ((data[:-500], "damaged or truncated"), ((tmp_path / "b.jpg").read_bytes(), "mode L")):
        with pytest.raises(ValueError, match=message):
            check_image(content)
