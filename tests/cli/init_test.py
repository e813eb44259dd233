"""`histojax init`: the config that it writes trains on the images that it saw, and it never overwrites one."""

import pathlib

import pytest

from histojax.data.sources import open_dataset
from histojax.studies import compare
from histojax.training import default_config, experiments
from tests.data_pipelines.image_folder_test import ROWS, picture, write, write_table
from tests.helpers.command import histojax


@pytest.fixture
def folders(tmp_path: pathlib.Path) -> pathlib.Path:
    root = write(
        tmp_path / 'my "images"', *(f"{label}/P{i}_{n}.png" for label, i in ("a1", "a2", "b3") for n in (1, 2))
    )
    (root / "b" / "copy of P3_9.png").write_bytes((root / "a" / "P1_1.png").read_bytes())
    (root / "b" / "P4_1.png").write_bytes(b"")
    return root


def test_the_config_reads_what_was_seen(tmp_path: pathlib.Path, folders: pathlib.Path) -> None:
    output = tmp_path / "new" / "mine.py"
    done = histojax("init", folders, "--patient_pattern", r"/(?:copy of )?(P\d)_", "--output", output)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "images    7, 16×12 pixels",
        "classes   a 4, b 3",
        "groups    3 patients",
        "copies    images with the pixels of another one: 1",
        "conflict  pictures that stand in several classes: 1; correct their labels",
        "unusable  b/P4_1.png: empty file",
        "",
        f"Config   {output}",
        f"Next     histojax train --config {output} --workdir runs/mine",
    ]
    assert list(compare.configs(str(output), {}, ())) == ["resnet50", "densenet121"]
    assert compare.configs(str(output), {}, ())["densenet121"].model.name == "densenet121"
    config = experiments.read(str(output), [("data.prepared_dir", str(tmp_path / "prepared"))])
    default_config.check_values(config)
    dataset = open_dataset(config.data)
    assert dataset.classes == ("a", "b")
    assert len(dataset.records) == 7
    assert sorted(set(dataset.records.column("patient_id"))) == ["P1", "P2", "P3"]
    assert "here by patients" in output.read_text()


def test_columns_of_a_table_are_named(tmp_path: pathlib.Path) -> None:
    root = write_table(tmp_path / "root", "file,diagnosis,case number,site", ROWS)
    command = ["init", root / "table.csv", "--path_column=file", "--label_column=diagnosis", "--model=vgg16"]
    done = histojax(*command, "--patient_column=case number", "--output", tmp_path / "mine.py")
    assert done.returncode == 0, done.stderr
    assert "groups    6 patients, 3 sites" in done.stdout
    config = experiments.read(str(tmp_path / "mine.py"), [("data.prepared_dir", str(tmp_path / "prepared"))])
    assert (config.model.name, config.optimizer.learning_rate, config.train.batch_size) == ("vgg16", 1e-4, 8)
    assert open_dataset(config.data).classes == ("none", "tumour")


def test_nothing_is_overwritten_or_left_after_an_error(tmp_path: pathlib.Path, folders: pathlib.Path) -> None:
    output = tmp_path / "mine.py"
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "1.png").write_bytes(picture(1))
    for words, message in (
        ([folders, "--patient_pattern", "("], "group_pattern='(?P<patient>' is not a regular expression"),
        ([folders, "--model", "resnet51"], "--model: unknown model 'resnet51'"),
        ([tmp_path / "none"], "none: no such file or folder"),
        ([tmp_path / "one"], "1 of 1 images are in no class folder"),
        ([folders, "--label_column", "diagnosis"], ""),
    ):
        done = histojax("init", *words, "--output", output)
        assert (done.returncode, output.exists()) == ((1, False) if message else (0, True)), done.stderr
        assert message in done.stderr
    done = histojax("init", folders, "--output", output)
    assert (done.returncode, f"{output} exists already: remove it" in done.stderr) == (1, True)
    assert "name it such as mine.py" in histojax("init", folders, "--output", "mine.txt").stderr
