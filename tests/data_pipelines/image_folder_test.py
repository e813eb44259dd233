"""Images with one class each: every layout that is read, and every input that is refused, with its remedy."""

import io
import json
import pathlib
import stat
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from data_pipelines import archive
from data_pipelines.errors import DataError
from data_pipelines.image_folder import layouts
from data_pipelines.image_folder.spec import COLUMNS, FolderSpec
from data_pipelines.pixels import decode
from data_pipelines.prepare import open_images
from data_pipelines.split_spec import SplitSpec
from histojax.core.errors import RunError
from histojax.data.sources import Dataset, open_dataset
from histojax.training import default_config

_FORMATS = {"png": "PNG", "JPG": "JPEG", "tif": "TIFF", "bmp": "BMP", "jp2": "JPEG2000", "webp": "WEBP"}


def picture(seed: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    lossless = {"WEBP": {"lossless": True}}.get(kind, {})
    Image.fromarray(pixels).convert(mode).save(file, kind, **lossless)
    return file.getvalue()


def write(root: pathlib.Path, *names: str) -> pathlib.Path:
    """Write different pictures, as their suffixes say."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed, _FORMATS.get(path.suffix[1:], "PNG")))
    return root


def settings(root: pathlib.Path, prepared: pathlib.Path, **fields: object) -> ConfigDict:
    data = default_config.base().data
    data.update(pipeline="image_folder", task="classes", magnification="")
    data.root, data.prepared_dir = str(root), str(prepared)
    data.update_from_flattened_dict(fields)
    return data


def opened(root: pathlib.Path, **fields: object) -> Dataset:
    return open_dataset(settings(root, root.parent / "prepared", **fields))


def labels_of(dataset: Dataset) -> dict[str, str]:
    return dict(zip(dataset.records.column("image_id").tolist(), dataset.label_names, strict=True))


def by_name(dataset: Dataset, column: str) -> list[str]:
    """Return a column in the order of the images' names; datasets store images in a shuffled order."""
    rows = zip(dataset.records.column("image_id").tolist(), dataset.records.column(column).tolist(), strict=True)
    return [value for _, value in sorted(rows)]


# ---- Layouts -------------------------------------------------------------------------------------------------------


def test_class_folders_below_a_shared_folder(tmp_path: pathlib.Path) -> None:
    names = ["data/x/benign/deep/a b.png", "data/x/benign/ä.JPG", "data/x/malignant/c.tif", "data/x/malignant/d.webp"]
    root = write(tmp_path / "root", *names)
    write(root, "data/x/benign/._a b.png", "data/x/benign/.ipynb_checkpoints/c.png", "__MACOSX/benign/d.png")
    (root / "data" / "Thumbs.db").write_bytes(b"no image")
    dataset = opened(root)
    assert dataset.classes == ("benign", "malignant")
    assert labels_of(dataset) == {"a b": "benign", "ä": "benign", "c": "malignant", "d": "malignant"}
    assert dataset.prepared.summary["classes"] == {"benign": 2, "malignant": 2}


@pytest.mark.parametrize("suffix", list(_FORMATS))
def test_every_format_is_stored_so_that_training_reads_its_pixels(tmp_path: pathlib.Path, suffix: str) -> None:
    root = write(tmp_path / "root", f"a/0.{suffix}", "b/1.png")
    dataset = opened(root)
    stored = open_images(dataset.prepared.directory)
    by_name = {str(name): stored[i]["image"] for i, name in enumerate(dataset.records.column("image_id"))}
    with Image.open(root / "a" / f"0.{suffix}") as image:
        expected = np.asarray(image)
    tolerance = 3 if suffix == "JPG" else 0  # OpenCV and Pillow decode JPEG differently
    np.testing.assert_allclose(decode(by_name["0"]).astype(int), expected.astype(int), atol=tolerance)


def test_sides_are_folders_above_the_classes(tmp_path: pathlib.Path) -> None:
    sides = ("train/a/1.png", "train/b/2.png", "Validation/a/3.png", "test/a/4.png", "test/b/5.png")
    dataset = opened(write(tmp_path / "root", *sides))
    assert by_name(dataset, "given_split") == ["train", "train", "val", "test", "test"]
    split = dataset.split(SplitSpec("auto"))
    assert [row.side for row in sorted(split.rows, key=lambda row: row.image_id)] == by_name(dataset, "given_split")
    assert "the dataset's own split" in split.protocol


def test_names_are_unique(tmp_path: pathlib.Path) -> None:
    root = write(tmp_path / "root", "a/1.png", "b/1.png", "b/2.png", "b/3.png", "b/3.tif")
    found = layouts.find(root, FolderSpec())
    assert list(layouts.image_ids(found.items, root).values()) == ["a/1", "b/1", "2", "b/3.png", "b/3.tif"]


def test_a_pattern_finds_groups_in_paths(tmp_path: pathlib.Path) -> None:
    names = [
        f"{label}/p{p}_s{s}_{i}.png" for label, p in (("a", 1), ("a", 2), ("b", 3)) for s in (1, 2) for i in (1, 2)
    ]
    dataset = opened(write(tmp_path / "root", *names), **{"images.group_pattern": r"/(?P<patient>p\d)_(?P<slide>s\d)_"})
    assert set(dataset.records.column("patient_id")) == {"p1", "p2", "p3"}
    assert set(dataset.records.column("slide_id")) == {"s1", "s2"}
    assert "patient-disjoint" in dataset.split(SplitSpec("auto", val_fraction=0)).protocol


# ---- Tables --------------------------------------------------------------------------------------------------------

ROWS = [
    ("img/1.png", "tumour", "p1", "north"),
    ("img/2.png", "tumour", "p2", "south"),
    ("img/3.png", "none", "p3", "north"),
    ("img/4.png", "none", "p4", "south"),
    ("img/5.png", "none", "p5", "west"),
    ("img/6.png", "tumour", "p6", "west"),
]


def write_table(
    root: pathlib.Path,
    header: str = "path,label,patient_id,site",
    rows: list[tuple[str, ...]] = ROWS,
    encoding: str = "utf-8",
    delimiter: str = ",",
    newline: str = "\n",
) -> pathlib.Path:
    write(root, *(row[0].replace("\\", "/") for row in ROWS))
    lines = [header.replace(",", delimiter), *(delimiter.join(row) for row in rows)]
    (root / "table.csv").write_bytes(newline.join([*lines, ""]).encode(encoding))
    return root


@pytest.mark.parametrize(
    ("encoding", "delimiter", "newline"),
    [("utf-8", ",", "\n"), ("utf-8-sig", ";", "\r\n"), ("utf-16", "\t", "\n"), ("utf-16", ",", "\r\n")],
)
def test_tables_as_programs_write_them(tmp_path: pathlib.Path, encoding: str, delimiter: str, newline: str) -> None:
    windows = [(row[0].replace("/", "\\"), f"{row[1]} ", *row[2:]) for row in ROWS]
    root = write_table(tmp_path / "root", "Path,LABEL,Patient_ID,site", windows, encoding, delimiter, newline)
    dataset = opened(root)
    assert labels_of(dataset) == {str(i): row[1] for i, row in enumerate(ROWS, 1)}
    assert by_name(dataset, "patient_id") == [row[2] for row in ROWS]
    assert dataset.prepared.summary["layout"] == "table"


def test_columns_of_other_names_and_quoted_line_breaks(tmp_path: pathlib.Path) -> None:
    rows = [(f'"{row[0]}"', row[1], f'"{row[2]}\n"', '"two\nlines"') for row in ROWS]
    root = write_table(tmp_path / "root", "file,diagnosis,Fall,remark", rows)
    columns = {f"images.columns.{key}": name for key, name in (("path", "file"), ("label", "Diagnosis"))}
    dataset = opened(root, **columns, **{"images.columns.patient_id": "fall"})
    assert by_name(dataset, "patient_id") == [row[2] for row in ROWS]
    assert by_name(opened(root / "table.csv", **columns), "label") == [row[1] for row in ROWS]


def test_one_site_after_the_other_is_left_out(tmp_path: pathlib.Path) -> None:
    dataset = opened(write_table(tmp_path / "root"))
    tested = []
    for fold in range(3):
        split = dataset.split(SplitSpec("site", kfolds=3, fold=fold, val_fraction=0))
        assert f"site-disjoint, fold {fold} of 3" in split.protocol
        sites = {side: {dataset.records[int(i)].site for i in split.indices(side)} for side in ("train", "test")}
        assert not sites["train"] & sites["test"]
        tested += sites["test"]
    assert tested == ["north", "south", "west"]
    assert "patient-disjoint" in dataset.split(SplitSpec("auto", val_fraction=0)).protocol  # never a site unasked


# ---- Classes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "positive", "classes"),
    [
        (("b/1.png", "a/2.png"), "", ("a", "b")),
        (("b/1.png", "a/2.png"), "a", ("b", "a")),
        (("malignant/1.png", "normal/2.png"), "", ("normal", "malignant")),
        (("c/1.png", "malignant/2.png", "z/3.png"), "", ("c", "malignant", "z")),
    ],
)
def test_the_positive_one_of_two_classes_comes_second(
    tmp_path: pathlib.Path, names: tuple[str, ...], positive: str, classes: tuple[str, ...]
) -> None:
    assert opened(write(tmp_path / "root", *names), **{"images.positive": positive}).classes == classes


