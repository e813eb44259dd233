"""`histojax crossval`: thresholds from k validation folds, and one model trained on all their images."""

import argparse
import pathlib
import sys
from typing import TYPE_CHECKING

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb
from histojax.core.errors import EXIT_RESUMABLE

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax crossval`."""
    parser = add_verb(
        subparsers,
        "crossval",
        run,
        summary="k validation folds for the threshold, then one model on all of their images",
        description="Divides the images that are not tested into k folds, by the groups of the protocol, and trains k "
        "models; each predicts the fold that it did not see. Thresholds and temperature are chosen on these "
        "predictions, of all images together instead of one small validation side. Then one model is trained on all of "
        "the images, in WORKDIR/final: it has these thresholds, and is used like that of any other run. All models "
        "train for train.epochs epochs. Rerun the same command to resume. Exit code 75: interrupted.",
        examples=[
            "histojax crossval --config finetune_breakhis --workdir runs/crossval --folds 4 "
            "--config.model.pretrained=WEIGHTS --config.data.root=BreaKHis_v1.tar.gz",
        ],
    )
    flags.add_config(parser)
    flags.add_workdir(parser, "folder of all runs: fold_0, fold_1 … and final", required=True)
    parser.add_argument("--folds", metavar="K", type=flags.not_negative, default=4, help="folds (default: 4)")
    parser.set_defaults(interrupted="interrupted: rerun the same command to resume")
    return parser


def run(args: argparse.Namespace) -> None:
    """Train every run that is not finished, and print what the folds and the test side show."""
    from histojax.distributed import runtime
    from histojax.studies import crossval
    from histojax.training import default_config, experiments

    config = experiments.read(args.config, args.overrides)
    default_config.check_data_root(config)
    runtime.prepare(config.sharding.cpu_devices)
    text = crossval.measure(crossval.plan(config, args.folds), pathlib.Path(args.workdir))
    if text is None:
        print("interrupted: rerun the same command to resume")
        sys.exit(EXIT_RESUMABLE)
    print(text, end="")
