"""Experiments by name and by path, and overrides of their fields."""

import pathlib

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from data_pipelines import prepare
from histojax.core.errors import RunError
from histojax.training import default_config, experiments
from histojax.training.tasks import Multilabel
from tests.conftest import ROOT

BASE = "from histojax.training import default_config\ndef get_config():\n c = default_config.base()\n "
NAMES = ["baselines_breakhis", "dala_resnet50_breakhis", "finetune_breakhis", "image_folder", "ldcsf_liver"]
NAMES += ["pathology_breakhis"]


def config() -> ConfigDict:
    group = ConfigDict({"text": "a", "flag": False, "number": 0.5, "count": 3, "pair": (1, 2), "map": ConfigDict()})
    return ConfigDict({"seed": 0, "group": group}).lock()


def test_the_experiments_of_the_checkout_are_known() -> None:
    assert experiments.folder() == ROOT / "configs"
    assert experiments.names() == NAMES


def test_a_name_and_a_path_give_the_same_experiment() -> None:
    by_name = experiments.read("dala_resnet50_breakhis:smoke")
    by_path = experiments.read(f"{ROOT}/configs/dala_resnet50_breakhis.py:smoke")
    assert by_name.to_json() == by_path.to_json()
    assert by_name.data.image_size == 64
    assert experiments.read("dala_resnet50_breakhis").data.image_size == 224


def test_an_installed_package_has_its_own_experiments(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "_PACKAGE", tmp_path / "histojax")
    (tmp_path / "configs").mkdir()  # beside the package: somebody else's, if the package has its own
    (tmp_path / "histojax" / "configs").mkdir(parents=True)
    (tmp_path / "histojax" / "configs" / "__init__.py").touch()
    (tmp_path / "histojax" / "configs" / "mine.py").write_text("")
    assert experiments.names() == ["mine"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dala_resnet50", r"no experiment is named 'dala_resnet50' \(did you mean 'dala_resnet50_breakhis'\?\)"),
        ("zzz", r"no experiment is named 'zzz'\. Known experiments: baselines_breakhis, "),
        ("nowhere.py", "nowhere.py: no such config file"),
        ("configs/nowhere:smoke", "configs/nowhere: no such config file"),
        ("ldcsf_liver:huge", "unknown variant ':huge'"),
    ],
)
def test_unknown_experiments(name: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        experiments.read(name)


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("x = (", "mine.py", r"mine\.py:1: '\(' was never closed"),
        ("\nimport nothing_like_it", "mine.py", r"mine\.py:2: ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("x = 1", "mine.py", "defines no function get_config"),
        ("def get_config():\n  return {}", "mine.py", "get_config returns dict, not an ml_collections.ConfigDict"),
        (f"{BASE}c.train.epoch = 3\n return c", "mine.py", r"it sets train\.epoch, which is no field \(did you"),
        (f"{BASE}del c.train.mixup\n return c", "mine.py", r"it lacks train\.mixup; let get_config start from"),
        (f"{BASE}c.train.epochs = 0\n return c", "mine.py", r"train\.epochs=0 is not at least 1"),
        ("def get_config():\n  return 1 / 0", "mine.py", r"mine\.py:2: ZeroDivisionError"),
        ("def get_config():\n  return 1", "mine.py:variant", "TypeError: get_config"),
        ("", "mine.txt", "mine.txt is not a Python file"),
    ],
)
def test_files_that_are_no_config(tmp_path: pathlib.Path, source: str, name: str, message: str) -> None:
    (tmp_path / name.partition(":")[0]).write_text(source)
    with pytest.raises(RunError, match=message):
        experiments.read(f"{tmp_path}/{name}")