def test_a_model_is_tested_on_its_own_classes(tmp_path: pathlib.Path) -> None:
    data = settings(write(tmp_path / "root", "a/1.png", "b/2.png"), tmp_path / "prepared")
    assert open_dataset(data, ("c", "b", "a")).labels.tolist() == [2, 1]
    with pytest.raises(DataError, match="contains images of b, which the model does not know"):
        open_dataset(data, ("a", "c"))


# ---- What is refused -----------------------------------------------------------------------------------------------

Make = Callable[[pathlib.Path], pathlib.Path]
A, B = "a/1.png", "b/2.png"


def raw(name: str, content: bytes) -> Make:
    def make(root: pathlib.Path) -> pathlib.Path:
        write(root, A, B)
        (root / name).write_bytes(content)
        return root

    return make


def folders(*names: str) -> Make:
    return lambda root: write(root, *names)


def table(header: str = "path,label,patient_id,site", rows: list[tuple[str, ...]] = ROWS) -> Make:
    return lambda root: write_table(root, header, rows)


def two_tables(root: pathlib.Path) -> pathlib.Path:
    (write_table(root) / "more.csv").write_text("path,label\n1.png,a\n")
    return root


def only_text(root: pathlib.Path) -> pathlib.Path:
    root.mkdir()
    (root / "list.csv").write_text("file,diagnosis\n1.png,a\n")
    (root / "scan.svs").write_bytes(b"")
    return root


