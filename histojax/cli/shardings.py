"""`histojax shardings`: how parameters and optimizer are sharded across devices."""

import argparse
from typing import TYPE_CHECKING

from histojax.cli import flags
from histojax.cli.parser import CommandParser, add_verb

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax shardings`."""
    parser = add_verb(
        subparsers,
        "shardings",
        run,
        summary="show how parameters and optimizer are sharded across devices",
        description="Prints the shape, the sharding and the bytes per device of every parameter and statistic of an "
        "experiment. Devices are simulated: nothing is computed, and no hardware is needed.",
        examples=["histojax shardings --config dala_resnet50_breakhis --devices 8 --config.sharding.fsdp=8"],
    )
    flags.add_config(parser)
    parser.add_argument(
        "--devices",
        metavar="N",
        type=flags.positive,
        default=8,
        help="number of simulated devices; no hardware is needed (default: 8)",
    )
    parser.add_argument(
        "--num_classes", metavar="N", type=flags.positive, default=2, help="classes of the model (default: 2)"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    from histojax.training import experiments

    config = experiments.read(args.config, args.overrides)
    import jax

    jax.config.update("jax_platforms", "cpu")
    from histojax.cli import shardings_table
    from histojax.distributed import runtime

    runtime.prepare(args.devices)
    print(shardings_table.table(config, args.num_classes))
