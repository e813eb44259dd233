"""A run of two seconds: a small ViT on forty synthetic images, for tests of what happens around training."""

import pathlib

from ml_collections import ConfigDict

from data_pipelines.synthetic.generator import SyntheticSpec, generate
from histojax.core.directories import default_directory
from histojax.training import default_config


def images(folder: pathlib.Path | None = None, per_patient: int = 4) -> pathlib.Path:
    """Make images of ten patients in a folder, or once for all tests."""
    cases = (1, 2, 1, 1, 2, 1, 1, 1)
    spec = SyntheticSpec(cases_per_subtype=cases, images_per_patient=per_patient, magnifications=("100X",))
    return generate(folder or default_directory() / "quick-run-images", spec)


def get_config(**fields: object) -> ConfigDict:
    """Return the config of a run of two epochs.

    Args:
      **fields: fields to change, with two underscores for a dot: `train__epochs=3`.
    """
    config = default_config.base()
    config.data.root, config.data.image_size = str(images()), 16
    config.model.name = "vit"
    config.model.options = ConfigDict({"image_size": 16, "patch": 8, "embed_dim": 8, "depth": 1, "heads": 1})
    config.train.batch_size, config.train.epochs, config.train.log_every = 8, 2, 1
    config.evaluation.batch_size, config.evaluation.resamples = 8, 20
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 0.01
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config
