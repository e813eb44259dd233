"""The program as users run it: real processes that train, are killed, resume and evaluate."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_pipelines.synthetic.generator import SyntheticSpec, generate
from histojax import models
from histojax.distributed.sharding import Layout
from histojax.evaluation.thresholds import choose_thresholds
from histojax.training import build
from histojax.training.checkpoint import CheckpointError, find, read_meta
from histojax.training.state import restore_model
from tests.conftest import ROOT
from tests.helpers.command import histojax
from tests.helpers.programs import assert_same_run, last_logged_step
from tests.helpers.warm_start import run, run_until

pytestmark = pytest.mark.slow
TINY = "tests/helpers/tiny_config.py"
# CI trains the full model with the README's command.
CONFIG = f"{TINY}:dala"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    spec = SyntheticSpec(
        cases_per_subtype=(1, 2, 1, 1, 2, 1, 1, 1), images_per_patient=4, magnifications=("40X", "100X")
    )
    return generate(tmp_path_factory.mktemp("images") / "synthetic", spec)


def command(workdir: pathlib.Path, images: pathlib.Path, *more: str) -> list[str]:
    small = {"data.root": images, "data.image_size": 32, "train.batch_size": 8, "train.epochs": 2, "train.log_every": 1}
    small |= {"sharding.cpu_devices": 2, "checkpoint.every_epochs": 1}
    fields = [f"--config.{key}={value}" for key, value in small.items()]
    return [sys.executable, "-m", "histojax.main", "--config", CONFIG, "--workdir", str(workdir), *fields, *more]


def tiny(workdir: pathlib.Path, images: pathlib.Path, *more: str) -> list[str]:
    """Return the command of a run that takes seconds, for tests in which the model does not matter."""
    words = [sys.executable, "-m", "histojax.main", f"--config={TINY}:mini", f"--workdir={workdir}"]
    return [*words, f"--config.data.root={images}", "--config.sharding.cpu_devices=2", *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, images: pathlib.Path) -> pathlib.Path:
    """A run that was never interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    done = run(command(workdir, images))
    assert done.returncode == 0, done.stderr
    assert "SYNTHETIC" in done.stdout
    assert "test:" in done.stdout
    assert "\r" not in done.stderr, "there must be no progress bar without a terminal"
    return workdir


def test_a_run_writes_all_its_files(finished: pathlib.Path) -> None:
    config = json.loads((finished / "config.json").read_text())
    results = json.loads((finished / "results.json").read_text())
    record = json.loads((finished / "run.json").read_text())
    split = pd.read_csv(finished / "split.csv")
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    table = pd.read_parquet(finished / "predictions.parquet")

    assert config["model"]["name"] == "dala_resnet50"
    assert results["data"]["synthetic"] is True
    assert "SYNTHETIC" in results["data"]["description"]
    assert all("SYN" in name for name in split["image_id"])
    assert all("SYNTHETIC" in line["data"] for line in lines)
    assert record["sessions"][-1]["status"] == "finished"
    assert {"versions", "devices", "git"} <= record["sessions"][-1].keys()
    assert record["data"]["synthetic"] is True
    expected = split[split["split"].isin(["val", "test"])]
    assert sorted(table["image_id"]) == sorted(expected["image_id"])
    assert len(pd.read_csv(finished / "predictions.csv")) == len(table)
    for side in ("val", "test"):
        block = results["splits"][side]
        assert block["n_images"] == (split["split"] == side).sum()
        assert {"value", "low", "high"} <= block["image"]["gmean"].keys()
        assert "recognition_rate" in block["patient"]
    assert not split.groupby("case_id")["split"].nunique().gt(1).any()

    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    assert {"train/loss", "val/accuracy"} <= set(events.Tags()["scalars"])
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == [line["step"] for line in lines if "train/loss" in line]


