"""A finished run counts for a study only with the same config, data and split."""

import itertools
import json
import pathlib
import shutil
import types

import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict

from data_pipelines.errors import DataError
from data_pipelines.official_folds import write_fold
from data_pipelines.synthetic.generator import SyntheticSpec, generate
from histojax.core.errors import RunError
from histojax.core.files import write_json
from histojax.data.sources import open_dataset
from histojax.evaluation import predictions, results
from histojax.studies import compare, protocols, transfer
from histojax.studies.study_runs import check_data, check_same, finished
from histojax.training import build, loop
from tests.helpers import tiny_config
from tests.helpers.prediction_tables import class_table

CASES = (1, 2, 1, 1, 2, 1, 1, 1)


def images(folder: pathlib.Path, seed: int = 0) -> pathlib.Path:
    sizes = {"images_per_patient": 1, "height": 32, "width": 32}
    return generate(folder, SyntheticSpec(seed, CASES, magnifications=("100X",), **sizes))


def pretend_to_train(config: ConfigDict, folder: pathlib.Path, **_: object) -> bool:
    """Write what a study reads of a finished run: all predictions are right."""
    dataset = open_dataset(config.data)
    split = dataset.split(build.split_spec(config))
    rows = split.indices("test")
    names = [dataset.records[i].image_id for i in rows]
    patients = [dataset.records[i].patient_id for i in rows]
    table = predictions.make_table(
        names, dataset.labels[rows], np.eye(2)[dataset.labels[rows]], dataset.classes, split="test", patient_id=patients
    )
    facts = {"split_hash": split.hash, "protocol": split.protocol, "protocol_id": "p", "model": "vit"}
    facts |= {"pretrained": "none", "data": dataset.facts(split) | {"split_warnings": []}}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json())
    (folder / "run.json").write_text('{"sessions": [{"status": "finished"}]}')
    (folder / "metrics.jsonl").write_text("")
    predictions.write(table, folder / "predictions")
    splits = results.summarise(table, positive="malignant", n_resamples=10)
    write_json(folder / "results.json", facts | {"splits": splits})
    return True


