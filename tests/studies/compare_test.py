"""`histojax compare` and `histojax models` as users run them: several models, one table, resumable model by model."""

import csv
import json
import pathlib
import sys

import pytest

from configs import baselines_breakhis
from data_pipelines.synthetic.generator import SyntheticSpec, generate
from histojax import models
from histojax.cli import model_list
from histojax.core.errors import RunError
from histojax.models.cost import cost
from histojax.models.ops import kernels
from histojax.studies import compare
from tests.helpers.programs import run

CONFIG = "configs/baselines_breakhis.py:smoke"
HISTOJAX = [sys.executable, "-m", "histojax"]


@pytest.mark.slow
def test_models_are_trained_once_and_stand_in_one_table(tmp_path: pathlib.Path) -> None:
    spec = SyntheticSpec(cases_per_subtype=(1, 2, 1, 1, 2, 1, 1, 1), images_per_patient=2, magnifications=("100X",))
    root = generate(tmp_path / "images", spec)
    words = [*HISTOJAX, "compare", "--config", CONFIG, f"--workdir={tmp_path / 'runs'}"]
    words += [f"--config.data.root={root}", "--config.data.image_size=32", "--config.train.batch_size=8"]
    words += ["--config.evaluation.resamples=50", "--config.train.epochs=1", "--models=resnet50,dala_resnet50"]
    done = run(words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("model ") and "GMean" in line)
    assert [line.split()[0] for line in lines[start + 1 :]] == ["resnet50", "dala_resnet50"]
    assert lines[start + 2].endswith("0.987"), "the paper's accuracy at 100X"
    rows = json.loads((tmp_path / "runs" / "comparison.json").read_text())
    for row in rows:
        block = json.loads((tmp_path / "runs" / row["model"] / "results.json").read_text())["splits"]["test"]
        assert row["gmean"] == block["image"]["gmean"]
        assert row["patient_recognition_rate"] == block["patient"]["recognition_rate"]
    assert len({row["split_hash"] for row in rows}) == 1
    with open(tmp_path / "runs" / "comparison.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert float(table[1]["accuracy"]) == pytest.approx(rows[1]["accuracy"]["value"])

    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("checkpoints/**/*")}
    again = run(words)
    assert again.returncode == 0, again.stderr
    assert "resnet50 (1 of 2): done before" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("checkpoints/**/*")} == trained
    assert again.stdout.splitlines()[-3:] == lines[-3:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "--config", CONFIG], "needs --config=FILE and --workdir=DIR"),
        (
            ["compare", "--config", CONFIG, "--workdir=x", "--models=resnet50,alexnet"],
            "alexnet not among dala_resnet50",
        ),
        (["compare", "--config", "configs/ldcsf_liver.py", "--workdir=x"], "compare.models is empty"),
        (["compare", "--config", f"{CONFIG}y", "--workdir=x"], "unknown variant ':smokey' of this config"),
        (
            ["train"],
            "unknown verb 'train'; there are models, convert, compare, predict, explain, export, slide, audit, "
            "protocols, report",
        ),
        (["models", "all"], "unrecognized arguments: all"),
        (["convert", "--output=x"], "give either --weights and --model (or --config), or --checkpoint"),
        (["convert", "--output=x", "--checkpoint=none"], "none"),
    ],
)
def test_mistakes_are_told_in_words(words: list[str], message: str) -> None:
    done = run([*HISTOJAX, *words])
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_each_model_has_the_command_lines_fields_and_its_own_rate() -> None:
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
    with pytest.raises(RunError, match="no such config file"):
        compare.configs("configs/none.py", {}, ())


def test_the_configs_models_exist() -> None:
    assert set(baselines_breakhis.MODELS) <= set(models.MODELS)
    with pytest.raises(ValueError, match="exclude each other"):
        baselines_breakhis.get_config("resnet50,vgg16")


def test_the_cost_is_that_of_the_model() -> None:
    parameters, flops = cost("resnet50", 1000, 224, {})
    assert parameters == 25_557_032
    assert 7.5e9 < flops < 9e9  # 4.1 G multiply-adds, two operations each, and the rest


def test_the_cost_is_counted_without_kernels_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"depths": (1,), "heads": (2,), "embed_dim": 32}
    here = cost("swin_tiny_patch4_window7_224", 2, 56 * 4, small)
    monkeypatch.setattr(kernels, "usable_here", lambda: True)
    monkeypatch.setattr(kernels, "call", None)  # nobody does
    assert kernels.usable()
    assert cost("swin_tiny_patch4_window7_224", 2, 56 * 4, small) == here


def test_help_lists_the_verbs_and_models_lists_the_models() -> None:
    assert "compare" in run([*HISTOJAX, "--help"]).stdout
    done = run([*HISTOJAX, "models"])
    assert done.returncode == 0, done.stderr
    listed = {line.split()[0]: line for line in done.stdout.splitlines()[1:]}
    assert set(listed) == set(models.MODELS)
    assert "28.29" in listed["swin_tiny_patch4_window7_224"]
    assert "stage1, stage2, stage3, stage4" in listed["swin_tiny_patch4_window7_224"]


@pytest.mark.parametrize("name", models.MODELS)
def test_named_maps_get_smaller_and_never_larger(name: str) -> None:
    maps = model_list.feature_maps(name)
    heights = [shape[0] for shape in maps.values()]
    assert heights == sorted(heights, reverse=True)
    assert heights[-1] == {"vit_base_patch16_224": 14, "vit": 14, "dinov2_vitb14": 16}.get(name, 7)
    assert model_list.PARITY.keys() == models.MODELS.keys()
