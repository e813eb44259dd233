"""`histojax models`: the models that can be trained."""

import argparse
from typing import TYPE_CHECKING

from histojax.cli.parser import CommandParser, add_verb

if TYPE_CHECKING:
    from histojax.cli.parser import Subparsers


def add_parser(subparsers: "Subparsers") -> CommandParser:
    """Add `histojax models`."""
    return add_verb(
        subparsers,
        "models",
        run,
        summary="list the models: parameters, FLOPs, feature maps, weight names",
        description="Lists the models with their size at 224×224 pixels and 1000 classes, their feature maps, the "
        "naming schemes of the weight files that they read, and the implementation that each is compared with.",
        examples=["histojax models"],
    )


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    from histojax.cli import model_list

    print(model_list.stored_table())