def test_the_threshold_is_fitted_on_validation_and_reported_beside_one_half(finished: pathlib.Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    table = pd.read_parquet(finished / "predictions.parquet")
    meta = read_meta(find(finished))
    locked = meta["decision"]
    assert locked["class"] == "malignant"
    assert locked["rule"] == "youden"
    validation = table[table["split"] == "val"]
    positive = (validation["label"] == "malignant").to_numpy()[:, None]
    # Fitted in the epoch of the best checkpoint, whose predictions the table holds.
    (fitted,) = choose_thresholds(positive, validation[["prob_malignant"]].to_numpy(), "youden")
    assert locked["threshold"] == pytest.approx(fitted, abs=1e-6)
    assert results["thresholds"] == {"malignant": locked["threshold"]}
    test = table[table["split"] == "test"]
    for name, threshold in (("half", 0.5), ("locked", locked["threshold"])):
        block = results["splits"]["test"]["decisions"][name]
        correct = (test["prob_malignant"] >= threshold) == (test["label"] == "malignant")
        assert block["accuracy"]["value"] == pytest.approx(correct.mean())


def test_predict_labels_images_at_the_locked_threshold(
    tmp_path: pathlib.Path, finished: pathlib.Path, images: pathlib.Path
) -> None:
    output = tmp_path / "table.parquet"
    words = [sys.executable, "-m", "histojax", "predict", str(finished), str(images), "--output", str(output)]
    done = run(words)
    assert done.returncode == 0, done.stderr
    locked = read_meta(find(finished))["decision"]["threshold"]
    assert f"from this probability on: malignant {locked:.3g}" in done.stderr
    table = pd.read_parquet(output)
    assert ((table["predicted"] == "malignant") == (table["prob_malignant"] >= locked)).all()
    (temperature,) = read_meta(find(finished))["temperatures"]
    assert run([*words, "--redo", "--calibrated"]).returncode == 0
    calibrated = pd.read_parquet(output)
    assert calibrated["predicted"].tolist() == table["predicted"].tolist()
    np.testing.assert_allclose(
        np.log(calibrated["prob_malignant"] / calibrated["prob_benign"]),
        np.log(table["prob_malignant"] / table["prob_benign"]) / temperature,
        rtol=1e-6,
        atol=1e-9,
    )
    assert run([*words, "--redo", "--threshold", "malignant=0"]).returncode == 0
    assert (pd.read_parquet(output)["predicted"] == "malignant").all()


@pytest.mark.filterwarnings("ignore:Sharding info not provided")  # the reader of this test wants plain arrays
def test_an_interrupted_and_killed_run_ends_bitwise_the_same(tmp_path: pathlib.Path, images: pathlib.Path) -> None:
    workdir, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    epochs = "--config.train.epochs=6"
    done = run(tiny(undisturbed, images, epochs))
    assert done.returncode == 0, done.stderr
    words = tiny(workdir, images, epochs)
    last = workdir / "checkpoints" / "last"

    code, error = run_until(words, lambda: last_logged_step(workdir) >= 2, signal.SIGTERM)
    assert code == 75, error
    assert "stopped by SIGTERM" in error
    assert not (workdir / "results.json").exists()
    stopped_at = max(int(p.name) for p in last.iterdir())
    assert stopped_at >= 2

    # During a save: its temporary folder exists, the checkpoint does not.
    run_until(words, lambda: any("tmp" in p.name for p in last.iterdir()), signal.SIGKILL)
    # During an epoch.
    now = last_logged_step(workdir)
    run_until(words, lambda: last_logged_step(workdir) >= now + 2, signal.SIGKILL)

    done = run(words)
    assert done.returncode == 0, done.stderr
    assert_same_run(undisturbed, workdir)
    statuses = [session["status"] for session in json.loads((workdir / "run.json").read_text())["sessions"]]
    assert statuses == ["interrupted", "running", "running", "finished"]


def test_eval_needs_only_the_checkpoint(tmp_path: pathlib.Path, finished: pathlib.Path) -> None:
    trained = json.loads((finished / "results.json").read_text())
    words = [sys.executable, "-m", "histojax.main", "--mode=eval"]
    copy = shutil.copytree(find(finished), tmp_path / "copy")
    done = run([*words, f"--checkpoint={copy}"])
    assert done.returncode == 1
    assert "give the folder for the results with --workdir" in done.stderr
    done = run([*words, f"--checkpoint={copy}", f"--workdir={tmp_path}"])
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["splits"] == trained["splits"]
    assert again["split_hash"] == trained["split_hash"]


def test_eval_on_other_images_leaves_out_training_patients(tmp_path: pathlib.Path, finished: pathlib.Path) -> None:
    split = pd.read_csv(finished / "split.csv")
    words = [sys.executable, "-m", "histojax.main", "--mode=eval", f"--checkpoint={finished}", "--magnification=40X"]
    done = run([*words, f"--workdir={tmp_path}"])
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("eval/*/predictions.parquet")
    tested = pd.read_parquet(path)
    assert set(tested["magnification"]) == {"40X"}
    assert set(tested["case_id"]) == set(split.loc[split["split"] == "test", "case_id"])
    assert "left out" in json.loads((path.parent / "results.json").read_text())["protocol"]


def test_a_flipped_byte_in_a_checkpoint_stops_the_resumed_run(tmp_path: pathlib.Path, images: pathlib.Path) -> None:
    workdir = tmp_path / "run"
    words = tiny(workdir, images, "--config.train.epochs=1")
    assert run(words).returncode == 0
    (checkpoint,) = (p for p in (workdir / "checkpoints" / "last").iterdir() if p.name.isdigit())
    victim = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    done = run(words)
    assert done.returncode == 1
    assert str(checkpoint) in done.stderr
    assert victim.name in done.stderr
    assert "delete it" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config.data.magnificatoin=40X"], "magnificatoin"),
        (["--config.train.batch_size=abc"], "batch_size"),
        (["--config.train.batch_size=7"], "train.batch_size=7 does not divide among 4 devices; use 4 or 8"),
        (["--config.model.name=resnet5"], "did you mean 'resnet50'"),
        (["--config.optimizer.learning_rate=1e30", "--config.optimizer.warmup_epochs=0.0"], "step "),
    ],
)
def test_invalid_settings_are_reported(
    tmp_path: pathlib.Path, images: pathlib.Path, monkeypatch: pytest.MonkeyPatch, more: list[str], message: str
) -> None:
    monkeypatch.chdir(ROOT)  # in this process, because only the message matters
    done = histojax("train", *tiny(tmp_path / "run", images, *more)[3:])
    assert done.returncode == 1
    assert message in done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_work_directory_of_another_config_is_left_unchanged(finished: pathlib.Path, images: pathlib.Path) -> None:
    before = (finished / "config.json").read_text()
    done = run(command(finished, images, "--config.model.options.attention=none", "--config.train.epochs=5"))
    assert done.returncode == 1
    assert "model.options.attention: saved 'layer4', now 'none'" in done.stderr
    assert (finished / "config.json").read_text() == before


