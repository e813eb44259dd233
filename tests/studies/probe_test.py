"""`histojax probe`: folds of its protocols, rows beside the baselines, and what the command writes."""

import csv
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict

from data_pipelines.breakhis import filenames
from data_pipelines.errors import DataError
from data_pipelines.images import decode_rgb
from histojax.cli import probe as cli
from histojax.core.errors import RunError
from histojax.evaluation import feature_files, predictions, results
from histojax.evaluation.colour import baseline
from histojax.evaluation.feature_files import FeatureTable
from histojax.inference.model_input import ModelInput
from histojax.studies.probe import embedding, heads, inputs, plans, probe, rows
from tests.conftest import ROOT, WriteImages
from tests.helpers.command import histojax

_SLIDES = [("B_F", "100A"), ("B_F", "100B"), ("B_TA", "200"), ("B_A", "300"), ("B_A", "350")]
_SLIDES += [("M_DC", "400"), ("M_DC", "500C"), ("M_DC", "500D"), ("M_LC", "600"), ("M_MC", "700")]


def _names(per_slide: int = 4, magnification: int = 200) -> list[str]:
    return [
        f"{kind}/SOB_{kind}-14-{slide}-{magnification}-{i:03d}.png"
        for kind, slide in _SLIDES
        for i in range(1, per_slide + 1)
    ]


def _write(path: pathlib.Path, names: list[str], signal: float = 3.0, **columns: list[str]) -> pathlib.Path:
    x = np.random.default_rng(len(path.stem)).normal(size=(len(names), 5)).astype(np.float32)
    x[:, 0] += signal * np.array(["SOB_M" in name or name.startswith("tumor") for name in names])
    facts = pd.DataFrame({"image_id": names, **columns}, dtype=object)
    feature_files.write(path, FeatureTable(facts, x, {"model": "m", "source": "nowhere"}))
    return path


