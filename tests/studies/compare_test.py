"""`histojax compare`: several models, one table, resumable model by model."""

import csv
import json
import logging
import pathlib
import sys

import pytest

from configs import baselines_breakhis
from data_pipelines.synthetic.generator import SyntheticSpec, generate
from histojax import models
from histojax.core.errors import RunError
from histojax.studies import compare
from histojax.training import loop
from tests.helpers import quick_run
from tests.helpers.compare_config import MODELS
from tests.helpers.warm_start import run

CONFIG = "configs/baselines_breakhis.py:smoke"
TINY = "tests/helpers/compare_config.py"


@pytest.mark.slow
def test_models_are_trained_once_and_compared_in_one_table(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root, workdir = quick_run.images(tmp_path / "images", 2), tmp_path / "runs"
    by_model = compare.configs(TINY, {"data.root": str(root)}, ())
    text = compare.compare(by_model, workdir)
    assert text is not None
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("model ") and "GMean" in line)
    assert [line.split()[0] for line in lines[start + 1 :]] == list(MODELS)
    assert lines[start + 1].endswith("0.987"), "the paper's accuracy at 100X"
    assert lines[start + 2].endswith("  -"), "no paper states an accuracy"
    rows = json.loads((workdir / "comparison.json").read_text())
    for row in rows:
        block = json.loads((workdir / row["model"] / "results.json").read_text())["splits"]["test"]
        assert row["gmean"] == block["image"]["gmean"]
        assert row["patient_recognition_rate"] == block["patient"]["recognition_rate"]
    assert len({row["split_hash"] for row in rows}) == 1
    with open(workdir / "comparison.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert float(table[1]["accuracy"]) == pytest.approx(rows[1]["accuracy"]["value"])

    trained = {path: path.stat().st_mtime_ns for path in workdir.rglob("checkpoints/**/*")}
    assert trained
    monkeypatch.setattr(loop, "train_and_evaluate", None)  # any call fails
    with caplog.at_level(logging.INFO):
        assert compare.compare(by_model, workdir) == text
    assert "vit (1 of 2): already finished" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("checkpoints/**/*")} == trained

    # The command itself, as a process: nothing is left to train.
    words = ["compare", "--config", TINY, f"--workdir={workdir}", f"--config.data.root={root}"]
    done = run([sys.executable, "-m", "histojax", *words])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == lines[-3:]
    assert "vit (1 of 2): already finished" in done.stderr


def test_an_interrupted_study_returns_no_table(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "train_and_evaluate", lambda config, folder, **_: False)
    spec = SyntheticSpec(cases_per_subtype=(2, 0, 0, 0, 2, 0, 0, 0), images_per_patient=2, magnifications=("100X",))
    by_model = compare.configs(TINY, {"data.root": str(generate(tmp_path / "images", spec))}, ())
    assert compare.compare(by_model, tmp_path / "runs") is None
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("path", "names", "message"),
    [
        (CONFIG, ["resnet50", "alexnet"], "alexnet not among dala_resnet50"),
        ("configs/ldcsf_liver.py", [], "compare.models is empty"),
        (f"{CONFIG}y", [], "unknown variant ':smokey' of this config"),
        ("configs/none.py", [], "no such config file"),
    ],
)
def test_configs_that_cannot_be_compared_are_refused(path: str, names: list[str], message: str) -> None:
    with pytest.raises(RunError, match=message):
        compare.configs(path, {}, names)


def test_each_config_has_the_command_lines_fields_and_its_own_rate() -> None:
    found = compare.configs(CONFIG, {"train.epochs": 7}, ())
    assert tuple(found) == baselines_breakhis.MODELS
    for name, config in found.items():
        assert (config.model.name, config.train.epochs, config.data.image_size) == (
            name,
            7,
            56 if name == "dinov2_vitb14" else 64,
        )
    rates = {name: config.optimizer.learning_rate for name, config in found.items()}
    assert rates["resnet50"] == 1e-3
    assert rates["swin_tiny_patch4_window7_224"] == 3e-4
    assert found["dala_resnet50"].paper.accuracy["dala_resnet50"]["100X"] == 0.987


def test_the_configs_models_exist() -> None:
    assert set(baselines_breakhis.MODELS) <= set(models.names())
    with pytest.raises(ValueError, match="exclude each other"):
        baselines_breakhis.get_config("resnet50,vgg16")
