"""`histojax convert`: weight files of other programs in, weight files for other programs out."""

import argparse
import pathlib
from typing import TYPE_CHECKING

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb, refuse_unused
from histojax.core.errors import RunError

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax convert`."""
    parser = add_verb(
        subparsers,
        "convert",
        run,
        summary="rewrite weights of another program, or write a trained model's weights",
        description="Rewrites a weight file by another naming scheme (--weights with --model or --config), or writes "
        "the weights of a trained model for torchvision, timm and others (--checkpoint).",
        examples=[
            "histojax convert --model resnet50 --weights resnet50.pth --output converted",
            "histojax convert --checkpoint runs/dala_100x --to safetensors --output exported",
        ],
    )
    source = parser.add_argument_group("from a weight file")
    source.add_argument(
        "--weights",
        help="file (.safetensors, .npz, .pth, .pt, .bin, .ckpt, .onnx, .index.json) or hf:OWNER/NAME[@REVISION][/FILE]",
    )
    source.add_argument("--model", metavar="NAME", help="model of the weights, as `histojax models` lists it")
    flags.add_config(
        parser, required=False, help="instead of --model: an experiment, NAME[:VARIANT], with the model and its options"
    )
    source.add_argument(
        "--num_classes",
        metavar="N",
        type=flags.positive,
        default=1000,
        help="classes of the model; if the file has another number, its classifier is left out (default: 1000)",
    )
    source.add_argument(
        "--prefix",
        default="",
        help="one of several networks in the file: its keys or the beginning of its names (default: found by name)",
    )
    trained = parser.add_argument_group("from a trained model")
    trained.add_argument("--checkpoint", metavar="PATH", type=pathlib.Path, help="work directory or checkpoint")
    parser.add_argument("--to", choices=["safetensors"], default="safetensors", help="format of the output")
    parser.add_argument("--naming", default="", help="naming scheme of the output, such as torchvision or timm")
    parser.add_argument(
        "--dtype", default="float32", help="type of the output: float32, float16 or bfloat16 (default: float32)"
    )
    flags.add_output(parser, "folder for model.safetensors and config.json")
    return parser


def run(args: argparse.Namespace) -> None:
    """Convert."""
    described = (args.model is not None) + (args.config is not None)
    from_file = args.weights is not None and described == 1 and args.checkpoint is None
    from_run = args.checkpoint is not None and described == 0 and args.weights is None
    if not (from_file or from_run):
        raise RunError("give either --weights with --model (or --config), or --checkpoint")
    refuse_unused(args, from_file, ["--num_classes", "--prefix"], "with --weights")
    if args.overrides and args.config is None:
        raise RunError(f"--config.{args.overrides[0][0]}: has an effect only with --config; drop it")
    from histojax.training import build, experiments, pretrained
    from histojax.weights import saving

    if from_run:
        print(pretrained.export(args.checkpoint, args.output, args.naming, args.dtype))
        return
    name, options = args.model, {}
    if args.config is not None:
        config = experiments.read(args.config, args.overrides)
        name, options = build.model_spec(config).name, config.model.options.to_dict()
    names = {"naming": args.naming, "dtype": args.dtype, "options": options, "prefix": args.prefix}
    print(saving.rewrite(args.weights, name, args.num_classes, args.output, **names))