def zipped(*members: tuple[str, bytes], link: bool = False, cut: int = 0) -> Make:
    def make(root: pathlib.Path) -> pathlib.Path:
        path = root.with_suffix(".zip")
        with zipfile.ZipFile(path, "w") as file:
            for name, content in members:
                entry = zipfile.ZipInfo(name)
                entry.external_attr = (stat.S_IFLNK if link else stat.S_IFREG) << 16
                file.writestr(entry, content)
        if cut:
            data = bytearray(path.read_bytes())
            data[cut] ^= 0xFF
            path.write_bytes(data)
        return path

    return make


ROW = ("img/1.png", "tumour", "p1", "north")
REFUSED: list[tuple[Make, dict[str, object], str]] = [
    (lambda root: root, {}, r"root: no such file or folder \(data\.root\)"),
    (folders(), {}, r"no such file or folder"),
    (only_text, {}, r"no image below this folder .*1 \.svs.*; list\.csv has file, diagnosis .*columns\.label=NAME"),
    (folders(A, "a/2.png"), {}, r"every image is of the class 'a', .*expected them in a folder for each class"),
    (folders(A, B, "3.png"), {}, r"1 of 3 images are in no class folder, such as 3\.png; sort them into one folder"),
    (folders("Benign/1.png", "benign/2.png"), {}, r"'Benign' \(images: 1\) and 'benign' \(images: 1\) differ only in"),
    (folders("not_tumor/1.png", "not tumor/2.png"), {}, r"differ only in spelling; give them one name"),
    (folders("ER+/1.png", B), {}, r"the class 'ER\+' has a character that results cannot hold"),
    (table(rows=[*ROWS, ("img/7.png", "")]), {}, r"table\.csv, line 8: 2 cells where the header has 4"),
    (table(rows=[*ROWS, ("img/7.png", "", "", "")]), {}, r"line 8, column label: empty; fill it in, or remove the row"),
    (table(rows=[*ROWS, ("", "none", "", "")]), {}, r"line 8, column path: empty; fill it in"),
    (table(rows=[*ROWS, ROW]), {}, r"line 8, column path: '1\.png' is already in .*line 2"),
    (table(rows=[*ROWS, ("img/9.png", "none", "", "")]), {}, r"img/9\.png: listed in the table, but the file does not"),
    (
        table(rows=[("x/1.png", "a", "", ""), ("x/2.png", "b", "", "")]),
        {},
        r"none of its 2 files exists, such as .*x/1",
    ),
    (table(rows=[]), {}, r"table\.csv: no row below the header"),
    (
        table(rows=[(*row[:1], "same", "", "") for row in ROWS]),
        {},
        r"the class 'same'.*in the table's column of labels",
    ),
    (
        table("path,diagnosis,patient_id,site"),
        {"images.table": "table.csv"},
        r"table\.csv: no column label; it has path, diagnosis, .*--config\.data\.images\.columns\.label=NAME",
    ),
    (
        table(),
        {"images.columns.label": "lable", "images.table": "table.csv"},
        r"no column lable \(did you mean 'label'",
    ),
    (table(), {"images.columns.slide_id": "slide"}, r"no column slide[;( ].*columns\.slide_id=NAME"),
    (table("path,label,Label,site"), {}, r"the columns label and Label differ only in capitals; rename one"),
    (table("path,label,split,site"), {}, r"line 2, column split: 'p1' is not one of train"),
    (two_tables, {}, r"several tables \(more\.csv, table\.csv\); choose with --config\.data\.images\.table"),
    (table(), {"images.table": "t.csv"}, r"t\.csv: no such file \(data\.images\.table\)"),
    (
        raw("table.csv", b"path,label\na/1.png,\xff\xfe\n"),
        {"images.table": "table.csv"},
        r"cannot be read as UTF-8 text",
    ),
    (raw("table.csv", b"path,label\na/1.png,a\0\n"), {"images.table": "table.csv"}, r"contains a zero byte"),
    (raw(A, picture(0)[:-20]), {}, r"a/1\.png: truncated PNG.*\n.*on_bad_image=skip"),
    (raw(A, b""), {}, r"a/1\.png: empty file"),
    (raw("a/3.jpg", picture(0, "JPEG")[:200]), {}, r"a/3\.jpg: damaged or truncated"),
    (raw("a/3.tif", picture(0, "TIFF", "L")), {}, r"a/3\.tif: TIFF of mode L where 8-bit RGB is expected: convert it"),
    (raw("a/3.bmp", picture(0, "BMP", "L")), {}, r"a/3\.bmp: BMP of mode L where 8-bit RGB is expected: convert it"),
    (raw("a/3.png", picture(0, "PNG", "I;16")), {}, r"a/3\.png: .*8-bit RGB is expected"),
    (folders(A, B), {"images.group_pattern": "("}, r"data\.images\.group_pattern='\(' is not a regular expression"),
    (folders(A, B), {"images.group_pattern": "(?P<who>.)"}, r"must name some of the groups \(\?P<patient>…\)"),
    (
        folders(A, B),
        {"images.group_pattern": r"(?P<case>\d\d)"},
        r"a/1\.png: does not match data\.images\.group_pattern",
    ),
    (folders(A, B), {"images.positive": "c"}, r"data\.images\.positive='c' is for two classes.*are a, b"),
    (folders(A, B, "c/3.png"), {"images.positive": "c"}, r"is for two classes, one of which it names"),
    (folders(A, "malignant/2.png"), {"images.positive": "a"}, r"with a class 'malignant', that one is positive"),
    (folders(A, B), {"task": "binary"}, r"data\.task='binary' is not one of classes"),
    (folders(A, B), {"magnification": "40X"}, r"data\.magnification='40X' does not apply.*leave it empty"),
    (folders(A, B), {"on_bad_image": "drop"}, r"data\.on_bad_image='drop' is neither"),
    (
        zipped(("../a/1.png", b""), ("b/2.png", b"")),
        {},
        r"member '\.\./a/1\.png' points outside the archive; nothing was",
    ),
    (zipped(("a/1.png", b"/etc/passwd"), link=True), {}, r"member 'a/1\.png' is a link or a device; nothing was"),
    (zipped(("a/1.png", picture(0)), cut=60), {}, r"root\.zip: damaged or truncated"),
]


