"""`histojax protocols`: one model under several split protocols, to measure the effect of leakage."""

import argparse
import pathlib
import sys
from typing import TYPE_CHECKING

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb, refuse_unused
from histojax.core.errors import EXIT_RESUMABLE

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax protocols`."""
    parser = add_verb(
        subparsers,
        "protocols",
        run,
        summary="measure split leakage: one model under several protocols, k folds each",
        description="Trains one model under several split protocols, with k folds each, and prints one table of what "
        "each protocol measures. Rerun the same command to resume at the unfinished fold. Exit code 75: interrupted.",
        examples=[
            "histojax protocols --config dala_resnet50_breakhis --workdir runs/meter --folds 5 "
            "--config.data.root=BreaKHis_v1.tar.gz",
            "histojax protocols --config dala_resnet50_breakhis --protocols case_deduplicated --write_folds folds "
            "--config.data.root=BreaKHis_v1.tar.gz",
        ],
    )
    flags.add_config(parser)
    place = parser.add_mutually_exclusive_group(required=True)
    flags.add_workdir(place, "folder of all runs; each fold has a subfolder")
    place.add_argument(
        "--write_folds", metavar="DIR", help="train nothing; write dsfold1.txt … of one protocol to this folder"
    )
    parser.add_argument(
        "--protocols",
        metavar="A,B,…",
        type=flags.comma_list,
        default=[],
        help="protocols to measure; docs/concepts/protocols.md lists them (default: image_with_copies to "
        "case_deduplicated)",
    )
    parser.add_argument(
        "--magnifications",
        metavar="M,…",
        type=flags.comma_list,
        default=[],
        help="some of 40X, 100X, 200X, 400X, all (default: the config's)",
    )
    parser.add_argument(
        "--folds",
        metavar="K",
        type=flags.not_negative,
        default=5,
        help="folds of the cross-validation; 0: one hold-out (default: 5)",
    )
    parser.add_argument(
        "--transfer", action="store_true", help="also test the case-disjoint models at every magnification"
    )
    parser.set_defaults(interrupted="interrupted: rerun the same command to resume")
    return parser


def run(args: argparse.Namespace) -> None:
    """Train every fold that is not finished, and print the table."""
    refuse_unused(args, args.write_folds is None, ["--transfer"], "without --write_folds")
    from histojax.distributed import runtime
    from histojax.studies import protocols
    from histojax.training import default_config, experiments

    config = experiments.read(args.config, args.overrides)
    default_config.check_data_root(config)
    runtime.prepare(config.sharding.cpu_devices)
    names = args.protocols or list(protocols.DEFAULT)
    if args.transfer and not any(name.partition("_")[0] == "case" for name in names):
        names.append("case_deduplicated")
    plans = protocols.plans(config, names, args.magnifications, args.folds)
    if args.write_folds is not None:
        for path in protocols.write_folds(plans, pathlib.Path(args.write_folds)):
            print(path)
        return
    text = protocols.measure(plans, pathlib.Path(args.workdir), args.transfer)
    if text is None:
        print("interrupted: rerun the same command to resume")
        sys.exit(EXIT_RESUMABLE)
    print(text, end="")
