"""A predictor as the model of slides: how large its tiles are, and what its results say about it."""

import math

from histojax.core.errors import RunError
from histojax.inference.novelty.scorer import NoveltyScorer
from histojax.inference.predictor import Predictor
from histojax.slides import cohort


def slide_model(predictor: Predictor, tile_um: float | None = None) -> cohort.Model:
    """Wrap a predictor for `cohort.run`.

    Args:
      predictor: a model that was trained on tiles.
      tile_um: side in µm of the tiles; None: that of the training tiles.

    Raises:
      RunError: the side is not given, and the checkpoint does not state it; or it is not above 0.
    """
    trained = predictor.trained
    pixels, stated = trained.meta["data"].get("tile_pixels"), trained.tile_um
    warnings = []
    if tile_um is None:
        if stated is None:
            what = "tiles whose µm per pixel (data.mpp) is unknown" if pixels else "whole images, not on tiles"
            raise RunError(
                f"{trained.path}: the model was trained on {what}: give the side in µm of its training images with "
                "--tile_um (side in pixels × µm per pixel)"
            )
        tile_um = stated
    elif stated is not None and not math.isclose(tile_um, stated, rel_tol=0.01):
        warnings.append(f"tile_um {tile_um:g} replaces the {stated:g} µm of the tiles that the model was trained on")
    if not tile_um > 0:
        raise RunError(f"--tile_um={tile_um} is not a length above 0")
    novelty = NoveltyScorer.of_predictor(predictor)
    return cohort.Model(
        labels=predictor.classes,
        thresholds=predictor.thresholds,
        image_size=predictor.image_size,
        tile_um=tile_um,
        batch_size=predictor.batch_size,
        stream=predictor.stream,
        stain=predictor.input.stain,
        warnings=warnings,
        novelty=novelty,
        # Older checkpoints have no counts per patient, slide or source image.
        confusion=trained.meta.get("confusion_by_unit") or trained.meta.get("confusion"),
        facts={
            "name": trained.config.model.name,
            "checkpoint": predictor.digest,
            "step": trained.meta["step"],
            "image_size": predictor.image_size,
            "protocol": trained.meta["split"]["protocol"],
            "data": trained.meta["data"]["description"],
        },
    )
