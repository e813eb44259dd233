"""Checkpoints of version 0.1, whose modules had other paths, give the same predictions as then."""

import pathlib
import shutil

import numpy as np
import pandas as pd
import pytest

from histojax.training import evaluate
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
RUNS = ROOT / "tests" / "fixtures" / "runs_of_0_1"


@pytest.mark.parametrize("name", ["vit", "ldcsf"])
def test_an_earlier_checkpoint_gives_its_earlier_predictions(name: str, tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(RUNS / name, run)
    evaluate.evaluate_checkpoint(run, tmp_path / "out")
    then, now = (pd.read_parquet(path / "predictions.parquet") for path in (run, tmp_path / "out"))
    then, now = then[then["split"] == "test"].reset_index(drop=True), now[now["split"] == "test"].reset_index(drop=True)
    probabilities = [column for column in then if column.startswith("prob_")]
    assert len(then) > 10
    assert probabilities
    pd.testing.assert_frame_equal(then.drop(columns=probabilities), now.drop(columns=probabilities))
    # Equal on the processor that wrote them; another one may round the last bit differently.
    np.testing.assert_allclose(then[probabilities], now[probabilities], rtol=2e-6, atol=1e-7)
