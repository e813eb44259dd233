"""A trained model as a pure function of images that closes over its weights, and what one must know to call it."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from histojax import models
from histojax.evaluation.report.report import USE
from histojax.inference.predictor import Predictor
from histojax.models.ops import kernels
from histojax.models.rngs import seeded
from histojax.training import build, evaluate

BAKED, SEPARATE = "baked", "separate"
PREPROCESSING = (BAKED, SEPARATE)
Ask = Callable[[np.ndarray], np.ndarray]
INPUT, OUTPUT = "images", "probabilities"


@dataclasses.dataclass(frozen=True)
class Portable:
    """A trained model on its way out, computing in float32 whatever its training computed in.

    Attributes:
      predictor: what is compared with.
      preprocessing: `baked`: images are `u8 [b, s, s, 3]`, RGB. `separate`: `f32 [b, s, s, 3]`, normalised before.
    """

    predictor: Predictor
    preprocessing: str = BAKED

    @classmethod
    def load(cls, run: pathlib.Path, *, batch_size: int, preprocessing: str = BAKED) -> "Portable":
        """The model of a checkpoint.

        Raises:
          RunError: no or a damaged checkpoint.
        """
        trained = evaluate.load(run)
        if trained.config.model.dtype != "float32":
            config = trained.config.copy_and_resolve_references()
            config.model.dtype = "float32"
            program = build.program(config, _task(trained), trained.layout, optax.identity())
            trained = dataclasses.replace(trained, config=config, program=program)
        return cls(Predictor(trained, batch_size), preprocessing)

    @property
    def architecture(self) -> str:
        """The model's name."""
        return self.predictor.trained.config.model.name

    def struct(self, batch: Any) -> jax.ShapeDtypeStruct:
        """Shape and type of the function's argument; `batch` may be symbolic."""
        size = self.predictor.image_size
        return jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8 if self.preprocessing == BAKED else jnp.float32)

    def function(self) -> Callable[[jax.Array], jax.Array]:
        """Images as `preprocessing` has them -> probabilities `f32 [b, k]`; the weights are constants of it."""
        trained = self.predictor.trained
        config, task = trained.config, _task(trained)
        options = build.model_options(config.model.options)

        def make() -> nnx.Module:
            return models.create(config.model.name, num_classes=len(task.classes), rngs=seeded(default=0), **options)

        module = nnx.view(nnx.eval_shape(make), use_running_average=True, deterministic=True, raise_if_not_found=False)
        graph = nnx.graphdef(module)
        # On the host: a constant that lies on several devices would tie the function to as many.
        params, stats = (jax.device_get(tree) for tree in (trained.model.params, trained.model.stats))
        rng = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.uint32), trained.model.rng)  # nothing is drawn
        mean, std = (np.asarray(v, np.float32).reshape(1, 1, 1, 3) for v in (config.data.mean, config.data.std))

        def function(images: jax.Array) -> jax.Array:
            if self.preprocessing == BAKED:
                images = (images.astype(jnp.float32) / 255 - mean) / std
            with kernels.disable_custom_kernels():
                return task.probabilities(nnx.merge(graph, params, stats, rng)(images))

        return function

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """What the function is called with for images `u8 [b, s, s, 3]`."""
        if self.preprocessing == BAKED:
            return images
        data = self.predictor.trained.config.data
        mean, std = (np.asarray(v, np.float32) for v in (data.mean, data.std))
        return (images.astype(np.float32) / 255 - mean) / std

    def facts(self) -> dict[str, Any]:
        """What a caller of the function must know, for a JSON file beside it."""
        predictor = self.predictor
        meta, config = predictor.trained.meta, predictor.trained.config
        shape, kind = self.struct(1).shape, self.struct(1).dtype.name
        return {
            "architecture": self.architecture,
            "options": config.model.options.to_dict(),
            "task": config.data.task,
            "classes": list(predictor.classes),
            "thresholds": predictor.thresholds,
            "image_size": predictor.image_size,
            "preprocessing": self.preprocessing,
            "mean": list(config.data.mean),
            "std": list(config.data.std),
            "input": {"name": INPUT, "shape": ["batch", *shape[1:]], "type": kind, "holds": self._holds()},
            "output": {
                "name": OUTPUT,
                "shape": ["batch", len(predictor.classes)],
                "type": "float32",
                "holds": self._answers(),
            },
            "checkpoint": predictor.digest,
            "step": meta["step"],
            "protocol": meta["split"]["protocol"],
            "split_hash": meta["split"]["hash"],
            "use": USE,
        }

    def interface(self) -> str:
        """What goes in and what comes out, as Markdown."""
        size, struct = self.predictor.image_size, self.struct(1)
        return (
            f"`{INPUT}`, {struct.dtype} of shape (batch, {size}, {size}, 3): {self._holds()}; any batch. Images of\n"
            "another size are resized before, their aspect ratio ignored: averaged over areas where both sides shrink\n"
            "(OpenCV's `INTER_AREA`), else bilinear.\n\n"
            f"`{OUTPUT}`, float32 of shape (batch, {len(self.predictor.classes)}): {self._answers()}."
        )

    def _holds(self) -> str:
        return "RGB, 0 to 255" if self.preprocessing == BAKED else "RGB, (value / 255 - mean) / std"

    def _answers(self) -> str:
        many = self.predictor.thresholds is not None
        return "the probability of each label (sigmoid)" if many else "the probability of each class (softmax)"


@dataclasses.dataclass(frozen=True)
class Written:
    """A model in its files.

    Attributes:
      ask: images `u8 [b, s, s, 3]` -> probabilities [b, k], by what was read back from the files.
      loading: how they are loaded, as Markdown.
      facts: of the files, for a JSON file beside them; empty where they hold such.
      head: of the README.md.
    """

    ask: Ask
    loading: str
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    head: str = ""


@contextlib.contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Nothing is logged under these names."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _task(trained: evaluate.LoadedModel) -> Any:
    meta = trained.meta
    return build.task(trained.config, meta["classes"], meta["class_counts"], meta["train_images"])
