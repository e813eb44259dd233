"""Evaluation of a checkpoint on images that moved or are damaged: what the messages advise works."""

import pathlib
import re
import shutil

import pandas as pd
import pytest
from ml_collections import ConfigDict

from data_pipelines.errors import DataError, bad_images_message
from data_pipelines.splits import Split
from histojax.core.errors import RunError
from histojax.training import checkpoint, evaluate
from histojax.training.checkpoint import find
from tests.conftest import ROOT, WriteImages
from tests.helpers.command import histojax

VIT = ROOT / "tests" / "fixtures" / "runs_of_0_1" / "vit"
NAMES = [f"SOB_{c}-14-{case}-100-{n:03}.png" for c in ("B_A", "M_DC") for case in (901, 902) for n in (1, 2)]


def test_a_damaged_image_is_skipped_as_the_message_says(tmp_path: pathlib.Path, write_images: WriteImages) -> None:
    run, images = shutil.copytree(VIT, tmp_path / "run"), tmp_path / "images"
    write_images(images, NAMES)[0].write_bytes(b"")
    words = ["eval", f"--checkpoint={run}", f"--data_root={images}", f"--workdir={tmp_path}"]
    (advised,) = re.findall(r"--config\.\S+", bad_images_message(images, {NAMES[0]: "empty file"}))
    done = histojax(*words, advised, f"--config.data.prepared_dir={tmp_path / 'elsewhere'}")
    assert done.returncode == 0, done.stderr
    assert len(pd.read_parquet(tmp_path / "eval" / "images-100X" / "predictions.parquet")) == len(NAMES) - 1
    assert list((tmp_path / "elsewhere").iterdir())


def test_images_that_moved_are_named_with_a_flag(tmp_path: pathlib.Path) -> None:
    meta = checkpoint.read_meta(find(VIT))
    config, saved = ConfigDict(meta["config"]), Split.from_json(meta["split"])
    config.data.root = str(tmp_path / "gone")
    with pytest.raises(RunError, match=r"gone: the run's images are not there; .* --data_root=PATH"):
        evaluate.open_run_images(config, meta["classes"], saved, "", "")
    with pytest.raises(DataError, match=r"there: no such file or folder"):
        evaluate.open_run_images(config, meta["classes"], saved, str(tmp_path / "there"), "")
