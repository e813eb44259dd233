"""LDCSF on multi-label tiles as users run it: train, kill, resume, evaluate a copy and at another image size."""

import json
import pathlib
import shutil
import signal
import sys

import pandas as pd
import pytest

from data_pipelines.synthetic.tiles import TilesSyntheticSpec, generate_tiles
from histojax.evaluation import predictions, results
from histojax.evaluation.thresholds import choose_thresholds
from histojax.training.checkpoint import find
from tests.conftest import ROOT, SHARED
from tests.helpers.command import histojax
from tests.helpers.programs import assert_same_run, last_logged_step
from tests.helpers.warm_start import run, run_until

pytestmark = pytest.mark.slow
CONFIG = "configs/ldcsf_liver.py:smoke"
LABELS = ["interstitial", "necrosis", "non_tumor", "tumor"]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    spec = TilesSyntheticSpec(patients=10, tiles_per_slide=6, size=48)
    return generate_tiles(tmp_path_factory.mktemp("tiles") / "synthetic", spec)


def command(workdir: pathlib.Path, root: pathlib.Path, *more: str) -> list[str]:
    # Two blocks in the last stage, so that one of them has shifted windows.
    small = {"model.options.depths": "(1, 2)", "model.options.heads": "(1, 2)", "model.options.embed_dim": 16}
    small |= {"model.options.resnet_blocks": 1, "train.ema_decay": 0.0, "train.accumulate": 2}
    small |= {"data.root": root, "data.image_size": 32, "train.batch_size": 8, "train.epochs": 3, "train.log_every": 1}
    small |= {"sharding.cpu_devices": 2, "checkpoint.every_epochs": 1, "evaluation.resamples": 200}
    fields = [f"--config.{key}={value}" for key, value in small.items()]
    return [sys.executable, "-m", "histojax.main", "--config", CONFIG, "--workdir", str(workdir), *fields, *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiles: pathlib.Path) -> pathlib.Path:
    """A run that was never interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    done = run(command(workdir, tiles))
    assert done.returncode == 0, done.stderr
    assert "SYNTHETIC" in done.stdout
    assert "0.9847" in done.stdout, "the paper's accuracy of each label must be printed beside ours"
    return workdir


def test_results_have_every_metric_of_every_label(finished: pathlib.Path) -> None:
    found = json.loads((finished / "results.json").read_text())
    table = predictions.read(finished / "predictions.parquet")
    split = pd.read_csv(finished / "split.csv")
    assert found["protocol"].startswith("patient-disjoint")
    assert found["reported"]["label_accuracy"]["necrosis"] == 0.996
    for side, block in found["splits"].items():
        assert block["n_images"] == (split["split"] == side).sum()
        assert list(block["labels"]) == LABELS
        for label, estimates in block["labels"].items():
            assert estimates["n_positive"] == table.loc[table["split"] == side, f"label_{label}"].sum()
            assert {"accuracy", "precision", "recall", "f1", "auroc", "average_precision"} <= estimates.keys()
        assert {"subset_accuracy", "hamming_loss", "mean_average_precision"} <= block["image"].keys()
    assert not split[split["split"] != ""].groupby("group")["split"].nunique().gt(1).any()
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert any("val/mean_average_precision" in line for line in lines)


def test_the_test_thresholds_are_fitted_on_validation(finished: pathlib.Path) -> None:
    """Fitting them again to the validation rows of the prediction table gives the thresholds used for the test."""
    found = json.loads((finished / "results.json").read_text())
    table = predictions.read(finished / "predictions.parquet")
    val = table[table["split"] == "val"]
    fitted = choose_thresholds(
        val[[f"label_{name}" for name in LABELS]].to_numpy(), val[[f"prob_{name}" for name in LABELS]].to_numpy(), "f1"
    )
    used = [found["splits"]["test"]["labels"][name]["threshold"] for name in LABELS]
    assert used == pytest.approx(fitted.tolist(), abs=1e-6)
    assert any(abs(value - 0.5) > 1e-3 for value in used)
    again = results.summarise(table, n_resamples=200, seed=0, thresholds=dict(zip(LABELS, used, strict=True)))
    assert again == found["splits"]


@pytest.mark.filterwarnings("ignore:Sharding info not provided")  # the reader of this test wants plain arrays
def test_an_interrupted_and_killed_run_ends_bitwise_the_same(
    tmp_path: pathlib.Path, tiles: pathlib.Path, finished: pathlib.Path
) -> None:
    workdir = tmp_path / "killed"
    words = command(workdir, tiles)
    code, error = run_until(words, lambda: last_logged_step(workdir) >= 2, signal.SIGTERM)
    assert code == 75, error
    now = last_logged_step(workdir)
    run_until(words, lambda: last_logged_step(workdir) >= now + 2, signal.SIGKILL)
    done = run(words)
    assert done.returncode == 0, done.stderr
    assert_same_run(finished, workdir)


def test_eval_needs_only_the_checkpoint_and_accepts_another_image_size(
    tmp_path: pathlib.Path, finished: pathlib.Path
) -> None:
    copy = shutil.copytree(find(finished), tmp_path / "copy")
    words = [sys.executable, "-m", "histojax.main", "--mode=eval", f"--checkpoint={copy}", f"--workdir={tmp_path}"]
    done = run(words)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "results.json").read_text())
    trained = json.loads((finished / "results.json").read_text())
    assert again["splits"] == trained["splits"]

    done = run([*words, "--image_size=64"])
    assert done.returncode == 0, done.stderr
    larger = json.loads((tmp_path / "results.json").read_text())
    assert larger["image_size"] == 64
    assert larger["splits"]["test"]["n_images"] == trained["splits"]["test"]["n_images"]
    assert larger["splits"] != trained["splits"]

    done = run([*words, "--image_size=100"])
    assert done.returncode == 1
    assert "96 or 128" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config.data.image_size=50"], "32 or 64"),
        (["--config.loss.class_weights=inverse"], "loss.class_weights has no meaning"),
        (["--config.train.best_metric=gmean"], "train.best_metric='gmean' is not one of loss, accuracy, mean_average"),
        (["--config.data.sampling=balanced"], "data.sampling=balanced needs one class per image"),
        (["--config.data.magnification=40X"], "magnification"),
        (["--config.data.tiles.labels=('tumor','fat')"], "fat"),
        (["--config.data.split.protocol=case"], "protocol"),
        (["--config.model.options.ldc=never"], "ldc='never'"),
    ],
)
def test_invalid_settings_are_reported(
    tmp_path: pathlib.Path, tiles: pathlib.Path, monkeypatch: pytest.MonkeyPatch, more: list[str], message: str
) -> None:
    monkeypatch.chdir(ROOT)  # in this process, because only the message matters
    done = histojax("train", *command(tmp_path / "run", tiles, *more)[3:])
    assert done.returncode == 1
    assert message in done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_real_images_with_masks_need_only_their_root(tmp_path: pathlib.Path) -> None:
    root = SHARED / "wsss4luad_part"
    if not root.is_dir():
        pytest.skip(f"real images are not here ({root})")
    done = run(command(tmp_path / "run", root, "--config.train.epochs=1"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(found["splits"]["test"]["labels"]) == ["tumor", "stroma", "normal"]
    assert found["protocol"].startswith("source-image-disjoint")
    assert found["splits"]["test"]["resampled"] == "source image"
    assert "reported" not in found, "the paper has no results for these labels"
