"""A network as a function from pixels to features: what its classifier sees, or the mean of one of its feature maps."""

import base64
import hashlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines.stain import StainNormalizer
from histojax import __version__, models
from histojax.core.errors import RunError
from histojax.core.suggestions import did_you_mean
from histojax.distributed.sharding import Layout
from histojax.inference.device_batches import choose_batch_size, run_batches
from histojax.inference.model_input import ModelInput
from histojax.models.ops.sharded_call import sharded_calls
from histojax.training import build, checkpoint, loading, pretrained
from histojax.training.program import Program
from histojax.training.state import ModelState

POOLED = "pooled"  # the layer that stands for the input of the classifier
_CLASSES = ("0", "1")  # of a network from a weight file, whose classifier is not used


class Embedder:
    """A network that computes features.

    Attributes:
      image_size: height and width of the network's input.
      input: makes the network's input of an image: its size and its stain normalisation.
      batch_size: images per batch.
      layer: POOLED, or the name of a feature map.
      width: number of features.
      tile_um: side in µm of the tiles that the network was trained on; None: unknown.
      digest: identifies the weights.
      metadata: how the features are made, for files of features.
    """

    def __init__(
        self,
        program: Program,
        model: ModelState,
        config: ConfigDict,
        layout: Layout,
        facts: Mapping[str, Any],
        *,
        layer: str = POOLED,
        batch_size: int | None = None,
        stain: StainNormalizer | None = None,
    ):
        """Use a built model; see `of_run` and `of_weights`.

        Args:
          program: the compiled functions of the model.
          model: its state.
          config: its config.
          layout: the devices.
          facts: `source` and `weights_sha256`, for `metadata`.
          layer: POOLED, or the name of a feature map, whose mean over all positions is taken.
          batch_size: images per batch, split across the devices; None: about 8 on CPUs, 32 on other devices.
          stain: the stain normalisation of the images; None: none.

        Raises:
          RunError: the model has no such layer, or the devices do not divide the batch size.
        """
        batch_size = choose_batch_size(layout, batch_size)
        self.image_size, self.batch_size, self.layer = int(config.data.image_size), batch_size, layer
        self.input = ModelInput(self.image_size, stain)
        self._program, self._model, self._layout = program, model, layout
        spec = models.spec(config.model.name)
        self._head = spec.classifier.split("/")[0]
        self._compute = jax.jit(self._features, out_shardings=layout.batch)
        image = jax.ShapeDtypeStruct((batch_size, self.image_size, self.image_size, 3), np.uint8, sharding=layout.batch)
        self.width = int(self._compute.eval_shape(program.abstract.model, image).shape[1])
        self.tile_um: float | None = None
        self.digest = str(facts["weights_sha256"])
        self.metadata: dict[str, Any] = {
            "model": config.model.name,
            "options": config.model.options.to_dict(),
            "layer": layer,
            "image_size": self.image_size,
            "preprocessing": {
                "resize": f"to {self.image_size}×{self.image_size}, aspect ratio not kept",
                "mean": list(config.data.mean),
                "std": list(config.data.std),
            },
            "version": __version__,
            **facts,
        }
        if stain is not None:
            self.metadata["preprocessing"]["stain"] = stain.to_json()

    @classmethod
    def of_run(cls, run: pathlib.Path, *, layer: str = POOLED, batch_size: int | None = None) -> "Embedder":
        """Load the model of a checkpoint.

        Args:
          run: a work directory, a series of checkpoints, or one checkpoint.
          layer: as for `Embedder`.
          batch_size: images per batch.

        Raises:
          RunError: the checkpoint is missing or damaged; or as in `Embedder`.
        """
        return cls.of_model(loading.load(run), str(run), layer=layer, batch_size=batch_size)

    @classmethod
    def of_model(
        cls, trained: loading.LoadedModel, source: str, *, layer: str = POOLED, batch_size: int | None = None
    ) -> "Embedder":
        """Use a loaded model; `source` says where it came from."""
        facts = {"source": source, "weights_sha256": checkpoint.digest(trained.path)}
        made = cls(
            trained.program, trained.model, trained.config, trained.layout, facts,
            layer=layer, batch_size=batch_size, stain=trained.stain,
        )  # fmt: skip
        made.tile_um = trained.tile_um
        return made

    @classmethod
    def of_weights(
        cls,
        config: ConfigDict,
        *,
        layer: str = POOLED,
        batch_size: int | None = None,
        stain: StainNormalizer | None = None,
    ) -> "Embedder":
        """Build a network and load pretrained weights.

        Args:
          config: `model.name`, `model.options`, `model.pretrained`, `model.pretrained_prefix`, `data.image_size`,
            `data.mean` and `data.std` are read. Without `model.pretrained` the weights are random.
          layer: as for `Embedder`.
          batch_size: images per batch.
          stain: as for `Embedder`.

        Raises:
          RunError: an unknown model, a missing or damaged file, or weights of another model; or as in `Embedder`.
        """
        layout = Layout(1)
        batch_size = choose_batch_size(layout, batch_size)  # before the weights are read
        task = build.task(config, _CLASSES, (1,) * len(_CLASSES), len(_CLASSES))
        program = build.program(config, task, layout)
        state, source = program.init(), str(config.model.pretrained)
        facts = {"source": f"random weights, seed {config.seed}", "weights_sha256": f"random-{config.seed}"}
        if source:
            state, _ = pretrained.fill(state, config.model.name, source, config.model.pretrained_prefix)
            facts = {"source": source, "weights_sha256": pretrained.digest(source)}
        return cls(program, state.model, config, layout, facts, layer=layer, batch_size=batch_size, stain=stain)

    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the features `f32 [b, d]` of each batch `u8 [b, s, s, 3]`, in order; b is at most the batch size."""
        return run_batches(
            lambda images: self._compute(self._model, images), self._layout, batches, self.batch_size, self.image_size
        )

    def _features(self, model: ModelState, images: jax.Array) -> jax.Array:
        with sharded_calls(self._layout.shard_map_batch):
            return self._program.apply(self._of_module, model, images)

    def _of_module(self, module: Any, images: jax.Array) -> jax.Array:
        if self.layer == POOLED:
            setattr(module, self._head, _Identity())
            return module(images).astype(np.float32)
        maps = module.feature_maps(images)
        if self.layer not in maps:
            listed = ", ".join([POOLED, *maps])
            hint = did_you_mean(self.layer, [POOLED, *maps])
            raise RunError(f"--layer={self.layer} is no layer of this model{hint}; layers: {listed}")
        return maps[self.layer].astype(np.float32).mean((1, 2))


class _Identity(nnx.Module):
    """Takes the place of a classifier."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def configure(
    config: ConfigDict,
    source: str,
    *,
    prefix: str = "",
    image_size: int = 0,
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
) -> ConfigDict:
    """Return a copy of a config for `Embedder.of_weights`, with other weights, image size and normalisation."""
    config = config.copy_and_resolve_references()
    config.model.pretrained, config.model.pretrained_prefix = source, prefix
    if image_size:
        config.data.image_size = image_size
    if normalisation:
        config.data.mean, config.data.std = map(tuple, normalisation)
    return config


def fingerprint(embedder: Embedder) -> str:
    """Return sixteen digits that change with anything that the features depend on."""
    return hashlib.sha256(repr(sorted(embedder.metadata.items())).encode()).hexdigest()[:16]


def encode(features: np.ndarray) -> str:
    """Return the features of one image, f32 [d], as text for a file of results so far: base 64."""
    return base64.b64encode(features.astype("<f4").tobytes()).decode()


def decode(text: str) -> np.ndarray:
    """Return the features that `encode` made a text of, f32 [d]."""
    return np.frombuffer(base64.b64decode(text), "<f4")