@pytest.fixture
def features(tmp_path: pathlib.Path, write_images: WriteImages, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("HISTOJAX_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(baseline, "_TREES", 10)
    write_images(tmp_path / "images", _names())
    return _write(tmp_path / "net.parquet", _names())


def test_a_file_gives_the_table_of_its_images(tmp_path: pathlib.Path, features: pathlib.Path) -> None:
    other = _write(tmp_path / "other.npz", _names()[::-1])
    data = inputs.read({"net": features, "other": other}, tmp_path / "images")
    assert len(data.records) == 40
    record = data.records[0]
    assert (record.image_id, record.label, record.case_id) == ("SOB_B_A-14-300-200-001", "benign", "14-300")
    assert data.classes == filenames.CLASSES
    first, second = data.features.values()
    stored = feature_files.read(other)
    order = stored.facts["image_id"].tolist().index("B_A/SOB_B_A-14-300-200-001.png")
    np.testing.assert_array_equal(second[0], stored.features[order])
    assert (first[:, 0][data.labels == 1].mean() - first[:, 0][data.labels == 0].mean()) > 2
    np.testing.assert_array_equal(data.pixels(0), decode_rgb(data.sources[0].path.read_bytes()))
    assert (
        data.hash != inputs.read({"net": features}, None).hash
    )  # without images, equal features stand for equal pixels
    assert inputs.read({"net": features}, None, task="subtype").classes == ("A", "F", "TA", "DC", "LC", "MC")


def test_files_that_do_not_fit_are_refused(tmp_path: pathlib.Path, features: pathlib.Path) -> None:
    other = _write(tmp_path / "other.parquet", _names()[:-1])
    with pytest.raises(RunError, match=r"net\.parquet and .*other\.parquet hold different images \(1 are in one"):
        inputs.read({"net": features, "other": other}, None)
    (tmp_path / "images" / "B_A" / "SOB_B_A-14-300-200-001.png").unlink()
    with pytest.raises(RunError, match=r"1 of 40 images are missing, such as B_A/SOB_B_A-14-300-200-001\.png"):
        inputs.read({"net": features}, tmp_path / "images")
    with pytest.raises(RunError, match="no image of magnification 40X"):
        inputs.read({"net": features}, None, magnification="40X")
    with pytest.raises(RunError, match="column label: empty for 2 of 2 images"):
        inputs.read({"tiles": _write(tmp_path / "tiles.parquet", ["a.png", "b.png"])}, None)
    with pytest.raises(RunError, match="--task=binary: the protocol 'thunder' needs --task subtype"):
        inputs.check_protocol("thunder", "binary", "")
    with pytest.raises(DataError, match="is not one of auto"):
        plans.plan(inputs.read({"net": features}, None), "case_", kfolds=0, folds_dir=None, seed=0)


def test_groups_choose_and_fractions_grow(features: pathlib.Path) -> None:
    data = inputs.read({"net": features}, None)
    plan = plans.plan(data, "case", kfolds=3, folds_dir=None, seed=1)
    cases = data.records.column("case_id")
    assert sorted(np.concatenate([fold.test for fold in plan.folds]).tolist()) == list(range(40))
    for fold in plan.folds:
        assert not set(cases[fold.train]) & set(cases[fold.test])
        pairs = plans.choosing_folds(plan, fold, data.labels, seed=0)
        assert len(pairs) > 1
        assert sorted(np.concatenate([chosen for _, chosen in pairs]).tolist()) == sorted(fold.train.tolist())
        for fitted, chosen in pairs:
            assert not set(cases[fitted]) & set(cases[chosen])
            assert not set(chosen) & set(fold.test)
    train = plan.folds[0].train
    tenth, half = (plans.fraction_of(train, data.labels, fraction, seed=3) for fraction in (0.01, 0.5))
    assert np.bincount(data.labels[tenth]).tolist() == [1, 1]
    assert set(tenth) < set(half) < set(train)
    assert np.bincount(data.labels[half]).tolist() == [round(n / 2) for n in np.bincount(data.labels[train])]
    assert not plans.choosing_folds(plan, plans.Fold("", tenth, tenth[:0], tenth), data.labels, 0)


def test_nanopath_tests_the_validation_side_of_thunder(tmp_path: pathlib.Path) -> None:
    known = plans.protocols.REGISTRY["thunder"]
    train = [f"SOB_{'B' if kind in ('F', 'TA') else 'M'}_{kind}_14-99{i}" for i, kind in enumerate(known.classes)]
    patients = [*known.test_patients, *known.val_patients, *train]
    names = [f"{'-'.join(p.rsplit('_', 1))}-40-{i:03d}.png" for p in patients for i in (1, 2)]
    data = inputs.read({"f": _write(tmp_path / "f.parquet", names)}, None, task="subtype", magnification="40X")
    folds = {}
    for name in ("thunder", "nanopath", "eva"):
        (folds[name],) = plans.plan(data, name, kfolds=5, folds_dir=None, seed=0).folds
    of = data.records.column("patient_id")
    assert set(of[folds["thunder"].test]) == set(known.test_patients) == set(of[folds["eva"].test])
    assert set(of[folds["nanopath"].test]) == set(known.val_patients) == set(of[folds["thunder"].val])
    assert set(of[folds["eva"].train]) == {*known.val_patients, *train}
    np.testing.assert_array_equal(folds["nanopath"].train, folds["thunder"].train)


def test_five_runs_stand_beside_one(features: pathlib.Path) -> None:
    data = inputs.read({"net": features}, None)
    plan = plans.plan(data, "case", kfolds=2, folds_dir=None, seed=0)

    def five_runs(problem: heads.Problem) -> list[rows.Fitted]:
        draws = [np.random.default_rng(seed).uniform(size=len(problem.test)) for seed in range(5)]
        return [(np.stack([1 - p, p], 1), {"seed": seed}) for seed, p in enumerate(draws)]

    several = rows.fit(data, plan, "net", "five runs", data.features["net"], five_runs, 0)
    assert several.choices == tuple({"seed": seed} for seed in range(5)) * 2
    constant = rows.of_constant(data, plan, 0)
    assert (several.runs, len(several.tables)) == (5, 10)
    found = probe._difference(constant, several, "malignant", probe.Options(resamples=0))
    pooled = results.summarise(predictions.pool_folds(several.tables), n_resamples=0)["test"]["image"]["accuracy"][
        "value"
    ]
    tables = pd.concat(several.tables)
    assert len(tables) == 200
    assert pooled == pytest.approx((tables["prob_malignant"] > 0.5).eq(tables["label"] == "malignant").mean())
    always = pd.concat(constant.tables)
    always_right = (always["prob_malignant"] > 0.5).eq(always["label"] == "malignant").mean()
    assert found["differences"]["accuracy"]["value"] == pytest.approx(pooled - always_right)


def test_command_writes_rows_beside_the_baselines(tmp_path: pathlib.Path, features: pathlib.Path) -> None:
    command = ["probe", features, "--images", tmp_path / "images", "--protocols", "case", "--folds", 2]
    done = histojax(*command, "--fractions", "50", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "probe.json").read_text())
    (study,) = found["studies"]
    names = ["constant answer", "colour, linear", "colour and texture, linear", "colour and texture, forest"]
    names += ["net, linear", "net, knn", "net, simpleshot", "net, linear, 50% of the labels"]
    assert [row["name"] for row in study["rows"]] == names
    assert study["reference"] == "colour and texture, linear"
    by_name = {row["name"]: row for row in study["rows"]}
    assert by_name["net, linear"]["metrics"]["auroc"]["value"] > 0.9
    assert by_name["constant answer"]["metrics"]["auroc"]["value"] == 0.5
    assert by_name["net, linear"]["n_patients"] == 10
    difference = {one["row"]: one["differences"] for one in study["differences"]}["net, linear"]["accuracy"]
    values = [by_name[name]["metrics"]["accuracy"]["value"] for name in ("net, linear", study["reference"])]
    assert difference["value"] == pytest.approx(values[0] - values[1])
    assert difference["low"] < difference["value"] < difference["high"]
    assert sum(fold["test"] for fold in study["folds"]) == by_name["net, linear"]["n_images"] == 40
    with open(tmp_path / "out" / "probe.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8
    assert float(lines[4]["auroc_value"]) == by_name["net, linear"]["metrics"]["auroc"]["value"]
    assert "measuring colour and texture of 40 images" in done.stderr
    assert "net, knn" in done.stdout
    assert "note: no row of random weights: " in done.stdout
    # A split of a run, without the images' colours known before; the reference is any row.
    split = tmp_path / "split.csv"
    split.write_text(
        "image_id,split\n" + "".join(f"{name},{'test' if '-001' in name else 'train'}\n" for name in _names())
    )
    command = ["probe", features, "--images", tmp_path / "images", "--split", split, "--heads", "knn"]
    done = histojax(*command, "--reference", "net, knn", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "measuring" not in done.stderr
    (study,) = json.loads((tmp_path / "out" / "probe.json").read_text())["studies"]
    assert (study["folds"][0]["test"], study["reference"]) == (10, "net, knn")


def _write_study(folder: pathlib.Path, tables: Iterable[pd.DataFrame]) -> pathlib.Path:
    """Write what `histojax protocols` leaves of these predictions, fold by fold."""
    runs = []
    for fold, table in enumerate(tables):
        runs.append(f"case-200X/fold_{fold}")
        predictions.write(table, folder / runs[-1] / "predictions")
        (folder / runs[-1] / "config.json").write_text("{}")
    row = {"protocol": "case", "model": "m", "pretrained": "none", "runs": runs}
    (folder / "protocols.json").write_text(json.dumps({"rows": [row], "transfer": None}))
    return folder


def test_trained_networks_stand_beside_frozen_features(tmp_path: pathlib.Path, features: pathlib.Path) -> None:
    data = inputs.read({"net": features}, None)
    settings = rows.Settings(("linear",), C=1.0)
    tables = {}
    for name, kfolds in (("same", 2), ("other", 3)):
        plan = plans.plan(data, "case", kfolds=kfolds, folds_dir=None, seed=0)
        (fitted,) = rows.of_features(data, plan, "net", data.features["net"], settings)
        tables[name] = fitted.tables
    studies = [_write_study(tmp_path / name, ts) for name, ts in tables.items()]
    noise = _write(tmp_path / "noise.parquet", _names(), signal=0.3)
    command = ["probe", features, noise, *studies, "--protocols", "case", "--folds", 2, "--heads", "linear", "--C", 1]
    done = histojax(*command, "--reference", "noise, linear", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert f"note: {studies[1]} has no runs that tested the same images in the same folds" in done.stdout
    found = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert [made["name"] for made in found["trained"]] == ["same", "other"]
    (study,) = found["studies"]
    by_name = {row["name"]: row for row in study["rows"]}
    assert list(by_name) == ["constant answer", "net, linear", "noise, linear", "same, trained"]
    # The predictions are those of the first file's classifier.
    assert by_name["same, trained"]["metrics"] == by_name["net, linear"]["metrics"]
    assert by_name["same, trained"]["folds"] == by_name["net, linear"]["folds"]
    tests = {one["row"]: one["auroc_tests"]["malignant"]["clusters"] for one in study["differences"]}
    ordered = sorted(tests.values(), key=lambda test: test["p"])
    adjusted = np.maximum.accumulate([min(1.0, (3 - i) * test["p"]) for i, test in enumerate(ordered)])
    assert [test["holm_p"] for test in ordered] == pytest.approx(adjusted.tolist())
    assert 0 < tests["net, linear"]["p"] < tests["net, linear"]["holm_p"] < 0.05
    line = next(line for line in done.stdout.splitlines() if line.startswith("same, trained"))
    assert line.split()[-1] == f"{tests['same, trained']['holm_p']:.3f}"

    done = histojax("probe", *studies)
    assert (done.returncode, "give a file of features as well" in done.stderr) == (1, True)
    (studies[0] / "protocols.json").write_text("{")
    done = histojax(*command)
    assert (done.returncode, "protocols.json: damaged" in done.stderr) == (1, True)


class Colours:
    """Has the interface of an `Embedder`; the features are an image's mean colours, and noise for random weights."""

    input, batch_size, layer, width, digest = ModelInput(8), 16, "pooled", 3, "colours"
    image_size = 8
    built: ClassVar[list[str]] = []

    def __init__(self, source: str, seed: int | None):
        self.seed, self.metadata = seed, {"model": "vit", "options": {"depth": 1}, "layer": "pooled", "image_size": 8}
        self.metadata |= {"preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 2]}, "source": source}
        self.built.append(source)

    @classmethod
    def of_run(cls, run: pathlib.Path) -> "Colours":
        return cls(run.name, None)

    @classmethod
    def of_weights(cls, config: ConfigDict, layer: str, stain: None) -> "Colours":
        assert (config.model.name, config.model.options.depth, config.data.image_size) == ("vit", 1, 8)
        assert (tuple(config.data.std), config.model.pretrained, layer) == ((1, 1, 2), "", "pooled")
        return cls(f"seed {config.seed}", config.seed)

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for images in batches:
            noise = 0 if self.seed is None else np.random.default_rng(self.seed).normal(size=(len(images), 3))
            yield (images.mean((1, 2)) + noise).astype(np.float32)


def test_a_run_is_embedded_once_beside_its_network_with_random_weights(
    tmp_path: pathlib.Path, features: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "Embedder", Colours)
    run, out = ROOT / "tests" / "fixtures" / "runs_of_0_1" / "vit", tmp_path / "out"
    command = ["probe", run, "--images", tmp_path / "images", "--protocols", "case", "--folds", 2, "--heads", "linear"]
    command += ["--C", 1, "--random_weights", 2, "--output", out]
    done = histojax(*command)
    assert done.returncode == 0, done.stderr
    assert Colours.built == ["vit", "seed 0", "seed 1"]
    found = json.loads((out / "probe.json").read_text())
    by_name = {row["name"]: row for row in found["studies"][0]["rows"]}
    null = by_name["random weights (vit), linear"]
    assert (null["runs"], null["n_images"], by_name["vit, linear"]["n_images"]) == (2, 80, 40)
    assert [made["made_by"]["source"] for made in found["features"]] == ["vit", "seed 0", "seed 1"]
    assert histojax(*command).stdout == done.stdout
    assert len(Colours.built) == 3  # the second command embedded nothing
    assert f"{run} is a run: give the images with --images ROOT" in histojax("probe", run).stderr


def test_command_without_images_and_with_errors(tmp_path: pathlib.Path, features: pathlib.Path) -> None:
    out = ["--output", tmp_path / "out"]
    (tmp_path / "s.csv").write_text("image_id,split\n" + "".join(f"{name},train\n" for name in _names()))
    done = histojax("probe", features, "--protocols", "image,case", "--folds", 0, "--heads", "linear", "--C", 1, *out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("note: no rows of colour and texture: give the images with --images ROOT") == 2
    found = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert [study["protocol"] for study in found["studies"]] == ["image", "case"]
    for flags, message in (
        (["--heads", "lda"], "--heads: lda is not one of linear, knn, simpleshot"),
        (["--fractions", "0"], "--fractions: '0' is not a percentage above 0"),
        (["--protocols", "folds"], "the protocol 'folds' needs --folds_dir DIR"),
        (["--split", tmp_path / "s.csv"], "the split s.csv has 40 training and 0 test images here"),
        (["--heads", "knn", "--C", "1"], "--C: has an effect only with 'linear' in --heads"),
        (
            ["--reference", "nett, linear", "--heads", "linear", "--folds", "2"],
            "no such row (did you mean 'net, linear'?)",
        ),
    ):
        done = histojax("probe", features, *flags, *out)
        assert done.returncode == 1
        assert message in done.stderr
    assert cli.HEADS == rows.HEADS
