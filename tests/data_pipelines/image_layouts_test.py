"""What paths and tables say beyond class and patient: nested classes, sides, incomplete paths, further columns."""

import csv
import dataclasses
import pathlib

import pandas
import pytest

from data_pipelines.errors import DataError
from data_pipelines.image_folder import starter
from data_pipelines.image_folder.spec import FolderSpec
from data_pipelines.prepare import scan_image_folder
from data_pipelines.split_spec import SplitSpec
from histojax.evaluation import predictions
from histojax.training import loop
from tests.data_pipelines.image_folder_test import by_name, labels_of, opened, write
from tests.helpers import tiny_config
from tests.helpers.command import histojax


def test_a_pattern_finds_nested_classes_sides_and_magnifications(tmp_path: pathlib.Path) -> None:
    names = (
        "Set 1/lung_sets/lung_n/a_40x.png",
        "Set 1/colon_sets/colon_n/b_10x.png",
        "Set 2/lung_sets/lung_n/c_40x.png",
    )
    pattern = r"(?:(?P<train>Set 1)|(?P<test>Set 2))/.*/(?P<label>[^/]+)/[^/]+_(?P<magnification>\d+x)\.png$"
    dataset = opened(write(tmp_path / "root", *names), **{"images.group_pattern": pattern})
    assert labels_of(dataset) == {"a_40x": "lung_n", "b_10x": "colon_n", "c_40x": "lung_n"}
    assert by_name(dataset, "given_split") == ["train", "train", "test"]
    assert by_name(dataset, "magnification") == ["40x", "10x", "40x"]


def test_images_in_no_folder_have_the_class_of_their_names(tmp_path: pathlib.Path) -> None:
    root = write(tmp_path / "root", "Normal_1.png", "x/OSCC_2.png")
    assert labels_of(opened(root, **{"images.group_pattern": "(?P<label>Normal|OSCC)_"})) == {
        "Normal_1": "Normal",
        "OSCC_2": "OSCC",
    }
    with pytest.raises(DataError, match=r"x/OSCC_2\.png: data\.images\.group_pattern=.* finds no label in this path"):
        opened(root, **{"images.group_pattern": "(?P<label>Normal)?_"})


def table(root: pathlib.Path, header: str = "Image Name,Majority Vote Label,Partition") -> pathlib.Path:
    write(root, *(f"images/M_{i}.png" for i in range(4)))
    rows = [f"M_{i}.png,{'HP' if i % 2 else 'SSA'},{'train' if i < 2 else 'test'}" for i in range(4)]
    (root / "annotations.csv").write_text("\n".join([header, *rows]))
    return root


COLUMNS = {"images.columns.label": "Majority Vote Label", "images.columns.split": "partition"}


def test_a_template_completes_the_paths_of_a_table(tmp_path: pathlib.Path) -> None:
    root = table(tmp_path / "root")
    dataset = opened(root, **COLUMNS, **{"images.path_template": "images/{IMAGE name}"})
    assert labels_of(dataset) == {"M_0": "SSA", "M_1": "HP", "M_2": "SSA", "M_3": "HP"}
    assert by_name(dataset, "given_split") == ["train", "train", "test", "test"]


