"""`histojax export`: a trained model for other programs."""

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb
from histojax.core.errors import RunError

if TYPE_CHECKING:
    import numpy as np

    from histojax.cli.parser import Subparsers
    from histojax.inference.predict.images import ImageRef

_DESCRIPTION = """\
Writes a trained model in a format of other programs, reads it back, and compares it with the model before the folder
appears. Research use only.

  stablehlo    one file that needs only jax, on CPU, CUDA or TPU
  onnx         one file for onnxruntime and others
  torchscript  one file for PyTorch, WSInfer and QuPath's WSInfer extension, which it writes through PyTorch
  safetensors  the weights by public names, as `histojax convert --checkpoint` writes them
  hf           a Hugging Face repository: weights, config.json for timm (and WSInfer), model card
"""


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax export`."""
    parser = add_verb(
        subparsers,
        "export",
        run,
        summary="write a model as stablehlo, onnx, torchscript, safetensors or a Hugging Face repository",
        description=_DESCRIPTION,
        examples=[
            "histojax export runs/dala_100x --to onnx --output onnx_out --images IMAGES",
            "histojax export runs/resnet50_100x --to hf --output repository --license cc-by-4.0 --tile_um 350",
        ],
    )
    flags.add_run(parser)
    parser.add_argument("--to", metavar="FORMAT", required=True, help="stablehlo, onnx, torchscript, safetensors or hf")
    flags.add_output(parser, "folder to create")
    parser.add_argument(
        "--preprocessing",
        default="baked",
        help="stablehlo, onnx: baked (input: uint8 pixels) or separate (input: normalised float32); the output are "
        "probabilities (default: baked)",
    )
    parser.add_argument(
        "--naming", default="", help="safetensors: naming scheme of the arrays, such as torchvision, timm, histojax"
    )
    parser.add_argument(
        "--license", default="", help="hf: license of the weights, such as apache-2.0, cc-by-4.0 (default: unknown)"
    )
    parser.add_argument(
        "--tile_um",
        metavar="UM",
        type=flags.number_in("(0, inf)"),
        help="torchscript, hf: side of an image in µm, for WSInfer (default: the run's)",
    )
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="PATH", help="images or folders that both models also predict"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Export."""
    import jax

    # The same arithmetic for both sides of the comparison: accelerators multiply float32 less exactly.
    jax.config.update("jax_platforms", "cpu")
    from histojax.distributed import runtime
    from histojax.inference.export import export
    from histojax.inference.predict import images

    spec = export.ExportSpec(args.to, args.preprocessing, args.naming, args.license, args.tile_um)
    runtime.prepare(cpu_devices=1)
    refs = images.find(args.images) if args.images else []
    print(export.export(args.run_path, args.output, spec, _read(refs)))


def _read(refs: Sequence["ImageRef"]) -> Iterator["np.ndarray"]:
    from histojax.inference.predict.image_reader import ImageReader, UnreadableError

    with ImageReader() as reader:
        for ref in refs:
            try:
                yield reader.read(ref)
            except UnreadableError as error:
                raise RunError(f"--images: {ref.image_id}: {error}") from error
