"""A trained model as a pure function of images that contains its weights, and the facts needed to call it."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from histojax import models
from histojax.evaluation.report.report_json import USE
from histojax.inference.predictor import Predictor
from histojax.models.ops import kernels
from histojax.models.ops.eval_view import eval_view
from histojax.models.ops.normalise import normalise
from histojax.models.rngs import seeded
from histojax.training import build, loading

BAKED, SEPARATE = "baked", "separate"
PREPROCESSING = (BAKED, SEPARATE)
PredictFn = Callable[[np.ndarray], np.ndarray]
INPUT, OUTPUT = "images", "probabilities"


@dataclasses.dataclass(frozen=True)
class ExportableModel:
    """A trained model to export. It computes in float32, whatever type it was trained in.

    Attributes:
      predictor: makes the predictions that the exported model is compared with.
      preprocessing: input of the exported model. `baked`: `u8 [b, s, s, 3]`, RGB. `separate`: `f32 [b, s, s, 3]`,
        which the caller has normalised.
    """

    predictor: Predictor
    preprocessing: str = BAKED

    @classmethod
    def load(cls, run: pathlib.Path, *, batch_size: int, preprocessing: str = BAKED) -> "ExportableModel":
        """Load the model of a checkpoint.

        Args:
          run: work directory or checkpoint.
          batch_size: images per batch of the predictor.
          preprocessing: `baked` or `separate`.

        Raises:
          RunError: missing or damaged checkpoint.
        """
        trained = loading.load(run)
        if trained.config.model.dtype != "float32":
            config = trained.config.copy_and_resolve_references()
            config.model.dtype = "float32"
            program = build.program(config, _task(trained), trained.layout)
            trained = dataclasses.replace(trained, config=config, program=program)
        return cls(Predictor(trained, batch_size), preprocessing)

    @property
    def architecture(self) -> str:
        """Name of the model."""
        return self.predictor.trained.config.model.name

    def input_struct(self, batch: Any) -> jax.ShapeDtypeStruct:
        """Return shape and type of the function's argument; the batch size may be symbolic."""
        size = self.predictor.image_size
        return jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8 if self.preprocessing == BAKED else jnp.float32)

    def function(self, *, logits: bool = False) -> Callable[[jax.Array], jax.Array]:
        """Return the function images -> probabilities or logits, `f32 [b, k]`, with the weights as constants."""
        trained = self.predictor.trained
        config, task = trained.config, _task(trained)
        options = config.model.options.to_dict()

        def make_model() -> nnx.Module:
            return models.create(config.model.name, num_classes=len(task.classes), rngs=seeded(default=0), **options)

        graph = nnx.graphdef(eval_view(nnx.eval_shape(make_model)))
        # On the host: a constant that is spread over several devices would tie the function to that many devices.
        params, stats = (jax.device_get(tree) for tree in (trained.model.params, trained.model.stats))
        rng = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.uint32), trained.model.rng)  # never drawn from

        def function(images: jax.Array) -> jax.Array:
            if self.preprocessing == BAKED:
                images = normalise(images, config.data.mean, config.data.std)
            with kernels.disable_custom_kernels():
                scores = nnx.merge(graph, params, stats, rng)(images)
            return scores if logits else task.probabilities(scores)

        return function

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Convert images `u8 [b, s, s, 3]` to the argument of the function."""
        if self.preprocessing == BAKED:
            return images
        data = self.predictor.trained.config.data
        return normalise(images, data.mean, data.std)

    def facts(self) -> dict[str, Any]:
        """Return the facts that a caller of the function needs, for a JSON file beside it."""
        predictor = self.predictor
        meta, config = predictor.trained.meta, predictor.trained.config
        struct = self.input_struct(1)
        stain = predictor.input.stain
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
            **({} if stain is None else {"stain": stain.to_json() | {"applied": "before, by the caller"}}),
            "input": {
                "name": INPUT,
                "shape": ["batch", *struct.shape[1:]],
                "type": struct.dtype.name,
                "holds": self._describe_input(),
            },
            "output": {
                "name": OUTPUT,
                "shape": ["batch", len(predictor.classes)],
                "type": "float32",
                "holds": self._describe_output(),
            },
            "checkpoint": predictor.digest,
            "step": meta["step"],
            "protocol": meta["split"]["protocol"],
            "split_hash": meta["split"]["hash"],
            "use": USE,
        }

    def interface(self) -> str:
        """Describe input and output, as Markdown."""
        size, struct = self.predictor.image_size, self.input_struct(1)
        return (
            f"`{INPUT}`: {struct.dtype} of shape (batch, {size}, {size}, 3), {self._describe_input()}. The batch may\n"
            "have any size. Resize other images first, without keeping their aspect ratio: by averaging over areas\n"
            f"where both sides shrink (OpenCV's `INTER_AREA`), otherwise bilinearly.\n\n{self._describe_stain()}"
            f"`{OUTPUT}`: float32 of shape (batch, {len(self.predictor.classes)}), {self._describe_output()}."
        )

    def _describe_stain(self) -> str:
        """Say in Markdown that the caller normalises stains; empty without normalisation."""
        stain = self.predictor.input.stain
        if stain is None:
            return ""
        return (
            f"**Then normalise the stains ({stain.method}): the file does not.** The model was trained on images in\n"
            "the colours of a reference; `stain` in `export.json` has its numbers. In Python, with histojax, for\n"
            "each image of the size above:\n\n"
            "```python\nimport json\nimport pathlib\n\nfrom data_pipelines.stain import StainNormalizer\n\n"
            'normalizer = StainNormalizer.from_json(json.loads(pathlib.Path("export.json").read_text())["stain"])\n'
            "image, enough_tissue = normalizer.apply(image)\n```\n\n"
        )

    def _describe_input(self) -> str:
        return "RGB, 0 to 255" if self.preprocessing == BAKED else "RGB, (value / 255 - mean) / std"

    def _describe_output(self) -> str:
        multi_label = self.predictor.thresholds is not None
        return "the probability of each label (sigmoid)" if multi_label else "the probability of each class (softmax)"


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """A model that was written to files.

    Attributes:
      predict: images `u8 [b, s, s, 3]` -> probabilities [b, k], by the model as read back from the files.
      loading: how to load the files, as Markdown.
      facts: facts about the files, for a JSON file beside them; empty if the files contain them.
      head: the beginning of README.md.
    """

    predict: PredictFn
    loading: str
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    head: str = ""


def _task(trained: loading.LoadedModel) -> Any:
    meta = trained.meta
    return build.task(trained.config, meta["classes"], meta["class_counts"], meta["train_images"])