def test_a_users_config_file_is_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nimport dataclasses\nfrom histojax.training import default_config\n"
        "@dataclasses.dataclass\nclass Sizes:\n    width: int = 3\n"
        "def get_config():\n    config = default_config.base()\n    config.data.image_size = Sizes().width\n"
        "    config.model.options.any = 1\n    return config\n"
    )
    read = experiments.read(f"{tmp_path}/mine.py", [("seed", "5")])
    assert (read.seed, read.data.image_size) == (5, 3)
    with pytest.raises(AttributeError):
        read.other = 1  # locked


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("group.text", "b"),
        ("group.text", "1"),
        ("group.text", ""),
        ("group.flag", "true"),
        ("group.flag", "False"),
        ("group.flag", "1"),
        ("group.number", "2"),
        ("group.number", "1e-3"),
        ("group.number", "-inf"),
        ("group.count", "7"),
        ("group.count", "-7"),
        ("group.count", "0x10"),
        ("group.count", "007"),
        ("group.pair", "(3, 4, 5)"),
        ("group.pair", "3,4"),
        ("group.pair", "3"),
        ("group.pair", "()"),
        ("group.pair", "[3, (4,)]"),
        ("group.pair", "('a','b')"),
        ("group.pair", "a"),
        ("group.pair", "/a/b*"),
        ("group.map", "{'a': 1}"),
    ],
)
def test_values_are_those_of_ml_collections(field: str, text: str) -> None:
    ours = config()
    values = experiments.override(ours, [(field, text)])
    reference, argv = flags.FlagValues(), ["program", f"--config.{field}={text}"]
    theirs = config_flags.DEFINE_config_dict("config", config(), flag_values=reference, sys_argv=argv)
    reference(argv)
    assert ours == theirs.value
    assert values == {field: ours.group[field.partition(".")[2]]}
    assert type(values[field]) is type(theirs.value.group[field.partition(".")[2]])


def test_a_switch_needs_no_value_and_the_last_value_counts() -> None:
    changed = config()
    experiments.override(changed, [("group.flag", None), ("seed", "1"), ("seed", "2")])
    assert (changed.group.flag, changed.seed) == (True, 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([("group.cuont", "1")], r"group has no field 'cuont' \(did you mean 'count'\?\)\. Fields of group: count, "),
        ([("gruop.count", "1")], r"the config has no field 'gruop' \(did you mean 'group'\?\)\. Fields: group, seed"),
        ([("pair", "1")], r"the config has no field 'pair' \(did you mean group\.pair\?\)"),
        ([("group.zzz", "1")], r"group has no field 'zzz'\. Fields"),
        ([("group.count.x", "1")], r"group\.count is a value \(3\) and has no fields"),
        ([("group.count", "1.5")], "group.count=1.5: the value must be a whole number; in the config it is 3"),
        ([("group.count", "abc")], "must be a whole number"),
        ([("group.count", None)], "--config.group.count needs a value, such as --config.group.count=3"),
        ([("group.number", "abc")], "must be a number"),
        ([("group.flag", "maybe")], "must be true or false"),
        ([("group.pair", "a,b")], r"must be a tuple, such as "),
        ([("group.map", "[1]")], r"must be a mapping, such as .*; in the config it is empty"),
        ([("group", "1")], "in the config it is the fields count, flag"),
        ([("group.map", "{'a': 1}"), ("group.map.a", "2"), ("group", "{}")], "would undo --config.group.map"),
    ],
)
def test_overrides_that_do_not_fit(overrides: list[experiments.Override], message: str) -> None:
    with pytest.raises(RunError, match=message):
        experiments.override(config(), overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([("data.tiles.size", "112")], r"data\.tiles\.size has an effect only with data\.pipeline=liver_tiles"),
        (
            [("optimizer.momentum", "0.8")],
            r"only with optimizer\.name=sgd, and it is adamw: drop it",
        ),
        ([("optimizer.name", "sgd"), ("optimizer.beta2", "0.9")], r"only with optimizer\.name=adamw"),
        ([("loss.focal_gamma", "1.0"), ("loss.name", "focal")], ""),
        ([("optimizer.beta1", "0.8")], ""),
    ],
)
def test_a_field_without_effect_is_refused(overrides: list[experiments.Override], message: str) -> None:
    if message:
        with pytest.raises(RunError, match=message):
            experiments.read("dala_resnet50_breakhis", overrides)
    else:
        experiments.read("dala_resnet50_breakhis", overrides)


def test_fields_that_need_another_are_fields() -> None:
    paths = list(experiments._paths(default_config.base()))
    for prefix, (other, value) in default_config.USED_ONLY_WITH.items():
        assert other in paths
        assert any(path.startswith(prefix) for path in paths)
        legal = {**default_config.LEGAL_VALUES, "data.pipeline": prepare.PIPELINES, "loss.name": Multilabel.LOSSES}
        assert value in legal[other]
