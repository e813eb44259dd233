"""A trained model as a function of pixels: numpy in, numpy out, one compiled program for any number of images."""

import html
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from histojax.core.errors import RunError
from histojax.inference.device_batches import choose_batch_size, run_batches
from histojax.inference.embed.embedder import POOLED, Embedder
from histojax.inference.model_input import ModelInput
from histojax.inference.predict.prediction_table import prediction_columns
from histojax.training import checkpoint, loading


class Predictor:
    """A trained model, ready for inference.

    Attributes:
      classes: names of the classes, or of the labels, in the order of the probabilities.
      thresholds: threshold of each label, chosen on validation images; None where an image has one class.
      decision: with two classes, the threshold of the positive class, chosen on validation images; else None.
      temperatures: for `calibration.at_temperatures`, fitted on validation images; None: there were none.
      image_size: height and width of the model's input.
      input: makes the model's input of an image: its size and its stain normalisation.
      magnification: magnification of the training images, such as "100X"; empty: several, or unknown.
      path: folder of the checkpoint.
      step: optimizer steps after which it was saved.
      digest: sixteen digits that identify the checkpoint.
      batch_size: images per batch.
    """

    def __init__(self, trained: loading.LoadedModel, batch_size: int | None):
        self.trained, self.batch_size = trained, choose_batch_size(trained.layout, batch_size)
        self.classes: tuple[str, ...] = tuple(trained.meta["classes"])
        cuts = trained.meta["thresholds"]
        self.thresholds: dict[str, float] | None = None if cuts is None else dict(zip(self.classes, cuts, strict=True))
        locked = trained.meta.get("decision")  # older checkpoints have none
        self.decision: dict[str, float] | None = locked and {locked["class"]: locked["threshold"]}
        self.temperatures: list[float] | None = trained.meta.get("temperatures")
        self.image_size: int = trained.config.data.image_size
        self.input = ModelInput(self.image_size, trained.stain)
        magnification: str = trained.config.data.magnification
        self.magnification = "" if magnification == "all" else magnification
        self.path, self.step = trained.path, int(trained.meta["step"])
        self.digest = checkpoint.digest(trained.path)
        self._embedders: dict[str, Embedder] = {}  # compiled, by layer

    @classmethod
    def load(cls, run: str | pathlib.Path, *, batch_size: int | None = None) -> "Predictor":
        """Load the model of a checkpoint.

        Args:
          run: a work directory, a series of checkpoints, or one checkpoint.
          batch_size: images per batch, split across the devices; None: about 8 on CPUs, 32 on other devices.

        Raises:
          RunError: the checkpoint is missing or damaged, or the devices do not divide the batch size.
        """
        return cls(loading.load(pathlib.Path(run)), batch_size)

    def __repr__(self) -> str:
        return f"Predictor({', '.join(f'{name}: {value}' for name, value in self._described().items())})"

    def _repr_html_(self) -> str:
        """The same as a table, for notebooks."""
        rows = (f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in self._described().items())
        return f"<table>{''.join(rows)}</table>"

    def _described(self) -> dict[str, str]:
        """What to know of the model before it is used."""
        meta, cuts = self.trained.meta, self.thresholds or self.decision or {}
        classes = (name + (f" (from {cuts[name]:.3g})" if name in cuts else "") for name in self.classes)
        return {
            "model": self.trained.config.model.name,
            "classes": ", ".join(classes),
            "images": f"{self.image_size} × {self.image_size} pixels",
            "trained on": f"{meta['data']['description']}; {meta['train_images']} images, {meta['step']} updates",
            "protocol": meta["split"]["protocol"],
            "checkpoint": self.digest,
        }

    def predict(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Predict probabilities `f32 [n, k]` of images `u8 [h, w, 3]`, RGB, of any size.

        They are resized, and their stains are normalised, as in training.

        Raises:
          RunError: an image has another shape or type.
        """
        return self.predict_inputs(self.input.of(_checked(image))[0] for image in images)

    def predict_inputs(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Predict probabilities `f32 [n, k]` of images `u8 [s, s, 3]` that `input` has made."""
        rows = list(self.stream(self._batches(images)))
        return np.concatenate(rows) if rows else np.zeros((0, len(self.classes)), np.float32)

    def table(self, images: Iterable[np.ndarray], names: Sequence[str] = ()) -> pd.DataFrame:
        """Predictions for images, one row each: probabilities, and the class, or each label at its threshold.

        Args:
          images: as `predict` takes them.
          names: one per image, for the index; empty: the rows are numbered.

        Raises:
          RunError: an image has another shape or type, or the numbers of names and images differ.
        """
        probabilities = self.predict(images)
        if names and len(names) != len(probabilities):
            raise RunError(f"{len(names)} names for {len(probabilities)} images: give one per image, or none")
        frame = prediction_columns(probabilities, self.classes, self.thresholds or self.decision)
        return frame.set_axis(pd.Index(names, name="image_id")) if names else frame

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the probabilities `f32 [b, k]` of each batch `u8 [b, s, s, 3]`, in order; b is at most the batch size.

        The images are as `input` makes them. The device computes while the next batch is fetched. An incomplete batch
        is padded, so one program serves all.
        """
        trained = self.trained
        return run_batches(
            lambda images: trained.program.predict(trained.model, images),
            trained.layout,
            batches,
            self.batch_size,
            self.image_size,
        )

    def embed(self, images: Iterable[np.ndarray], layer: str = POOLED) -> np.ndarray:
        """Compute features `f32 [n, d]` of images `u8 [h, w, 3]`, RGB, of any size; prepare them as `predict` does.

        Args:
          images: as `predict` takes them.
          layer: "pooled", what the classifier sees; or the name of a feature map, whose mean over all positions is
            taken.

        Raises:
          RunError: the model has no such layer, or an image has another shape or type.
        """
        if layer not in self._embedders:
            trained = self.trained
            self._embedders[layer] = Embedder.of_model(
                trained, str(trained.path), layer=layer, batch_size=self.batch_size
            )
        embedder = self._embedders[layer]
        rows = list(embedder.stream(self._batches(self.input.of(_checked(image))[0] for image in images)))
        return np.concatenate(rows) if rows else np.zeros((0, embedder.width), np.float32)

    def _batches(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        batch: list[np.ndarray] = []
        for image in images:
            batch.append(image)
            if len(batch) == self.batch_size:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)


def _checked(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise RunError(f"an image of shape {image.shape}, {image.dtype}; uint8 of shape (height, width, 3) is RGB")
    return image
