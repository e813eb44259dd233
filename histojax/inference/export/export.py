"""Export a trained model to other formats: write it, read it back, and compare it with the Predictor."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from histojax.core import extras
from histojax.core.errors import RunError
from histojax.core.files import atomic_folder, write_json
from histojax.inference.batching import batched
from histojax.inference.export import hub, onnx, readme, stablehlo, torchscript
from histojax.inference.export.exportable import (
    BAKED,
    PREPROCESSING,
    SEPARATE,
    ExportableModel,
    ExportedModel,
    PredictFn,
)
from histojax.inference.model_input import ModelInput

TOLERANCE = 1e-4  # largest allowed difference of a probability
FORMATS = ("stablehlo", "onnx", "torchscript", "safetensors", "hf")
# Format -> extras that it needs.
_EXTRAS = {"stablehlo": ("export",), "onnx": ("export",), "torchscript": ("export", "torchscript")}
_FOR_OTHERS = ("torchscript", "hf")  # programs read these with the preprocessing that they know
_BATCH_SIZE = 8
_FACTS_FILE = "export.json"
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


@dataclasses.dataclass(frozen=True)
class ExportSpec:
    """What to export, and how.

    Attributes:
      to: one of `FORMATS`.
      preprocessing: stablehlo and onnx: `baked` takes uint8 images, `separate` takes normalised float32 images.
      naming: safetensors: naming scheme of the arrays; empty: the first that has a name for every parameter.
      licence: hf: licence identifier of Hugging Face; empty: unknown.
      tile_um: torchscript and hf: side in µm of what the model sees as one image; None: from the checkpoint.

    Raises:
      RunError: an unknown value, an option that does not apply to the format, or missing packages.
    """

    to: str
    preprocessing: str = BAKED
    naming: str = ""
    licence: str = ""
    tile_um: float | None = None

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise RunError(f"--to={self.to} is not one of {', '.join(FORMATS)}")
        if self.preprocessing not in PREPROCESSING:
            raise RunError(f"--preprocessing={self.preprocessing} is not one of {', '.join(PREPROCESSING)}")
        for option, is_given, formats in (
            ("preprocessing", self.preprocessing != BAKED, ("stablehlo", "onnx")),
            ("naming", bool(self.naming), ("safetensors",)),
            ("license", bool(self.licence), ("hf",)),
            ("tile_um", self.tile_um is not None, ("torchscript", "hf")),
        ):
            if is_given and self.to not in formats:
                raise RunError(f"--{option} does not apply to --to {self.to}, only to {', '.join(formats)}")
        for extra in _EXTRAS.get(self.to, ()):
            extras.require(extra, f"--to {self.to}")
        if self.licence and not _LICENCE.fullmatch(self.licence):
            raise RunError(f"--license={self.licence} is not an identifier such as apache-2.0, cc-by-4.0 or other")


def export(run: pathlib.Path, output: pathlib.Path, spec: ExportSpec, images: Iterable[np.ndarray] = ()) -> str:
    """Export a trained model to a new folder.

    The exported model is read back, and must predict the same as the trained one on random images and on `images`.
    Only then does the folder get its name.

    Args:
      run: work directory or checkpoint.
      output: folder to create.
      spec: what to export, and how.
      images: further images to compare on, `u8 [h, w, 3]`, RGB, of any size.

    Returns:
      A message about what was written.

    Raises:
      RunError: missing or damaged checkpoint, existing folder, a model that the format does not support, or a
        prediction that differs by more than `TOLERANCE`. No files remain.
    """
    devices = jax.device_count()
    batch_size = -(-_BATCH_SIZE // devices) * devices  # rounded up to a multiple of the devices
    preprocessing = SEPARATE if spec.to == "torchscript" else spec.preprocessing
    model = ExportableModel.load(run, batch_size=batch_size, preprocessing=preprocessing)
    stain = model.predictor.input.stain
    if stain is not None and spec.to in _FOR_OTHERS:
        raise RunError(
            f"--to {spec.to}: the run normalises stains (data.stain.method={stain.method}), which "
            "timm and WSInfer do not: their predictions would differ from the run's. Use --to onnx or stablehlo and "
            "normalise the pixels before, as the README there says; or train with data.stain.method=none"
        )
    with atomic_folder(output) as folder:
        exported = _write(model, folder, spec)
        largest, count = _compare(model, exported.predict, images, spec.to)
        checked = (
            f"Read back from its files, it predicts as the trained model does: the probabilities of {count} images "
            f"differ by at most {largest:.2g}."
        )
        if exported.facts:
            compared = {"images": count, "largest_difference": largest, "tolerance": TOLERANCE}
            write_json(folder / _FACTS_FILE, model.facts() | dict(exported.facts) | {"compared": compared})
        text = readme.readme(model, head=exported.head, loading=exported.loading, checked=checked)
        (folder / "README.md").write_text(text, encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.iterdir())
    return f"{model.architecture} as {spec.to} in {output} ({size / 1e6:.1f} MB). {checked}"


def _write(model: ExportableModel, folder: pathlib.Path, spec: ExportSpec) -> ExportedModel:
    if spec.to == "stablehlo":
        return stablehlo.write(model, folder)
    if spec.to == "onnx":
        return onnx.write(model, folder)
    if spec.to == "torchscript":
        return torchscript.write(model, folder, spec.tile_um)
    if spec.to == "safetensors":
        return hub.write_weights(model, folder, spec.naming)
    return hub.write_repository(model, folder, spec.licence, spec.tile_um)


def _compare(model: ExportableModel, predict: PredictFn, images: Iterable[np.ndarray], to: str) -> tuple[float, int]:
    """Compare predictions of the exported and the trained model.

    Returns:
      The largest difference of a probability, and the number of images.

    Raises:
      RunError: a difference is NaN or larger than `TOLERANCE`.
    """
    predictor = model.predictor
    largest, count = 0.0, 0
    for batch in _comparison_batches(images, predictor.input, predictor.batch_size):
        differences = np.abs(predict(batch) - predictor.predict_inputs(batch))
        if not (differences <= TOLERANCE).all():  # written so that NaN also fails
            raise RunError(
                f"--to {to}: the exported model predicts differently from the trained one (probabilities differ by "
                f"{differences.max():.1e}, more than {TOLERANCE:.0e}), so it was deleted; please report this model"
            )
        largest, count = max(largest, float(differences.max())), count + len(batch)
    return largest, count


def _comparison_batches(images: Iterable[np.ndarray], made: ModelInput, batch_size: int) -> Iterator[np.ndarray]:
    """Yield batches `u8 [b, s, s, 3]` of several sizes: one random image, seven random images, and the given ones."""
    rng, size = np.random.default_rng(0), made.size
    for n in (1, 7):
        noise = rng.normal(0, 1, (n, size, size, 3)) * rng.uniform(5, 80, (n, 1, 1, 1))
        yield np.clip(rng.uniform(0, 255, (n, 1, 1, 3)) + noise, 0, 255).astype(np.uint8)
    for batch in batched(images, batch_size):
        yield np.stack([made.of(image)[0] for image in batch])