def test_a_checkpoint_of_another_model_is_refused_with_the_differences(finished: pathlib.Path) -> None:
    config = ConfigDict(json.loads((finished / "config.json").read_text()))
    config.model.name, config.model.options = "resnet50", ConfigDict(models.spec("resnet50").small)
    layout = Layout(1)
    task = build.task(config, ("benign", "malignant"), (1, 1), 2)
    program = build.program(config, task, layout)
    with pytest.raises(CheckpointError) as caught:
        restore_model(find(finished), program.abstract)
    message = str(caught.value)
    assert str(finished) in message
    assert "missing params/head/kernel (512, 2)" in message
    assert "unexpected params/attention/fc1/kernel (512, 32)" in message


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[Callable[[str], pathlib.Path]]:
    """Return a function that mounts a tmpfs with the given options, or remounts it with others."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> pathlib.Path:
        remount = ["-o", f"remount,{options}"] if os.path.ismount(folder) else ["-t", "tmpfs", "-o", options, "tmpfs"]
        done = subprocess.run(["mount", *remount, str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no right to mount a small file system here: {done.stderr.strip()}")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_reported_and_the_run_resumes_with_more_space(
    small_disk: Callable[[str], pathlib.Path], images: pathlib.Path
) -> None:
    large = "--config.model.options.width=1024"  # some 15 MB
    words = tiny(small_disk("size=10m") / "run", images, "--config.train.epochs=1", large)
    done = run(words)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "could not be written" in done.stderr
    assert "No space left" in done.stderr or "ENOSPC" in done.stderr or "RESOURCE_EXHAUSTED" in done.stderr
    small_disk("size=200m")
    done = run(words)
    assert done.returncode == 0, done.stderr


def test_a_read_only_directory_is_reported(small_disk: Callable[[str], pathlib.Path], images: pathlib.Path) -> None:
    folder = small_disk("size=10m,ro")
    done = run(command(folder / "run", images))
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr
    assert str(folder) in done.stderr
    assert "Traceback" not in done.stderr
