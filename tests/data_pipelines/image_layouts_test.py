"""Layouts of published sets: classes, sides and magnifications in paths, and tables whose paths are incomplete."""

import pathlib

import pytest

from data_pipelines.errors import DataError
from data_pipelines.image_folder.spec import FolderSpec
from tests.data_pipelines.image_folder_test import by_name, labels_of, opened, write
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
