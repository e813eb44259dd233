"""`histojax export RUN --to FORMAT --output DIR`: a trained model for programs that are not histojax."""

import argparse
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from histojax.cli import console
from histojax.core.errors import RunError

if TYPE_CHECKING:
    import numpy as np

    from histojax.inference.predict.images import ImageRef

_FORMATS = """\
stablehlo    one file that jax alone runs, on CPU, CUDA and TPU
onnx         one file for onnxruntime and others
safetensors  the weights by public names, as `histojax convert --checkpoint` writes them
hf           a Hugging Face repository: weights, config.json for timm (and WSInfer), model card

What is written is read back and compared with the trained model before DIR appears. Research use only."""


def main(words: list[str]) -> None:
    """Runs `histojax export` with these words; whatever a user can mend is told in words, with exit code 1."""
    parser = argparse.ArgumentParser(
        "histojax export", description=_FORMATS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=pathlib.Path, help="work directory or checkpoint of the model")
    parser.add_argument("--to", required=True, help="stablehlo, onnx, safetensors or hf")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder that is made")
    parser.add_argument(
        "--preprocessing",
        default="baked",
        help="stablehlo, onnx: baked (default): uint8 pixels go in; separate: normalised float32 ones; probabilities "
        "come out",
    )
    parser.add_argument("--naming", default="", help="safetensors: of the arrays, such as torchvision, timm, histojax")
    parser.add_argument("--license", default="", help="hf: such as apache-2.0, cc-by-4.0, other; default: unknown")
    parser.add_argument("--tile_um", type=float, help="hf: side in µm of an image, for WSInfer; default: the run's")
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="PATH", help="images, folders, … to compare with, too"
    )
    given = parser.parse_args(words)

    console.configure_logging()
    with console.errors_in_words():
        import jax

        # The same arithmetic for both sides of the comparison: accelerators multiply float32 less exactly.
        jax.config.update("jax_platforms", "cpu")
        from histojax.distributed import runtime
        from histojax.inference.export import export
        from histojax.inference.predict import images

        spec = export.ExportSpec(given.to, given.preprocessing, given.naming, given.license, given.tile_um)
        runtime.prepare(cpu_devices=1)
        found = images.find(given.images) if given.images else []
        print(export.export(given.run, given.output, spec, _read(found)))


def _read(refs: Sequence["ImageRef"]) -> Iterator["np.ndarray"]:
    from histojax.inference.predict import pixels

    with pixels.Reader() as reader:
        for ref in refs:
            try:
                yield reader.read(ref)
            except pixels.UnreadableError as error:
                raise RunError(f"--images: {ref.image_id}: {error}") from error
