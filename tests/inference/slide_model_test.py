"""The side of a model's tiles: as in training, or as the user says, with a warning."""

import pathlib
import types
from typing import Any

import pytest
from ml_collections import ConfigDict

from histojax.core.errors import RunError
from histojax.inference.model_input import ModelInput
from histojax.inference.slide_model import slide_model
from histojax.training.loading import LoadedModel


def predictor(mpp: float = 0.5, tile_pixels: int | None = 224) -> Any:
    config = ConfigDict({"data": {"mpp": mpp}, "model": {"name": "ldcsf"}})
    meta = {
        "data": {"tile_pixels": tile_pixels, "description": "tiles"},
        "split": {"protocol": "patient"},
        "step": 1,
        "confusion": {"tumor": [1, 2, 3, 4]},
        "confusion_by_unit": {"tumor": [[1, 2, 0, 0], [0, 0, 3, 4]]},
    }
    nothing: Any = None
    trained = LoadedModel(pathlib.Path("runs/a"), meta, config, nothing, nothing, nothing)
    return types.SimpleNamespace(
        trained=trained, classes=("tumor",), thresholds=None, image_size=64, batch_size=8, stream=None, digest="0",
        path=trained.path,
        input=ModelInput(64),
    )  # fmt: skip


def test_a_given_side_replaces_that_of_training_with_a_warning() -> None:
    assert (slide_model(predictor(), None).tile_um, slide_model(predictor(), 112.0).warnings) == (112, [])
    model = slide_model(predictor(), 224.0)
    assert model.tile_um == 224
    assert model.warnings == ["tile_um 224 replaces the 112 µm of the tiles that the model was trained on"]
    assert slide_model(predictor(mpp=0.0), 224.0).warnings == []


@pytest.mark.parametrize(
    ("fields", "given", "message"),
    [
        ({"mpp": 0.0}, None, r"runs/a: .*data\.mpp. is unknown: give .*--tile_um"),
        ({"tile_pixels": None}, None, "trained on whole images, not on tiles"),
        ({}, -5.0, r"--tile_um=-5\.0 is not a length above 0"),
    ],
)
def test_a_side_that_is_unknown_or_wrong_is_refused(fields: dict[str, Any], given: float | None, message: str) -> None:
    with pytest.raises(RunError, match=message):
        slide_model(predictor(**fields), given)


def test_counts_per_source_come_before_their_sum() -> None:
    assert slide_model(predictor(), None).confusion == {"tumor": [[1, 2, 0, 0], [0, 0, 3, 4]]}
    earlier = predictor()
    del earlier.trained.meta["confusion_by_unit"]
    assert slide_model(earlier, None).confusion == {"tumor": [1, 2, 3, 4]}
