"""A user's model outside the package, the one of the page, trains, saves, reloads, explains and exports like ours."""

from __future__ import annotations

import json
import pathlib
import re
import sys
from importlib import metadata

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import baselines_breakhis
from data_pipelines.synthetic.generator import SyntheticSpec, generate
from histojax import models
from histojax.core.errors import RunError
from histojax.inference.explain.grad_cam import GradCAM
from histojax.inference.export import export
from histojax.inference.export.export import ExportSpec
from histojax.inference.predictor import Predictor
from histojax.models import registry
from histojax.training import build, loop, pretrained
from histojax.weights.fitting import OWN
from tests.conftest import ROOT

MODULE = "my_model"
PAGE = (ROOT / "docs/how-to/extend.md").read_text(encoding="utf-8")
SOURCE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]


@pytest.fixture
def module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """The user's module on the path, not imported yet; the registry is restored afterwards."""
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry.MODELS, "items", dict(registry.MODELS.items))
    yield MODULE
    sys.modules.pop(MODULE, None)


def config_of(root: pathlib.Path) -> ConfigDict:
    config = baselines_breakhis.get_config("smoke")
    config.plugins, config.model.name, config.model.options = (MODULE,), "tiny", ConfigDict({"width": 6})
    config.data.root, config.data.image_size = str(root), 32
    config.train.batch_size, config.train.epochs, config.evaluation.resamples = 8, 1, 20
    return config


def test_a_registered_model_trains_saves_reloads_explains_and_exports(module: str, tmp_path: pathlib.Path) -> None:
    spec = SyntheticSpec(cases_per_subtype=(1, 1, 1, 1, 1, 1, 1, 1), images_per_patient=1, magnifications=("100X",))
    root = generate(tmp_path / "images", spec)
    run = tmp_path / "run"
    assert loop.train_and_evaluate(config_of(root), run)
    assert json.loads((run / "results.json").read_text())["splits"]

    # As in a new process: neither the module nor the model is known.
    sys.modules.pop(module)
    registry.MODELS.items.pop("tiny")
    predictor = Predictor.load(run, batch_size=8)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    probabilities = predictor.predict(images)
    assert probabilities.shape[0] == 8
    assert predictor.trained.model.params["conv"]["kernel"].shape == (3, 3, 3, 6)

    cam = GradCAM(predictor.trained, 8)
    assert cam.layer == "map"
    assert cam.maps(images, np.zeros(8, int)).shape == (8, 15, 15)

    export.export(run, tmp_path / "stablehlo", ExportSpec("stablehlo"))
    program = jax.export.deserialize(bytearray((tmp_path / "stablehlo" / "model.stablehlo").read_bytes()))
    np.testing.assert_allclose(np.asarray(program.call(images)), probabilities, atol=1e-5)

    assert f"by {OWN} names" in pretrained.export(run, tmp_path / "weights")
    assert json.loads((tmp_path / "weights" / "config.json").read_text())["architecture"] == "tiny"


def test_an_entry_point_provides_models(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = metadata.EntryPoint("tiny", f"{module}:SPEC", "histojax.models")
    monkeypatch.setattr(registry.MODELS, "_loaded", False)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [found] if group == "histojax.models" else [])
    assert models.spec("tiny").options == ("width", "dropout")
    assert "tiny" in models.names()


def test_unknown_names_and_taken_ones_are_refused(module: str, tmp_path: pathlib.Path) -> None:
    config = config_of(tmp_path)
    config.plugins = ()
    with pytest.raises(RunError, match=r"unknown model 'tiny'.*The field `plugins` names modules"):
        build.model_spec(config)
    other = registry.ModelSpec("resnet50", dict, models.spec("vit").config)
    with pytest.raises(ValueError, match="a model named 'resnet50' is already registered"):
        models.register(other)
    assert models.register(models.spec("resnet50")) is models.spec("resnet50")
