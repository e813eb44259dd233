"""A checkpoint that version 0.1 wrote before its modules moved predicts what it predicted then."""

import pathlib
import shutil

import numpy as np
import pandas as pd
import pytest

from histojax.training import evaluate
from tests.conftest import ROOT

RUNS = ROOT / "tests" / "fixtures" / "runs_of_0_1"


@pytest.mark.parametrize("name", ["vit", "ldcsf"])
def test_an_earlier_checkpoint_predicts_what_it_did(name: str, tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(RUNS / name, run)
    evaluate.evaluate_checkpoint(run, tmp_path / "out")
    then, now = (pd.read_parquet(path / "predictions.parquet") for path in (run, tmp_path / "out"))
    then, now = then[then["split"] == "test"].reset_index(drop=True), now[now["split"] == "test"].reset_index(drop=True)
    figures = [column for column in then if column.startswith("prob_")]
    assert len(then) > 10
    assert figures
    pd.testing.assert_frame_equal(then.drop(columns=figures), now.drop(columns=figures))
    # Bit for bit on the processor that wrote them; another one may round a last bit differently.
    np.testing.assert_allclose(then[figures], now[figures], rtol=2e-6, atol=1e-7)