@pytest.mark.parametrize(("make", "fields", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_cannot_be_used_is_refused(
    tmp_path: pathlib.Path, make: Make, fields: dict[str, object], message: str
) -> None:
    root = make(tmp_path / "root")
    with pytest.raises((DataError, RunError), match=f"(?s){message}"):
        opened(root, **fields)
    if "images.positive" not in fields:  # which is compared with the classes of a dataset that was prepared
        files = (path for path in (tmp_path / "prepared").rglob("*") if path.is_file())
        assert not [path for path in files if not path.name.startswith(".")]


def test_bad_images_are_skipped_on_request_and_counted(tmp_path: pathlib.Path) -> None:
    root = write(tmp_path / "root", A, B, "b/3.png")
    (root / A).write_bytes(b"")
    (root / "a" / "4.png").write_bytes(picture(9))
    dataset = opened(root, on_bad_image="skip")
    assert labels_of(dataset) == {"2": "b", "3": "b", "4": "a"}
    assert dataset.prepared.summary["bad_images"] == {"a/1.png": "empty file"}
    (note,) = dataset.prepared.summary["notes"]
    assert note.startswith("class with a single image (a)")


def test_groups_that_a_protocol_needs_must_be_known(tmp_path: pathlib.Path) -> None:
    dataset = opened(write(tmp_path / "root", A, B))
    for protocol in ("site", "patient", "given"):
        with pytest.raises(DataError, match=rf"data\.split\.protocol='{protocol}' needs .* for every image"):
            dataset.split(SplitSpec(protocol))
    with pytest.raises(DataError, match=r"data\.images\.columns\.patient: unknown; known are path, label"):
        FolderSpec(columns=(("patient", "x"),))


# ---- Archives ------------------------------------------------------------------------------------------------------


def test_a_zip_file_is_unpacked_once(tmp_path: pathlib.Path) -> None:
    members = [("set/a/1.png", picture(0)), ("set/b/2.png", picture(1)), ("set/read.me", b"no image"), ("set/a/", b"")]
    path = zipped(*members)(tmp_path / "root")
    dataset = opened(path)
    assert labels_of(dataset) == {"1": "a", "2": "b"}
    (unpacked,) = (tmp_path / "prepared" / "extracted" / "images").glob("root-*")
    assert sorted(p.name for p in unpacked.rglob("*") if p.is_file()) == ["1.png", "2.png"]
    assert opened(path).hash == dataset.hash
    assert archive.is_archive(path)


# ---- Beside BreakHis -----------------------------------------------------------------------------------------------


def test_the_same_images_have_the_same_split_in_both_pipelines(
    breakhis_part: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Names, labels, order and sides are equal, so a run draws the same batches and gives the same results."""
    root = tmp_path / "root"
    for label in ("benign", "malignant"):
        (root / label).mkdir(parents=True)
        for image in sorted((breakhis_part).rglob(f"{label}/SOB/*/*/100X/*.png"))[::6]:
            (root / label / image.name).write_bytes(image.read_bytes())
    folder = opened(root)
    data = settings(root, tmp_path / "prepared", pipeline="breakhis", task="binary", magnification="100X")
    breakhis = open_dataset(data)
    assert folder.classes == breakhis.classes
    assert labels_of(folder) == labels_of(breakhis)
    assert folder.records.column("image_id").tolist() == breakhis.records.column("image_id").tolist()
    sides = [dataset.split(SplitSpec("image")) for dataset in (folder, breakhis)]
    assert [row.side for row in sides[0].rows] == [row.side for row in sides[1].rows]
    stored = [open_images(dataset.prepared.directory) for dataset in (folder, breakhis)]
    assert len(stored[0]) > 20
    assert all(stored[0][i]["image"] == stored[1][i]["image"] for i in range(len(stored[0])))


def test_the_fields_of_the_config_are_those_of_the_table() -> None:
    assert set(default_config.base().data.images.columns) == set(COLUMNS)
    assert json.loads(default_config.base().to_json())["data"]["images"]["columns"]["label"] == "label"
