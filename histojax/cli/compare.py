"""`histojax compare`: several models under one protocol."""

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
    """Add `histojax compare`."""
    parser = add_verb(
        subparsers,
        "compare",
        run,
        summary="train several models under one protocol and print one table",
        description="Trains the models that a config lists in compare.models, one after another, with the same images, "
        "split and schedule, and prints one table. Rerun the same command to resume at the unfinished model. "
        "Exit code 75: interrupted.",
        examples=[
            "histojax compare --config baselines_breakhis:smoke --workdir runs/compare --models resnet50,densenet121",
        ],
    )
    flags.add_config(parser)
    flags.add_workdir(parser, "folder of the comparison; each model has a subfolder", required=True)
    parser.add_argument(
        "--models",
        metavar="A,B,…",
        type=flags.comma_list,
        default=[],
        help="only these models (default: all in the config's compare.models)",
    )
    parser.set_defaults(interrupted="interrupted: rerun the same command to resume")
    return parser


def run(args: argparse.Namespace) -> None:
    """Train every model that is not finished, and print the table."""
    from histojax.distributed import runtime
    from histojax.studies import compare
    from histojax.training import default_config, experiments

    config = experiments.build(args.config)
    values = experiments.override(config, args.overrides)
    default_config.check_values(config)
    default_config.check_used(config, values)
    default_config.check_data_root(config)
    runtime.prepare(config.sharding.cpu_devices)
    text = compare.compare(compare.configs(args.config, values, args.models), pathlib.Path(args.workdir))
    if text is None:
        print("interrupted: rerun the same command to resume")
        sys.exit(EXIT_RESUMABLE)
    print(text)