@pytest.fixture
def planned(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> list[protocols.Plan]:
    """Two folds on images below `tmp_path`, trained by `pretend_to_train`."""
    monkeypatch.setattr(loop, "train_and_evaluate", pretend_to_train)
    config = tiny_config.get_config()
    config.data.root = str(images(tmp_path / "images"))
    config.data.prepared_dir = str(tmp_path / "prepared")
    config.data.magnification = "100X"
    config.evaluation.resamples = 10
    return protocols.plans(config, ["image_with_copies"], [], 2)


def replace_images(tmp_path: pathlib.Path, seed: int = 1) -> None:
    """Replace the images by others of the same names."""
    before = {path.name for path in (tmp_path / "images").rglob("*.png")}
    shutil.rmtree(tmp_path / "images")
    assert {path.name for path in images(tmp_path / "images", seed).rglob("*.png")} == before


def test_a_finished_fold_on_other_data_is_refused_by_name(
    tmp_path: pathlib.Path, planned: list[protocols.Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "runs"
    first = protocols.measure(planned, workdir)
    assert first is not None
    assert protocols.measure(planned, workdir) == first
    shutil.rmtree(workdir / "image_with_copies-100X" / "fold_1")
    replace_images(tmp_path)
    monkeypatch.setattr(loop, "train_and_evaluate", None)  # nothing may be trained
    with pytest.raises(
        RunError, match=r"trained on other data:\n.*/fold_0: split .*; data [0-9a-f]{16}, now"
    ) as caught:
        protocols.measure(planned, workdir)
    assert "fold_1" not in str(caught.value)
    assert "Delete these folders" in str(caught.value)
    # The remedy works.
    shutil.rmtree(workdir / "image_with_copies-100X" / "fold_0")
    monkeypatch.setattr(loop, "train_and_evaluate", pretend_to_train)
    assert protocols.measure(planned, workdir) is not None


def test_more_folds_than_groups_are_refused_before_training(
    tmp_path: pathlib.Path, planned: list[protocols.Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train_and_evaluate", None)  # nothing may be trained
    many = protocols.plans(planned[0].config, ["image_with_copies", "case"], [], 11)
    with pytest.raises(DataError, match=r"case-100X/fold_0: the data have 10 cases .*kfolds=11: use at most 10 folds"):
        protocols.measure(many, tmp_path / "runs")


def test_data_that_change_while_a_study_runs_are_not_pooled(
    tmp_path: pathlib.Path, planned: list[protocols.Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = itertools.count(1)

    def train(config: ConfigDict, folder: pathlib.Path, **_: object) -> bool:
        pretend_to_train(config, folder)
        replace_images(tmp_path, next(seeds))
        return True

    monkeypatch.setattr(loop, "train_and_evaluate", train)
    with pytest.raises(RunError, match=r"one table, but their data differ:\n.*fold_0: data .*\n.*fold_1: data "):
        protocols.measure(planned, tmp_path / "runs")
    models = dict.fromkeys(("vit", "other"), planned[0].config)
    monkeypatch.setattr(compare, "_row", lambda *arguments: {"model": arguments[0]})
    with pytest.raises(RunError, match="one table, but their data differ"):
        compare.compare(models, tmp_path / "models")


def test_folds_that_overlap_or_leave_images_out_are_refused(
    tmp_path: pathlib.Path, planned: list[protocols.Plan]
) -> None:
    workdir = tmp_path / "runs"
    protocols.measure(planned, workdir)
    folds = [workdir / name / "predictions" for name in planned[0].runs]
    tables = [predictions.read(path) for path in folds]
    predictions.write(tables[1].iloc[1:], folds[1])
    with pytest.raises(RunError, match="0 images are tested by several folds, 1 by none; delete image_with_copies"):
        protocols.measure(planned, workdir)
    predictions.write(pd.concat([tables[1].iloc[1:], tables[0].iloc[:1]], ignore_index=True), folds[1])
    with pytest.raises(RunError, match="1 images are tested by several folds, 1 by none"):
        protocols.measure(planned, workdir)


def test_official_folds_that_overlap_say_so(tmp_path: pathlib.Path, planned: list[protocols.Plan]) -> None:
    config = planned[0].config
    names = sorted(record.image_id for record in open_dataset(config.data).records)
    sides = {name: "test" if name in (names[0], names[-1]) else "train" for name in names}
    for fold in range(1, 6):
        write_fold(tmp_path / "folds", fold, sides)
    config.data.split.folds_dir = str(tmp_path / "folds")
    text = protocols.measure(protocols.plans(config, ["folds_with_copies"], [], 0), tmp_path / "runs")
    assert text is not None
    assert "warning: 8 images are tested by several folds, and count once for each of them" in text


def test_runs_of_earlier_versions_without_a_hash_of_their_data_are_kept(
    tmp_path: pathlib.Path, planned: list[protocols.Plan]
) -> None:
    workdir = tmp_path / "runs"
    protocols.measure(planned, workdir)
    runs = {workdir / name: config for name, config in planned[0].runs.items()}
    for folder in runs:
        content = json.loads((folder / "results.json").read_text())
        del content["data"]["hash"]
        (folder / "results.json").write_text(json.dumps(content))
    check_data(runs)
    content["split_hash"] = "other"
    check_same(dict.fromkeys(runs, content), "data", "split")
    (folder / "results.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="fold_1: split other, now"):
        check_data(runs)


def test_a_run_resumes_only_on_the_same_data(tmp_path: pathlib.Path, planned: list[protocols.Plan]) -> None:
    config = planned[0].config
    before = open_dataset(config.data)
    split = before.split(build.split_spec(config))
    meta = {"split": split.to_json(), "data": before.facts(split)}
    before.check_unchanged(split, meta, tmp_path)
    replace_images(tmp_path)
    after = open_dataset(config.data)
    with pytest.raises(DataError, match=r"changed since the run began \(data .*, now .*\); point --config\.data\.root"):
        after.check_unchanged(split, meta, tmp_path)
    del meta["data"]["hash"]
    after.check_unchanged(split, meta, tmp_path)
    with pytest.raises(DataError, match=r"began \(split .*, now"):
        after.check_unchanged(after.split(build.split_spec(config)), meta, tmp_path)


def test_stored_transfer_predictions_belong_to_their_images(
    tmp_path: pathlib.Path, planned: list[protocols.Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = planned[0].config
    dataset = open_dataset(config.data)
    meta = {"classes": dataset.classes, "step": 3, "split": dataset.split(build.split_spec(config)).to_json()}
    trained = types.SimpleNamespace(config=config, meta=meta, layout=None, program=None, model=None, stain=None)
    calls = []

    def predict(*arguments: object) -> pd.DataFrame:
        calls.append(arguments)
        return class_table(n=10)

    monkeypatch.setattr(transfer.loading, "load", lambda path: trained)
    monkeypatch.setattr(transfer.build, "loader_spec", lambda *arguments, **options: None)
    monkeypatch.setattr(transfer.evaluate, "predict_split", predict)
    for _ in range(2):
        transfer._predict_test_cases(tmp_path)
    assert len(calls) == 1
    replace_images(tmp_path)
    transfer._predict_test_cases(tmp_path)
    assert len(calls) == 2


def test_a_run_is_finished_with_the_same_config_its_results_and_its_status(tmp_path: pathlib.Path) -> None:
    config = ConfigDict({"seed": 1})
    assert not finished(tmp_path, config), "an empty folder"
    (tmp_path / "config.json").write_text(config.to_json())
    (tmp_path / "run.json").write_text('{"sessions": [{"status": "interrupted"}, {"status": "finished"}]}')
    assert not finished(tmp_path, config), "no results"
    (tmp_path / "results.json").write_text("{}")
    assert finished(tmp_path, config)
    assert not finished(tmp_path, ConfigDict({"seed": 2})), "another config"
    for run_file in ('{"sessions": [{"status": "finished"}, {"status": "running"}]}', '{"sessions": []}', "{", "{}"):
        (tmp_path / "run.json").write_text(run_file)
        assert not finished(tmp_path, config), run_file
    whole = '{"sessions": [{"status": "finished"}]}'
    (tmp_path / "run.json").write_text(whole)
    for name in ("config.json", "run.json", "results.json"):
        before = (tmp_path / name).read_bytes()
        for damaged in (b"", before[:-2], b"\xff\0", b"[]"):
            (tmp_path / name).write_bytes(damaged)
            assert not finished(tmp_path, config), (name, damaged)
        (tmp_path / name).write_bytes(before)
    assert finished(tmp_path, config)
