"""Load a trained model from its checkpoint alone."""

import dataclasses
import pathlib
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.stain import StainNormalizer
from histojax.distributed.sharding import Layout
from histojax.training import build, checkpoint, default_config
from histojax.training.program import Program
from histojax.training.state import ModelState, restore_model


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A trained model, ready for inference.

    Attributes:
      path: folder of the checkpoint.
      meta: what the checkpoint holds besides arrays: `classes`, `thresholds`, `split`, `data`, `step`, …
      config: the run's config, with the requested image size.
      layout: all devices, data-parallel.
      program: the compiled functions.
      model: the model's state.
    """

    path: pathlib.Path
    meta: dict[str, Any]
    config: ConfigDict
    layout: Layout
    program: Program
    model: ModelState

    @property
    def stain(self) -> StainNormalizer | None:
        """Brings images to the colours that the model was trained on; None: it was trained on images as they are."""
        return StainNormalizer.from_json(self.meta.get("stain"))

    @property
    def tile_um(self) -> float | None:
        """Side in µm of the training tiles; None: the model was trained on whole images, or µm/px is unknown."""
        pixels, mpp = self.meta["data"].get("tile_pixels"), self.config.data.get("mpp", 0.0)
        return pixels * mpp if pixels and mpp else None


def load(path: pathlib.Path, *, image_size: int = 0) -> LoadedModel:
    """Build and restore the model of a checkpoint.

    Args:
      path: a work directory, a series of checkpoints, or one checkpoint.
      image_size: height and width of the model's input in pixels; 0: as in training.

    Raises:
      RunError: the path has no checkpoint, the checkpoint is damaged, or the model does not accept the image size.
    """
    path = checkpoint.find(path)
    meta = checkpoint.read_meta(path)
    config = ConfigDict(default_config.with_defaults(meta["config"]))
    if image_size:
        config.data.image_size = image_size
    layout = Layout(1)
    task = build.task(config, meta["classes"], meta["class_counts"], meta["train_images"])
    program = build.program(config, task, layout)
    return LoadedModel(path, meta, config, layout, program, restore_model(path, program.abstract))
