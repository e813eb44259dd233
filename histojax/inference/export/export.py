"""Trained models as files for other programs: written, read back, compared with the Predictor, and only then named."""

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from data_pipelines.pixels import resize
from histojax.core.errors import RunError
from histojax.core.files import write_json
from histojax.inference.export import card, hub, onnx, stablehlo
from histojax.inference.export.function import BAKED, PREPROCESSING, Ask, Portable, Written

TOLERANCE = 1e-4  # of probabilities
FORMATS = ("stablehlo", "onnx", "safetensors", "hf")
_NEEDED = {"stablehlo": ("flatbuffers",), "onnx": ("jax2onnx", "onnx", "onnxruntime")}
_BATCH = 8
_FACTS = "export.json"
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


@dataclasses.dataclass(frozen=True)
class ExportSpec:
    """What is exported, and how.

    Attributes:
      to: one of `FORMATS`.
      preprocessing: of stablehlo and onnx: `baked` takes uint8, `separate` float32 that was normalised before.
      naming: of safetensors: whose names the parameters get; empty: the first that has one for each.
      licence: of hf: an identifier as Hugging Face has them; empty: unknown.
      tile_um: of hf: side in µm of what the model sees as one image; None: what the checkpoint knows.
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
        for option, given, formats in (
            ("preprocessing", self.preprocessing != BAKED, ("stablehlo", "onnx")),
            ("naming", bool(self.naming), ("safetensors",)),
            ("license", bool(self.licence), ("hf",)),
            ("tile_um", self.tile_um is not None, ("hf",)),
        ):
            if given and self.to not in formats:
                raise RunError(f"--{option} has no meaning for --to {self.to}: it is of {', '.join(formats)}")
        if self.licence and not _LICENCE.fullmatch(self.licence):
            raise RunError(f"--license={self.licence} is no identifier, such as apache-2.0, cc-by-4.0 or other")


def export(run: pathlib.Path, output: pathlib.Path, spec: ExportSpec, images: Iterable[np.ndarray] = ()) -> str:
    """Writes a trained model to a new folder.

    What was written is read back and asked about random images, and about `images`, before the folder gets its name.

    Args:
      run: a work directory or a checkpoint.
      output: a folder that is not there yet.
      spec: what is exported, and how.
      images: more to compare with, `u8 [h, w, 3]`, RGB, of any size.

    Returns:
      What was written, in words.

    Raises:
      RunError: no or a damaged checkpoint, a folder that exists, a library that is missing, a model that the format
        does not take, an answer that differs from the Predictor's by more than `TOLERANCE`. Nothing is left behind.
    """
    missing = [name for name in _NEEDED.get(spec.to, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(f"--to {spec.to} needs {', '.join(missing)}: pip install 'histojax[export]'")
    devices = jax.device_count()
    portable = Portable.load(run, batch_size=-(-_BATCH // devices) * devices, preprocessing=spec.preprocessing)
    with _named_at_last(output) as folder:
        written = _write(portable, folder, spec)
        largest, count = _compare(portable, written.ask, images, spec.to)
        checked = (
            f"Read back, it answers as the trained model does: probabilities of {count} images differ by at most "
            f"{largest:.2g}."
        )
        if written.facts:
            compared = {"images": count, "largest_difference": largest, "tolerance": TOLERANCE}
            write_json(folder / _FACTS, portable.facts() | dict(written.facts) | {"compared": compared})
        text = card.card(portable, head=written.head, loading=written.loading, checked=checked)
        (folder / "README.md").write_text(text, encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.iterdir())
    return f"{portable.architecture} as {spec.to} in {output} ({size / 1e6:.1f} MB). {checked}"


def _write(portable: Portable, folder: pathlib.Path, spec: ExportSpec) -> Written:
    if spec.to == "stablehlo":
        return stablehlo.write(portable, folder)
    if spec.to == "onnx":
        return onnx.write(portable, folder)
    if spec.to == "safetensors":
        return hub.write_weights(portable, folder, spec.naming)
    return hub.write_repository(portable, folder, spec.licence, spec.tile_um)


def _compare(portable: Portable, ask: Ask, images: Iterable[np.ndarray], to: str) -> tuple[float, int]:
    """The largest difference of a probability, and of how many images.

    Raises:
      RunError: it is larger than `TOLERANCE`, or no number.
    """
    predictor = portable.predictor
    largest, count = 0.0, 0
    for batch in _batches(images, predictor.image_size, predictor.batch_size):
        differences = np.abs(ask(batch) - predictor.predict(batch))
        if not (differences <= TOLERANCE).all():  # so that NaN is one, too
            raise RunError(
                f"--to {to}: what was written answers otherwise than the trained model (probabilities differ by "
                f"{differences.max():.1e}, more than {TOLERANCE:.0e}), so it was deleted; please report the model"
            )
        largest, count = max(largest, float(differences.max())), count + len(batch)
    return largest, count


def _batches(images: Iterable[np.ndarray], size: int, most: int) -> Iterator[np.ndarray]:
    """Batches `u8 [b, s, s, 3]` of several sizes: a single image, seven, and the given ones."""
    rng = np.random.default_rng(0)
    for n in (1, 7):
        noise = rng.normal(0, 1, (n, size, size, 3)) * rng.uniform(5, 80, (n, 1, 1, 1))
        yield np.clip(rng.uniform(0, 255, (n, 1, 1, 3)) + noise, 0, 255).astype(np.uint8)
    batch: list[np.ndarray] = []
    for image in images:
        batch.append(resize(image, size))
        if len(batch) == most:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


@contextlib.contextmanager
def _named_at_last(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder beside `output` that is renamed to it on success and removed on failure."""
    if os.path.lexists(output):
        raise RunError(f"--output={output} exists; name a folder that does not")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