@pytest.mark.parametrize(
    ("template", "more", "message"),
    [
        ("images/{Image}", "", r"line 2: .*names the column Image .*the table has Image Name, Majority Vote Label"),
        ("images/{Image Name}", "\n,HP,train", r"line 6, column Image Name: empty; fill it in, or remove the row"),
        ("images/{Image Name}", "\nM_1.png,HP,train", r"line 6: 'M_1\.png' is already in .*line 3"),
        ("images", "", r"data\.images\.path_template='images' names no column in braces"),
        ("", "", r"no column path.*columns\.path=NAME"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(
    tmp_path: pathlib.Path, template: str, more: str, message: str
) -> None:
    root = table(tmp_path / "root")
    with open(root / "annotations.csv", "a") as file:
        file.write(more)
    fields = COLUMNS | {"images.path_template": template, "images.table": "annotations.csv"}
    with pytest.raises(DataError, match=message):
        opened(root, **fields)


def test_what_a_table_says_counts_more_than_the_pattern(tmp_path: pathlib.Path) -> None:
    pattern = r"(?P<label>M)_(?P<train>\d)"
    fields = COLUMNS | {"images.path_template": "images/{Image Name}", "images.group_pattern": pattern}
    dataset = opened(table(tmp_path / "root"), **fields)
    assert dataset.classes == ("HP", "SSA")
    assert by_name(dataset, "given_split") == ["train", "train", "test", "test"]
    with pytest.raises(DataError, match=r"must name some of the groups .*\(\?P<label>…\), \(\?P<train>…\)"):
        FolderSpec(group_pattern="(?P<side>a)")


def test_init_writes_the_template(tmp_path: pathlib.Path) -> None:
    root, output = table(tmp_path / "root"), tmp_path / "mine.py"
    flags = ["--label_column=Majority Vote Label", "--path_template=images/{Image Name}", "--output", output]
    done = histojax("init", root, *flags)
    assert done.returncode == 0, done.stderr
    assert "classes   HP 2, SSA 2" in done.stdout
    assert 'config.data.images.path_template = "images/{Image Name}"' in output.read_text()


def further_table(root: pathlib.Path, column: str = "label_note") -> pathlib.Path:
    """Twelve images with two further columns, of which one has the beginning of a column of results."""
    write(root, *(f"{i}.png" for i in range(12)))
    rows = [f'{i}.png,{"ab"[i % 2]},{i},"{i},ü",' for i in range(12)]
    (root / "table.csv").write_text("\n".join([f"path,label,stage,{column},empty", *rows]), encoding="utf-8")
    return root


def test_further_columns_are_kept_and_change_no_hash(tmp_path: pathlib.Path) -> None:
    dataset = opened(further_table(tmp_path / "root"))
    expected = {str(i): (str(i), f"{i},ü", "") for i in range(12)}
    columns = dataset.records.further_columns()
    assert list(columns) == ["table_stage", "table_label_note", "table_empty"]
    kept = zip(dataset.records.column("image_id").tolist(), zip(*columns.values(), strict=True), strict=True)
    assert dict(kept) == expected
    split = dataset.split(SplitSpec("image"))
    split.write_csv(tmp_path / "split.csv", dataset.records, dataset.label_names)
    with open(tmp_path / "split.csv", newline="", encoding="utf-8") as file:
        rows = {row["image_id"]: tuple(row[name] for name in columns) for row in csv.DictReader(file)}
    assert rows == expected
    (tmp_path / "root" / "table.csv").write_text(
        "\n".join(["path,label", *(f"{i}.png,{'ab'[i % 2]}" for i in range(12))])
    )
    bare = opened(tmp_path / "root")
    assert bare.records.further_columns() == {}
    assert bare.hash == dataset.hash
    first = dataset.records[0]
    before = ("image_id", "label", "subtype", "patient_id", "case_id", "magnification", "pixel_hash", "slide_id")
    before += ("source_id", "given_split")  # a run of an earlier version resumes only if its hash stays
    assert first.identity == tuple(getattr(first, name) for name in before)
    assert dataclasses.replace(first, site="north").identity == (*first.identity, "north")


def test_cells_that_no_reader_of_csv_takes_are_read_from_the_images(tmp_path: pathlib.Path) -> None:
    root = further_table(tmp_path / "root")
    table = pandas.read_csv(root / "table.csv", dtype=str)
    (root / "table.csv").unlink()
    table["stage"] = "x" * 200_000
    table.to_parquet(root / "table.parquet")
    opened(root)
    assert set(opened(root).records.further_columns()["table_stage"]) == {"x" * 200_000}


def test_further_columns_are_in_the_predictions(tmp_path: pathlib.Path) -> None:
    config = tiny_config.get_config("mini")
    config.data.update(pipeline="image_folder", task="classes", magnification="", synthetic=False)
    config.data.root, config.data.prepared_dir = str(further_table(tmp_path / "root")), str(tmp_path / "prepared")
    config.data.split.protocol = "image"
    config.train.update(epochs=1, batch_size=4)
    assert loop.train_and_evaluate(config, tmp_path / "run")
    table = predictions.read(tmp_path / "run" / "predictions.parquet")
    assert set(table["split"]) == {"val", "test"}
    for row in table.itertuples():
        assert (row.table_stage, row.table_label_note, row.table_empty) == (row.image_id, f"{row.image_id},ü", "")


def scaled(root: pathlib.Path, *mpp: str) -> pathlib.Path:
    write(root, *(f"{i}.png" for i in range(len(mpp))))
    rows = [f"{i}.png\t{'ab'[i % 2]}\t{cell}" for i, cell in enumerate(mpp)]
    (root / "table.tsv").write_text("\n".join(["path\tlabel\tMPP", *rows]))
    return root


def test_the_scale_of_each_image_is_kept_and_differing_ones_are_noted(tmp_path: pathlib.Path) -> None:
    dataset = opened(scaled(tmp_path / "root", "0.25", "0,5", "", "0.2501"))
    assert by_name(dataset, "mpp") == ["0.25", "0.5", "", "0.2501"]
    assert sorted(dataset.records.further_columns()["mpp"]) == ["", "0.25", "0.2501", "0.5"]
    note = "image of a set with 0.25 to 0.5 µm per pixel: scales differ, and none is resampled"
    assert dataset.prepared.summary["notes"] == {note: 3}
    same = opened(scaled(tmp_path / "same", "0.25", "0.26"))
    assert same.prepared.summary["notes"] == {"class with a single image (a, b): it cannot be trained and tested": 1}


@pytest.mark.parametrize("cell", ["0", "-0.5", "inf", "nan", "40X"])
def test_a_scale_that_is_none_is_refused(tmp_path: pathlib.Path, cell: str) -> None:
    message = rf"table\.tsv, line 3, column MPP: '{cell}' is not a number of µm per pixel above 0; correct it, or leave"
    with pytest.raises(DataError, match=message):
        opened(scaled(tmp_path / "root", "0.25", cell))


@pytest.mark.parametrize(
    ("mpp", "lines", "field"),
    [
        (("0.25", "0.25"), ["scale     0.25 µm per pixel"], "0.25"),
        (("0.25", "0.26"), ["scale     0.25 to 0.26 µm per pixel"], "0.255"),
        (("0.5", "0.2", ""), ["scale     0.2 to 0.5 µm per pixel, known for 2 of 3 images", "warning   scales"], ""),
        (("0.5", ""), ["scale     0.5 µm per pixel, known for 1 of 2 images"], ""),
    ],
)  # fmt: skip
def test_init_tells_the_scale(tmp_path: pathlib.Path, mpp: tuple[str, ...], lines: list[str], field: str) -> None:
    root, output = scaled(tmp_path / "root", *mpp), tmp_path / "mine.py"
    spec = FolderSpec()
    seen = starter.overview(scan_image_folder(root, spec))
    assert [line[: len(lines[i])] for i, line in enumerate(seen.lines()[4:])] == lines
    text = starter.config_text(root, spec, seen, output, "resnet50")
    assert ("config.data.mpp" in text, f"config.data.mpp = {field}  # µm" in text) == (bool(field), bool(field))
