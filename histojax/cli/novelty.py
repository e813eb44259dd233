"""`histojax novelty`: what a run remembers of its training images, so that predictions name images unlike them."""

import argparse
import shlex
from typing import TYPE_CHECKING

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax novelty`."""
    parser = add_verb(
        subparsers,
        "novelty",
        run,
        summary="let a run recognise images unlike its training images",
        description="Writes novelty.safetensors into the work directory: how the features of the training images are "
        "distributed, and how far the validation images are from them. `histojax predict` and `histojax slide` then "
        "say of each image or tile how far it is, and which are unlike the training images. A low distance is no proof "
        "that a prediction is right. Research use only.",
        examples=["histojax novelty runs/dala_100x"],
    )
    flags.add_run(parser)
    flags.add_layer(parser)
    parser.add_argument("--data_root", metavar="PATH", default="", help="the run's images, if they have moved")
    return parser


def run(args: argparse.Namespace) -> None:
    """Write the file."""
    from histojax.distributed import runtime

    runtime.prepare()
    from histojax.inference.novelty import fitting

    path, made = fitting.fit(args.run_path, layer=args.layer, data_root=args.data_root)
    facts = made.facts
    units = "" if facts["unit"] == "image" else f" of {facts['units']} {facts['unit']}s"
    print(f"Training   {facts['train_images']} images, layer {facts['layer']}")
    print(f"Validation {facts['val_images']} images{units}, whose distances give the quantiles")
    print(f"Novelty    {path}; histojax predict and histojax slide use it")
    print(f"Next       histojax predict {shlex.quote(str(args.run_path))} IMAGES --output predictions.csv")
