"""A training loop of one's own gives what `histojax train` gives."""

import pathlib
import re

import numpy as np
import pandas as pd
import pytest

from data_pipelines.synthetic.generator import SyntheticSpec, generate
from histojax.core.errors import RunError
from histojax.evaluation import predictions
from histojax.training import loop
from histojax.training.trainer import open_trainer
from tests.conftest import ROOT
from tests.helpers import tiny_config


def test_a_loop_of_ones_own_gives_the_predictions_of_a_run(tmp_path: pathlib.Path) -> None:
    spec = SyntheticSpec(cases_per_subtype=(2, 2, 2, 2, 3, 2, 2, 2), images_per_patient=2, magnifications=("100X",))
    config = tiny_config.get_config("mini")
    config.data.root, config.train.epochs, config.train.best_metric = (
        str(generate(tmp_path / "images", spec)),
        2,
        "last",
    )
    trainer = open_trainer(config)
    state, losses = trainer.init(), []
    for epoch in range(config.train.epochs):
        for batch in trainer.epoch(epoch):
            state, metrics = trainer.program.train(state, batch)
            losses.append(float(metrics["loss"]))
    assert len(losses) == trainer.total_steps == 2 * trainer.steps_per_epoch
    table = trainer.predict(state, "test")
    scores = trainer.validate(state)

    assert loop.train_and_evaluate(config, tmp_path / "run")
    stored = predictions.read(tmp_path / "run" / "predictions")
    stored = stored[stored["split"] == "test"].reset_index(drop=True)
    columns = ["image_id", "label", "prob_benign", "prob_malignant"]
    pd.testing.assert_frame_equal(predictions.normalise(table)[columns], stored[columns])
    curves = pd.read_json(tmp_path / "run" / "metrics.jsonl", lines=True)
    np.testing.assert_allclose(curves["train/loss"].dropna(), losses, rtol=1e-6)
    assert curves["val/accuracy"].dropna().iloc[-1] == pytest.approx(scores["accuracy"])


@pytest.mark.slow
def test_weights_are_loaded_or_refused(tmp_path: pathlib.Path) -> None:
    config = tiny_config.get_config("mini")
    config.model.pretrained = str(tmp_path / "none.pth")
    trainer = open_trainer(config)
    with pytest.raises(RunError, match=r"none\.pth"):
        trainer.init()


def test_the_page_shows_a_loop_of_at_most_25_lines() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/how-to/library.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 25
